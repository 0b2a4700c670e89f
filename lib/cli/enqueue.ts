/** `unifluid enqueue`: puts the jobs of a file into a queue that workers take them from. */

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { basename } from "node:path";
import type { Command } from "commander";
import { underEach } from "../abort.js";
import type { DrawOptions } from "../call-options.js";
import type { JobFormat } from "../jobs/reader.js";
import type { RecordQueue } from "../queue/queue.js";
import { parseSeed } from "../seed.js";
import { addInputFormat, openJobs, recordOptions } from "./batch.js";
import { type Context, note, type OutputFlags, runCommand, tell } from "./context.js";
import { ExitCode, UsageError } from "./exit-codes.js";
import { addFlags, integerFlag, JOB_FLAGS } from "./flags.js";
import { STANDARD, writeJson } from "./output.js";
import { type RecordProgress, startRecords } from "./progress.js";
import { addQueueFlags, type QueueFlags, withQueue } from "./queue.js";

/** Seconds after SIGTERM in which what was read may still be sent. */
const LAST_SECONDS = 5;

interface EnqueueFlags extends QueueFlags, OutputFlags, DrawOptions {
  inputFormat?: JobFormat;
  run?: string;
  attempts: number;
  maxNewTokens?: number;
}

export function addEnqueue(program: Command): void {
  const command = program
    .command("enqueue <jobs>")
    .description("put the jobs of a file (as for batch) into a queue for workers")
    .option(
      "--run <name>",
      "name of this run and its results folder (default: from the file's name, its content and the options)",
    )
    .option(
      "--attempts <n>",
      "how often a job with transient errors is tried",
      integerFlag(1, 100),
      5,
    );
  addInputFormat(addQueueFlags(command));
  addFlags(command, ...JOB_FLAGS, "jsonCounts", "quiet").action(
    (jobs: string, flags: EnqueueFlags) =>
      runCommand(flags, (context) => enqueue(jobs, flags, context)),
  );
}

async function enqueue(path: string, flags: EnqueueFlags, context: Context): Promise<void> {
  const { enqueueRecords, RUN_NAME } = await import("../queue/queue.js");
  const jobs = await openJobs(path, flags.inputFormat, context.signal);
  const run = flags.run ?? (await runOf(path, flags));
  if (!RUN_NAME.test(run)) {
    throw new UsageError("expected letters, digits, '.', '_' or '-' as the name of --run");
  }
  const counts = { queued: 0, failed: 0 };
  let progress: RecordProgress | undefined;
  const fill = async (queue: RecordQueue, reading: AbortSignal) => {
    const total = context.quiet ? undefined : await jobs.count?.();
    progress = startRecords(context, total);
    await enqueueRecords(queue, jobs.read(reading), {
      run,
      defaults: { options: recordOptions(flags), seed: parseSeed(flags.seed ?? 0) },
      attempts: flags.attempts,
      signal: context.signal,
      onQueued: () => {
        counts.queued++;
        progress?.step("done");
      },
      onRefused: (error, { index, line }) => {
        counts.failed++;
        progress?.clear();
        // No result will tell of it.
        tell(error, context.json, { record: index, line });
        progress?.step("failed");
      },
    });
  };
  try {
    // A refusal of the server ends the reading, too: a pipe on which nothing comes would keep the process.
    await underEach([context.signal], (reading) =>
      withQueue(flags, context.signal, (queue) => fill(queue, reading), LAST_SECONDS * 1000),
    );
  } catch (error) {
    progress?.stop();
    if (counts.queued > 0)
      note(
        context,
        `run ${run}: ${counts.queued} jobs are queued; enqueue the same again to add the others`,
      );
    throw error;
  }
  progress?.stop();
  note(
    context,
    `run ${run}: ${counts.queued} jobs queued (without duplicating those already there), ` +
      `${counts.failed} records are not jobs`,
  );
  if (context.json) await writeJson({ run, ...counts });
  if (counts.failed > 0) process.exitCode = ExitCode.partial;
}

/**
 * A name that another file, or the same with other options, does not have: else the results of one would stand
 * for those of the other.
 */
async function runOf(path: string, flags: EnqueueFlags): Promise<string> {
  if (path === STANDARD) throw new UsageError("jobs from standard input need a --run name");
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  hash.update(JSON.stringify([recordOptions(flags), String(flags.seed ?? 0)]));
  const stem = basename(path).replace(/\.[^.]*$/, "");
  return `${stem.replace(/[^\w.-]/g, "_").slice(0, 80)}-${hash.digest("hex").slice(0, 8)}`;
}
