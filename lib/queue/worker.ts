/** A worker: takes jobs from the queue, does them with its model and leaves a result file for each. */

import { readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { type Job as QueuedJob, UnrecoverableError, WaitingError, Worker } from "bullmq";
import { onAbort } from "../abort.js";
import { InvalidImageError, UniFluidError } from "../errors.js";
import { isFolder, makeFolder } from "../files.js";
import type { ImageFormat } from "../image.js";
import { halfWritten, resultName } from "../jobs/names.js";
import { type Job, jobOf } from "../jobs/record.js";
import { describeJob, runJob } from "../jobs/run.js";
import { jsonLine } from "../json-line.js";
import { machinesFault } from "../machines-fault.js";
import type { UniFluid } from "../model.js";
import { systemCode } from "../system-code.js";
import { writeWhole } from "../write-whole.js";
import {
  openQueue,
  type QueuedRecord,
  type QueueOptions,
  queueStatus,
  type RecordQueue,
  RUN_NAME,
} from "./queue.js";

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

/** Errors that another attempt may not meet, as one that the machine is to blame for may not. */
const PASSING = new Set(["INSUFFICIENT_MEMORY", "QUEUE_FULL", "DEVICE_ERROR"]);
/** A job may be taken over from a dead worker so often; one that kills its workers must come to an end. */
const MOST_TAKEOVERS = 5;

/** Seconds beyond the drain's that closing may take: a server that is away answers nothing. */
const CLOSE_SECONDS = 5;

/**
 * Works until `signal`, or until the queue is empty. Whether it ended in order: false where the server did not
 * answer any more; its jobs are then taken over. Throws what makes this worker useless: a device that failed, what the
 * file system says of `out`, and `IMAGE_NOT_FOUND` where the folder of images is there no more.
 */
export async function work(model: UniFluid, options: WorkerOptions): Promise<boolean> {
  const { redis, name, concurrency, lockSeconds, signal } = options;
  const giveUp = new AbortController();
  const failures = new Set<Promise<void>>();
  let broken: unknown;
  let wake = () => {};
  /** Whether an error is of the folder of results or of that of images, and so ends this worker. */
  const endIfUseless = async (error: unknown): Promise<boolean> => {
    const ofImages = await isOfImages(error, options.images);
    if (!ofImages && !(await isOfFolder(error, options.out))) return false;
    broken = ofImages ? imagesGone(options.images, error as Error) : error;
    wake();
    return true;
  };
  const worker = new Worker<QueuedRecord>(
    name,
    async (job, token) => {
      try {
        await doJob(model, job, options, giveUp.signal);
      } catch (error) {
        if (giveUp.signal.aborted || (await endIfUseless(error))) {
          // No failure of the job: it waits again, with as many attempts as before.
          await job.moveToWait(token);
          throw new WaitingError();
        }
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
      .catch(async (failure: Error) => {
        options.onTrouble(failure);
        await endIfUseless(failure);
      })
      .finally(() => failures.delete(written));
    failures.add(written);
  });
  worker.on("error", options.onTrouble);
  const ends = () => wake();
  signal.addEventListener("abort", ends);
  const queue = options.untilEmpty ? openQueue(options) : undefined;
  let inOrder = true;
  try {
    while (!signal.aborted && !broken) {
      await new Promise<void>((resolve) => {
        wake = resolve;
        setTimeout(resolve, 500).unref();
        if (signal.aborted || broken) resolve();
      });
      if (queue && (await isEmpty(queue, signal))) break;
    }
  } finally {
    signal.removeEventListener("abort", ends);
    // What runs may finish; what does not goes back into the queue.
    const { drainSeconds } = options;
    const deadline = setTimeout(
      () => giveUp.abort(new Error("the worker is ending")),
      drainSeconds * 1000,
    );
    const closed = Promise.all([worker.close(), queue?.close()]).then(() => Promise.all(failures));
    inOrder = await within(closed, (drainSeconds + CLOSE_SECONDS) * 1000);
    clearTimeout(deadline);
  }
  if (broken) throw broken;
  return inOrder;
}

/** What may lie in the place of a job's own files, which the next job does not meet: if the folder itself is well. */
const IN_THE_WAY = new Set(["EEXIST", "EISDIR", "ENOTDIR", "ENOTEMPTY", "ENAMETOOLONG"]);

/** Whether a job failed since nothing can be written to the folder of results: so would all others here. */
async function isOfFolder(error: unknown, out: string): Promise<boolean> {
  // Of images that cannot be read the library makes errors of its own.
  const code = systemCode(error);
  if (code === undefined) return false;
  return !IN_THE_WAY.has(code) || !(await isFolder(out));
}

/** Whether a job failed since the folder of images is there no more: so would all others here that have one. */
const isOfImages = async (error: unknown, images: string): Promise<boolean> =>
  error instanceof InvalidImageError &&
  error.code === "IMAGE_NOT_FOUND" &&
  !(await isFolder(images));

const imagesGone = (images: string, cause: Error) =>
  new InvalidImageError(
    "IMAGE_NOT_FOUND",
    `the folder of images, ${images}, is there no more: ${cause.message}`,
    { cause },
  );

/** Whether a promise is fulfilled in so many milliseconds. */
async function within(promise: Promise<unknown>, milliseconds: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), milliseconds);
  });
  return Promise.race([promise.then(() => true), late]).finally(() => clearTimeout(timer));
}

