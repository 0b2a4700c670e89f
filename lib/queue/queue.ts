/**
 * Jobs in a queue that many machines work on: BullMQ's on a Redis server.
 *
 * A job's id is its run, its number and its fingerprint, and its result is one file of that number. So a job
 * that is put in twice is one job, and one that two workers do, since the first was taken for dead, has one
 * result.
 */

import { Queue, type Job as QueuedJob } from "bullmq";
import { UniFluidError } from "../errors.js";
import type { RawRecord } from "../jobs/reader.js";
import { fingerprint, type Job, type JobDefaults, jobOf } from "../jobs/record.js";
import type { RedisAddress } from "./connection.js";
import { Outbox } from "./outbox.js";

/** What is put into the queue: a record with all its options, as JSON. */
export interface QueuedRecord {
  run: string;
  index: number;
  /** Of the job (`lib/jobs/record.ts`): a result counts for the job that it was made of alone. */
  fingerprint: number;
  record: Record<string, unknown>;
}

export interface QueueOptions {
  redis: RedisAddress;
  /** The queue's name on the server. */
  name: string;
}

/** Finished jobs that the server still knows: enough to see what goes on, not all of a million. */
const KEPT = 1000;
/** Jobs that are asked for at once. */
const BULK = 500;

/** Letters that a run's name may have: it becomes a folder and a part of ids. */
export const RUN_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$/;

const jobId = (run: string, index: number, mark: number): string =>
  `${run}-${index}-${mark.toString(16).padStart(8, "0")}`;

export type RecordQueue = Queue<QueuedRecord>;

export function openQueue({ redis, name }: QueueOptions): RecordQueue {
  const queue: RecordQueue = new Queue(name, { connection: redis.options });
  // The connection tries again by itself; without a listener an error would end the process.
  queue.on("error", () => {});
  return queue;
}

/** Closes a queue whose server may be away, without a word to it. What waits for an answer fails, or gets none. */
export function closeAtOnce(queue: RecordQueue): void {
  // The one ends a connection that was there once, the other one that has never been; neither ends while it is away.
  queue.disconnect().catch(() => {});
  queue.close().catch(() => {});
}

export interface EnqueueOptions {
  run: string;
  defaults: JobDefaults;
  /** How often a job is tried. */
  attempts: number;
  signal: AbortSignal;
  onQueued(): void;
  onRefused(error: UniFluidError, record: RawRecord): void;
}

/**
 * Puts records into the queue; one that is no job is told of and left out. Where the reading ends with an error, as by
 * the signal, what was read is put in all the same: a pipe does not give it again. Where the server refuses, the reading
 * may still wait for a record: whoever opened `records` ends it.
 */
export async function enqueueRecords(
  queue: RecordQueue,
  records: AsyncIterable<RawRecord>,
  { run, defaults, attempts, signal, onQueued, onRefused }: EnqueueOptions,
): Promise<void> {
  type Bulk = Parameters<RecordQueue["addBulk"]>[0];
  const outbox = new Outbox<Bulk[number]>(async (bulk) => {
    await queue.addBulk(bulk);
    for (const _ of bulk) onQueued();
  });
  const read = async () => {
    for await (const raw of records) {
      let job: Job;
      try {
        if ("error" in raw) throw raw.error;
        job = jobOf(raw.value, raw.index, defaults, raw.line);
      } catch (error) {
        if (!(error instanceof UniFluidError)) throw error;
        onRefused(error, raw);
        continue;
      }
      const mark = fingerprint(job);
      const entry: Bulk[number] = {
        name: job.task,
        data: { run, index: job.index, fingerprint: mark, record: recordOf(job) },
        opts: {
          jobId: jobId(run, job.index, mark),
          attempts,
          backoff: { type: "exponential", delay: 1000 },
          removeOnComplete: { count: KEPT },
        },
      };
      await outbox.add(entry, job.text.length + (job.image?.length ?? 0));
    }
  };
  const reading = read();
  reading.catch(() => {}); // it may end after the race
  try {
    await Promise.race([reading, outbox.failure]).catch(async (error) => {
      const sending = outbox.send();
      await (signal.aborted ? sending : sending.catch(() => {}));
      throw error;
    });
    await outbox.send();
  } finally {
    outbox.stop();
  }
}

const TEXT_OF = { generate: "prompt", edit: "instruction", answer: "question" } as const;

/** A record that means the job whatever the options of the worker. */
function recordOf({ id, task, text, image, options }: Job): Record<string, unknown> {
  return {
    ...(id === undefined ? {} : { id }),
    task,
    ...(task === "caption" ? {} : { [TEXT_OF[task]]: text }),
    ...(image === undefined ? {} : { image }),
    ...options,
    seed: String(options.seed),
    // JSON would make null of it.
    ...(options.x0Limit === Infinity ? { x0Limit: "Infinity" } : {}),
  };
}

export interface QueueStatus {
  waiting: number;
  active: number;
  delayed: number;
  /** Finished, as far as the server still knows. */
  completed: number;
  /** Given up after all attempts, or at once where no attempt could help. */
  dead: number;
}

export async function queueStatus(queue: RecordQueue): Promise<QueueStatus> {
  const counts = await queue.getJobCounts(
    "waiting",
    "prioritized",
    "active",
    "delayed",
    "completed",
    "failed",
  );
  const count = (name: string) => counts[name] ?? 0;
  return {
    waiting: count("waiting") + count("prioritized"),
    active: count("active"),
    delayed: count("delayed"),
    completed: count("completed"),
    dead: count("failed"),
  };
}

export interface DeadJob {
  id: string;
  run: string;
  index: number;
  attempts: number;
  reason: string;
}

/** The jobs that were given up, the last first. */
export async function* deadJobs(queue: RecordQueue): AsyncGenerator<DeadJob> {
  for (let from = 0; ; from += BULK) {
    const jobs: QueuedJob<QueuedRecord>[] = await queue.getFailed(from, from + BULK - 1);
    for (const { id, data, attemptsMade, failedReason } of jobs) {
      const { run, index } = data;
      yield { id: id!, run, index, attempts: attemptsMade, reason: failedReason };
    }
    if (jobs.length < BULK) return;
  }
}

/**
 * Puts the jobs that are given up now back into the queue, each as fresh as when it was put in; how many went back. Not
 * BullMQ's own `retryJobs`: it leaves them the attempts that they have used up, and so a single one.
 */
export async function retryDead(queue: RecordQueue): Promise<number> {
  const { dead } = await queueStatus(queue);
  const client = await queue.getBackend().client;
  const retry = async (job: QueuedJob<QueuedRecord>): Promise<boolean> => {
    // How often it was taken over from a worker that died, of which BullMQ has no name.
    await client.hdel(queue.toKey(job.id!), "stc");
    // The count of starts stays: from it a worker sees that halves of files may lie about.
    try {
      await job.retry("failed", { resetAttemptsMade: true });
      return true;
    } catch (error) {
      if (await job.isFailed()) throw error;
      // Another program was faster, or removed it.
      return false;
    }
  };
  let retried = 0;
  // The oldest first, and no more than there were: what fails anew meanwhile comes after them.
  for (let seen = 0; seen < dead; ) {
    const most = Math.min(BULK, dead - seen);
    const jobs: QueuedJob<QueuedRecord>[] = await queue.getJobs(["failed"], 0, most - 1, true);
    if (jobs.length === 0) break;
    const outcomes = await Promise.all(jobs.map(retry));
    retried += outcomes.filter(Boolean).length;
    seen += jobs.length;
  }
  return retried;
}
