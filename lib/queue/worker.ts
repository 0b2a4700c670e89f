/** A worker: takes jobs from the queue, does them with its model and leaves a result file for each. */

import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Job as QueuedJob, UnrecoverableError, Worker } from "bullmq";
import { UniFluidError } from "../errors.js";
import { type ImageFormat, writeWhole } from "../image.js";
import { jobOf } from "../jobs/record.js";
import { runJob } from "../jobs/run.js";
import type { UniFluid } from "../model.js";
import { openQueue, type QueuedRecord, type QueueOptions, queueStatus, RUN_NAME } from "./queue.js";

export interface WorkerOptions extends QueueOptions {
  /** Folder of results: `RUN/0000012.json` and the picture beside it. */
  out: string;
  /** Folder that relative image paths start from. */
  images: string;
  format: ImageFormat;
  /** Jobs at once. */
  concurrency: number;
  /** Seconds after which the jobs of a worker that is silent are given to others. */
  lockSeconds: number;
  /** End when the queue holds nothing more to do. */
  untilEmpty: boolean;
  /** Seconds that what runs may take after `signal`. */
  drainSeconds: number;
  /** Take no more. */
  signal: AbortSignal;
  onJob(outcome: "done" | "failed" | "retried", id: string, message?: string): void;
  /** The server went away, or did something odd; the worker goes on. */
  onTrouble(error: Error): void;
}

/** Errors that another attempt may not meet. */
const PASSING = new Set(["INSUFFICIENT_MEMORY", "QUEUE_FULL", "DEVICE_ERROR"]);
/** A job may be taken over from a dead worker so often; one that kills its workers must come to an end. */
const MOST_TAKEOVERS = 5;

/** Works until `signal`, or until the queue is empty. Throws what makes this worker useless. */
export async function work(model: UniFluid, options: WorkerOptions): Promise<void> {
  const { redis, name, concurrency, lockSeconds, signal } = options;
  const giveUp = new AbortController();
  const failures = new Set<Promise<void>>();
  let broken: unknown;
  let wake = () => {};
  const worker = new Worker<QueuedRecord>(
    name,
    async (job) => {
      try {
        await doJob(model, job, options, giveUp.signal);
      } catch (error) {
        if (error instanceof UniFluidError && error.code === "DEVICE_ERROR") {
          broken = error;
          wake();
        }
        throw error;
      }
    },
    {
      connection: redis.options,
      concurrency,
      lockDuration: lockSeconds * 1000,
      stalledInterval: lockSeconds * 500,
      maxStalledCount: MOST_TAKEOVERS,
    },
  );
  worker.on("completed", ({ id }) => options.onJob("done", id!));
  worker.on("failed", (job, error) => {
    const left =
      job && !(error instanceof UnrecoverableError) && job.attemptsMade < job.opts.attempts!;
    options.onJob(left ? "retried" : "failed", job?.id ?? "?", error.message);
    if (!job || left) return;
    const written = writeFailure(job, error, options)
      .catch(options.onTrouble)
      .finally(() => failures.delete(written));
    failures.add(written);
  });
  worker.on("error", options.onTrouble);
  const ends = () => wake();
  signal.addEventListener("abort", ends);
  try {
    while (!signal.aborted && !broken) {
      await new Promise<void>((resolve) => {
        wake = resolve;
        setTimeout(resolve, 500).unref();
        if (signal.aborted || broken) resolve();
      });
      if (options.untilEmpty && (await isEmpty(options))) break;
    }
  } finally {
    signal.removeEventListener("abort", ends);
    // What runs may finish; what does not is taken over by another worker when its lock ends.
    const deadline = setTimeout(() => {
      giveUp.abort(new Error("the worker is ending"));
      void worker.close(true);
    }, options.drainSeconds * 1000);
    await worker.close();
    clearTimeout(deadline);
    await Promise.all(failures);
  }
  if (broken) throw broken;
}

/** Nothing waits, nothing runs here or elsewhere, nothing comes back later. */
async function isEmpty(options: WorkerOptions): Promise<boolean> {
  const queue = openQueue(options);
  try {
    const { waiting, active, delayed } = await queueStatus(queue);
    return waiting + active + delayed === 0;
  } finally {
    await queue.close();
  }
}

async function doJob(
  model: UniFluid,
  queued: QueuedJob<QueuedRecord>,
  options: WorkerOptions,
  signal: AbortSignal,
): Promise<void> {
  const { run, index, record } = queued.data;
  if (!isOurs(queued.data)) {
    throw new UnrecoverableError("INVALID_RECORD: not a job of this program");
  }
  const folder = join(options.out, run);
  const file = resultFile(folder, index);
  if (await isDone(file)) return;
  try {
    await mkdir(folder, { recursive: true });
    const job = jobOf(record, index, { options: {}, seed: 0n });
    const started = performance.now();
    const places = { images: options.images, out: folder, format: options.format };
    const outcome = await runJob(model, job, places, signal);
    const milliseconds = Math.round(performance.now() - started);
    const { id, task } = job;
    const seed = record.seed;
    await writeJsonWhole(file, { index, id, task, seed, ...outcome, milliseconds });
  } catch (error) {
    // The jobs that are given up when a worker ends are no failures: the lock ends, another takes them.
    if (signal.aborted) throw error;
    if (!(error instanceof UniFluidError)) throw error;
    const message = `${error.code}: ${error.message}`;
    throw PASSING.has(error.code) ? error : new UnrecoverableError(message);
  }
}

/** What is in the queue comes from a network: a run's name must not lead out of the folder. */
function isOurs({ run, index }: QueuedRecord): boolean {
  return RUN_NAME.test(run) && Number.isSafeInteger(index) && index >= 0;
}

const resultFile = (folder: string, index: number): string =>
  join(folder, `${String(index).padStart(7, "0")}.json`);

const writeJsonWhole = (path: string, value: unknown): Promise<void> =>
  writeWhole(path, Buffer.from(`${JSON.stringify(value)}\n`));

/** A job whose result was written, by a worker that died before it could say so. */
async function isDone(file: string): Promise<boolean> {
  try {
    return !("error" in JSON.parse(await readFile(file, "utf8")));
  } catch {
    return false;
  }
}

/** A job that is given up has a result, too. */
async function writeFailure(
  { data }: QueuedJob<QueuedRecord>,
  error: Error,
  { out }: WorkerOptions,
): Promise<void> {
  const { run, index } = data;
  if (!isOurs(data)) return;
  const folder = join(out, run);
  const file = resultFile(folder, index);
  if (await isDone(file)) return;
  await mkdir(folder, { recursive: true });
  const [, code = "INTERNAL", message = error.message] =
    /^([A-Z_]+): (.*)$/s.exec(error.message) ?? [];
  const known = error instanceof UniFluidError ? error.code : code;
  await writeJsonWhole(file, { index, error: { code: known, message } });
}
