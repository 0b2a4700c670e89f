/** Runs jobs through a model: what a record asks for, a result line for each, one failure at a time. */

import { basename, join } from "node:path";
import { runAll } from "../bulk.js";
import { endsModel, JobsChangedError, UniFluidError } from "../errors.js";
import type { ImageFormat } from "../image.js";
import type { UniFluid } from "../model.js";
import { pictureName } from "./names.js";
import { nameOfRecord, type RawRecord } from "./reader.js";
import { fingerprint, imagePath, type Job, type JobDefaults, jobOf } from "./record.js";
import type { ResultLine, ResultsFolder, Shard } from "./results.js";

/** What a job gave: a file that was written, or a text. */
export interface JobOutcome {
  file?: string;
  width?: number;
  height?: number;
  text?: string;
}

/** Where jobs find images and leave pictures. */
export interface JobPlaces {
  /** Folder that relative image paths start from. */
  images: string;
  out: string;
  format: ImageFormat;
  /** Asked when a picture is there: whether to write it, which nobody may want any more. */
  wanted?(): Promise<boolean>;
}

/** Does one job; a picture is written whole or not at all. Undefined: the job is not wanted any more. */
export async function runJob(
  model: UniFluid,
  job: Job,
  { images, out, format, wanted }: JobPlaces,
  signal: AbortSignal,
): Promise<JobOutcome | undefined> {
  const options = { ...job.options, signal };
  const source = job.image === undefined ? "" : imagePath(job.image, images);
  switch (job.task) {
    case "caption":
      return { text: await model.caption(source, options) };
    case "answer":
      return { text: await model.answer(source, job.text, options) };
    default: {
      const image =
        job.task === "generate"
          ? await model.generate(job.text, options)
          : await model.edit(source, job.text, options);
      const file = pictureName(job, format === "jpeg" ? "jpg" : format);
      if (wanted && !(await wanted())) return undefined;
      await image.save(join(out, file));
      return { file, width: image.width, height: image.height };
    }
  }
}

export interface BatchOptions {
  shard: Shard;
  defaults: JobDefaults;
  images: string;
  format: ImageFormat;
  concurrency: number;
  /** Do again what failed in an earlier run. */
  retryFailed: boolean;
  signal: AbortSignal;
  /** `line`: what was written of a record that failed now. */
  onRecord(outcome: RecordOutcome, line?: ResultLine): void;
}

/** What became of a record: now, or in an earlier run. */
export type RecordOutcome = "done" | "failed" | "doneBefore" | "failedBefore";

/** A record that is still to be done: a job, or why it cannot be one. */
type PendingRecord = { index: number; fingerprint: number } & (
  | { job: Job }
  | { error: UniFluidError }
);

/**
 * Does what a folder of results lacks. Throws only what ends the whole run: an abort, a disk that takes no
 * more, jobs that are not those of the earlier run.
 */
export async function runBatch(
  model: UniFluid,
  records: AsyncIterable<RawRecord>,
  folder: ResultsFolder,
  options: BatchOptions,
): Promise<void> {
  const { signal, images, format, concurrency } = options;
  const places = { images, out: folder.path, format };
  // Other weights or another format would make other pictures than those that are there.
  const means = [basename(model.info.directory), format];
  const settings = { concurrency, ordered: false, stopOnError: true, signal };
  const one = async (
    record: PendingRecord,
    _index: number,
    ends: AbortSignal,
  ): Promise<ResultLine> => {
    const started = performance.now();
    const line = "job" in record ? describeJob(record.job) : {};
    try {
      if ("error" in record) throw record.error;
      const outcome = await runJob(model, record.job, places, ends);
      const milliseconds = Math.round(performance.now() - started);
      return { ...head(record), ...line, ...outcome, milliseconds };
    } catch (error) {
      // A file that cannot be written is the folder's trouble: every other record would share it.
      if (!(error instanceof UniFluidError) || endsRun(error)) throw error;
      return { ...head(record), ...line, error: { code: error.code, message: error.message } };
    }
  };
  for await (const { value } of runAll(pending(records, folder, means, options), one, settings)) {
    await folder.write(value!);
    if (value!.error) options.onRecord("failed", value!);
    else options.onRecord("done");
  }
}

const head = ({ index, fingerprint: mark }: PendingRecord) => ({ index, fingerprint: mark });
/** What a result tells of its job, whatever became of it. */
export const describeJob = ({ id, task, options }: Job) => ({
  ...(id === undefined ? {} : { id }),
  task,
  seed: options.seed,
});

/** Errors that the next record would meet as well. */
function endsRun(error: UniFluidError): boolean {
  return endsModel(error) || error.code === "INTERNAL";
}

async function* pending(
  records: AsyncIterable<RawRecord>,
  folder: ResultsFolder,
  means: readonly string[],
  { shard, defaults, retryFailed, onRecord }: BatchOptions,
): AsyncGenerator<PendingRecord> {
  for await (const record of records) {
    const { index } = record;
    if (index % shard.count !== shard.index) continue;
    const next = pendingOf(record, defaults, means);
    const before = folder.done.get(index);
    if (before.fingerprint === 0 || (before.failed && retryFailed)) {
      yield next;
    } else if (before.failed) {
      // It may have been mended since.
      onRecord("failedBefore");
    } else if (before.fingerprint !== next.fingerprint) {
      throw new JobsChangedError(
        `${nameOfRecord(index, record.line)} differs from the record whose result is in ${folder.path}: the jobs or the options have ` +
          "changed since; write to another folder",
      );
    } else {
      onRecord("doneBefore");
    }
  }
}

function pendingOf(
  record: RawRecord,
  defaults: JobDefaults,
  means: readonly string[],
): PendingRecord {
  const { index, line } = record;
  try {
    if ("error" in record) throw record.error;
    const job = jobOf(record.value, index, defaults, line);
    return { index, fingerprint: fingerprint(job, means), job };
  } catch (error) {
    if (!(error instanceof UniFluidError)) throw error;
    return { index, fingerprint: 1, error };
  }
}
