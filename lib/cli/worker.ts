/** `unifluid worker`: does the jobs of a queue. */

import type { Command } from "commander";
import { isFolder } from "../files.js";
import type { ImageFormat } from "../image.js";
import { concurrency } from "./batch.js";
import { type Context, note, type OutputFlags, runCommand } from "./context.js";
import { ExitCode, UsageError } from "./exit-codes.js";
import { addFlags, integerFlag, MODEL_FLAGS } from "./flags.js";
import { type ModelFlags, withModel } from "./load.js";
import { makeFolderOutput, writingFailed } from "./output.js";
import { addQueueFlags, type QueueFlags, queueUrl } from "./queue.js";

interface WorkerFlags extends QueueFlags, ModelFlags, OutputFlags {
  out: string;
  images: string;
  format: ImageFormat;
  concurrency: number;
  lockSeconds: number;
  drainTimeout: number;
  untilEmpty?: boolean;
}

const seconds = integerFlag(1, 86_400);

export function addWorker(program: Command): void {
  const command = program
    .command("worker")
    .description("run the jobs of a queue, together with other workers")
    .requiredOption("-o, --out <folder>", "results folder, shared by all workers")
    .option("--images <folder>", "folder that relative image paths start from", ".")
    .option("--concurrency <n>", "jobs that run at once", concurrency, 16)
    .option("--lock-seconds <s>", "silence until others take over a worker's jobs", seconds, 30)
    .option("--drain-timeout <s>", "seconds running jobs get after SIGTERM", seconds, 30)
    .option("--until-empty", "exit when the queue has nothing left to do");
  addFlags(addQueueFlags(command), "pictureFormat", ...MODEL_FLAGS, "quiet").action(
    (flags: WorkerFlags) => runCommand(flags, (context) => worker(flags, context)),
  );
}

async function worker(flags: WorkerFlags, context: Context): Promise<void> {
  const { checkQueueName, checkRedis, parseRedisUrl } = await import("../queue/connection.js");
  const { work } = await import("../queue/worker.js");
  const redis = parseRedisUrl(queueUrl(flags));
  checkQueueName(flags.queueName);
  await checkRedis(redis);
  // Without it every job with an image would be given up.
  if (!(await isFolder(flags.images)))
    throw new UsageError(`expected a folder for --images but ${flags.images} is none`);
  await makeFolderOutput(flags.out);
  const counts = { done: 0, failed: 0, retried: 0 };
  // Trouble with the server comes with every attempt to reach it: told of once a while.
  let told = 0;
  let inOrder = true;
  await withModel({ ...flags, maxSequences: flags.concurrency }, context.signal, async (model) => {
    note(context, `working on ${flags.queueName} at ${redis.name}`);
    inOrder = await work(model, {
      redis,
      name: flags.queueName,
      out: flags.out,
      images: flags.images,
      format: flags.format,
      concurrency: flags.concurrency,
      lockSeconds: flags.lockSeconds,
      drainSeconds: flags.drainTimeout,
      untilEmpty: flags.untilEmpty ?? false,
      signal: context.signal,
      onJob: (outcome, id, message) => {
        counts[outcome]++;
        if (outcome !== "done") note(context, `${id} ${outcome}: ${message}`);
      },
      onTrouble: (error) => {
        if (Date.now() - told < 10_000) return;
        told = Date.now();
        note(context, `the queue: ${error.message || (error as NodeJS.ErrnoException).code}`);
      },
    }).catch(writingFailed(flags.out));
  });
  note(context, `${counts.done} done, ${counts.failed} failed, ${counts.retried} to be retried`);
  if (!inOrder) {
    note(context, "the queue no longer answers: others will take over unfinished jobs");
    // The connection would go on trying, and keep the process.
    process.exit(ExitCode.ok);
  }
}