/** Nothing waits, nothing runs here or elsewhere, nothing comes back later. */
async function isEmpty(queue: RecordQueue, signal: AbortSignal): Promise<boolean> {
  // A server that is away does not answer until it is back; the worker must end all the same.
  let off = () => {};
  const aborted = new Promise<undefined>((resolve) => {
    if (signal.aborted) resolve(undefined);
    else off = onAbort(signal, () => resolve(undefined));
  });
  const status = await Promise.race([queueStatus(queue), aborted]).finally(() => off());
  return status !== undefined && status.waiting + status.active + status.delayed === 0;
}

async function doJob(
  model: UniFluid,
  queued: QueuedJob<QueuedRecord>,
  options: WorkerOptions,
  signal: AbortSignal,
): Promise<void> {
  const { run, index } = queued.data;
  if (!isOurs(queued.data)) {
    throw new UnrecoverableError("INVALID_RECORD: not a job of this program");
  }
  const folder = join(options.out, run);
  const file = join(folder, resultName(index));
  if (await needsNothing(file, queued)) return;
  try {
    await makeFolder(folder);
    // A worker that died over this job may have left halves of its files.
    if (queued.attemptsStarted > 1) await removeHalves(folder, index);
    const job = jobIn(queued.data);
    const started = performance.now();
    // A newer record of this number may have got its result meanwhile.
    const wanted = async () => !(await needsNothing(file, queued));
    const places = { images: options.images, out: folder, format: options.format, wanted };
    const outcome = await runJob(model, job, places, signal);
    if (!outcome || !(await wanted())) return;
    const milliseconds = Math.round(performance.now() - started);
    const line = { ...headOf(queued), ...describeJob(job), ...outcome, milliseconds };
    await writeJsonWhole(file, line);
  } catch (error) {
    if (!(error instanceof UniFluidError)) throw error;
    const elsewhere =
      PASSING.has(error.code) ||
      machinesFault(error) !== undefined ||
      (await isOfImages(error, options.images));
    throw elsewhere ? error : new UnrecoverableError(`${error.code}: ${error.message}`);
  }
}

/** Its options are in the record, all of them. Throws `INVALID_RECORD`. */
const jobIn = ({ record, index }: QueuedRecord): Job =>
  jobOf(record, index, { options: {}, seed: 0n });

/** What is in the queue comes from a network: a run's name must not lead out of the folder. */
function isOurs({ run, index, fingerprint }: QueuedRecord): boolean {
  const numbers = Number.isSafeInteger(index) && index >= 0 && Number.isSafeInteger(fingerprint);
  return RUN_NAME.test(run) && numbers;
}

async function removeHalves(folder: string, index: number): Promise<void> {
  const half = halfWritten(index);
  for (const name of await readdir(folder)) {
    if (half.test(name)) await rm(join(folder, name), { force: true });
  }
}

const writeJsonWhole = (path: string, value: unknown): Promise<void> =>
  writeWhole(path, Buffer.from(jsonLine(value)));

/** What every result tells of its job. `enqueued`: when it was put in, in milliseconds since 1970. */
const headOf = ({ data, timestamp }: QueuedJob<QueuedRecord>) => ({
  index: data.index,
  fingerprint: data.fingerprint,
  enqueued: timestamp,
});

/**
 * A job whose result was written, by a worker that died before it could say so; or one that was put in again with
 * another record since, and has the result of that.
 */
async function needsNothing(
  file: string,
  { data, timestamp }: QueuedJob<QueuedRecord>,
): Promise<boolean> {
  try {
    const result = JSON.parse(await readFile(file, "utf8")) as Record<string, unknown>;
    const { fingerprint, enqueued } = result;
    if (fingerprint === data.fingerprint) return !("error" in result);
    return typeof enqueued === "number" && enqueued > timestamp;
  } catch {
    return false;
  }
}

/** Nothing of a record that is no job, as in a batch. */
function describedIn(data: QueuedRecord): Partial<ReturnType<typeof describeJob>> {
  try {
    return describeJob(jobIn(data));
  } catch {
    return {};
  }
}

/** A job that is given up has a result, too. */
async function writeFailure(
  queued: QueuedJob<QueuedRecord>,
  error: Error,
  { out }: WorkerOptions,
): Promise<void> {
  const { data } = queued;
  const { run, index } = data;
  if (!isOurs(data)) return;
  const folder = join(out, run);
  const file = join(folder, resultName(index));
  if (await needsNothing(file, queued)) return;
  await makeFolder(folder);
  const [, code = "INTERNAL", message = error.message] =
    /^([A-Z_]+): (.*)$/s.exec(error.message) ?? [];
  const known = error instanceof UniFluidError ? error.code : code;
  const line = { ...headOf(queued), ...describedIn(data), error: { code: known, message } };
  await writeJsonWhole(file, line);
}
