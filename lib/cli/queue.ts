/** `unifluid queue`: what is in a queue, and what became of its jobs. */

import { readFile } from "node:fs/promises";
import type { Command } from "commander";
import { onAbort, orAborted } from "../abort.js";
import type { RecordQueue } from "../queue/queue.js";
import { type OutputFlags, runCommand } from "./context.js";
import { UsageError } from "./exit-codes.js";
import { addFlags } from "./flags.js";
import { write, writeJson } from "./output.js";
import { formatTable } from "./tables.js";

export interface QueueFlags {
  /** A URL; it may hold a password, and so is no default that --help would show. */
  queue?: string;
  queueName: string;
}

export function addQueueFlags(command: Command): Command {
  return command
    .option(
      "--queue <url>",
      "Redis server, redis://[user:password@]host:port[/db], rediss:// for TLS (default: UNIFLUID_QUEUE, or this machine)",
    )
    .option("--queue-name <name>", "name of the queue on the server", "unifluid");
}

export const queueUrl = ({ queue }: QueueFlags): string =>
  queue ?? process.env.UNIFLUID_QUEUE ?? "redis://127.0.0.1:6379";

/**
 * Opens the queue that the flags name, after a look whether its server answers. Throws the signal's reason so many
 * milliseconds after it aborted, whatever `use` still waits for: a server that is away answers nothing. Throws
 * `QUEUE_UNREACHABLE` also where the server refuses what it is told.
 */
export async function withQueue<T>(
  flags: QueueFlags,
  signal: AbortSignal,
  use: (queue: RecordQueue) => Promise<T>,
  grace = 0,
): Promise<T> {
  const { checkQueueName, checkRedis, isRefusal, parseRedisUrl, refusal } = await import(
    "../queue/connection.js"
  );
  const { closeAtOnce, openQueue } = await import("../queue/queue.js");
  const redis = parseRedisUrl(queueUrl(flags));
  checkQueueName(flags.queueName);
  await checkRedis(redis);
  signal.throwIfAborted();
  const queue = openQueue({ redis, name: flags.queueName });
  const late = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const off = onAbort(signal, () => {
    timer = setTimeout(() => late.abort(signal.reason), grace);
  });
  try {
    return await orAborted(() => use(queue), late.signal);
  } catch (error) {
    throw isRefusal(error) ? refusal(redis.name, error) : error;
  } finally {
    off();
    clearTimeout(timer);
    if (signal.aborted) closeAtOnce(queue);
    else await queue.close();
  }
}

export function addQueue(program: Command): void {
  const queue = program.command("queue").description("inspect a queue and its results");
  const sub = (name: string, description: string) =>
    addFlags(queue.command(name).description(description), "json");

  addQueueFlags(sub("status", "count waiting, running, done and dead jobs")).action(
    (flags: QueueFlags & OutputFlags) =>
      runCommand(flags, async ({ json, signal }) => {
        const { queueStatus } = await import("../queue/queue.js");
        const status = await withQueue(flags, signal, queueStatus);
        if (json) return writeJson(status);
        return write(
          formatTable(
            Object.entries(status).map(([name, count]) => [name, String(count)] as const),
          ),
        );
      }),
  );
  addQueueFlags(sub("dead", "list the jobs that were given up, and why")).action(
    (flags: QueueFlags & OutputFlags) =>
      runCommand(flags, async ({ json, signal }) => {
        const { deadJobs } = await import("../queue/queue.js");
        await withQueue(flags, signal, async (open) => {
          for await (const job of deadJobs(open)) {
            if (json) await writeJson(job);
            else await write(`${job.id}\t${job.attempts} attempts\t${job.reason}\n`);
          }
        });
      }),
  );
  addQueueFlags(sub("retry", "put the jobs that were given up back into the queue")).action(
    (flags: QueueFlags & OutputFlags) =>
      runCommand(flags, async ({ json, signal }) => {
        const { retryDead } = await import("../queue/queue.js");
        const retried = await withQueue(flags, signal, retryDead);
        return json ? writeJson({ retried }) : write(`${retried} jobs waiting again\n`);
      }),
  );
  queue
    .command("results <folder>")
    .description("print the results in a run's folder in order, one JSON document per line")
    .action((folder: string) => runCommand({}, () => results(folder)));
}

async function results(folder: string): Promise<void> {
  const { resultFiles } = await import("../queue/results.js");
  const files = await resultFiles(folder).catch((error: Error) => {
    throw new UsageError(`cannot read the results: ${error.message}`);
  });
  for (const file of files) await write(await readFile(file, "utf8"));
}
