/** `unifluid batch`: thousands of prompts and images from a file, into a folder. */

import { stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import type { DrawOptions, WriteOptions } from "../call-options.js";
import { readCheckpoint } from "../checkpoint/checkpoint.js";
import { locateCheckpoint } from "../checkpoint/locate.js";
import type { ImageFormat } from "../image.js";
import { JobChecker } from "../jobs/check.js";
import { formatOf, type JobFormat, readRecords } from "../jobs/reader.js";
import { type ResultLine, ResultsFolder, type Shard } from "../jobs/results.js";
import { runBatch } from "../jobs/run.js";
import { parseSeed } from "../seed.js";
import { type Context, note, type OutputFlags, runCommand, tell } from "./context.js";
import { ExitCode, UsageError } from "./exit-codes.js";
import { addFlags, integerFlag, JOB_FLAGS, MODEL_FLAGS } from "./flags.js";
import { type ModelFlags, withModel } from "./load.js";
import { STANDARD, writeJson, writingFailed } from "./output.js";
import { type RecordProgress, startRecords } from "./progress.js";

export interface BatchFlags extends ModelFlags, OutputFlags, DrawOptions {
  out: string;
  inputFormat?: JobFormat;
  format: ImageFormat;
  maxNewTokens?: number;
  concurrency: number;
  shard: Shard;
  retryFailed?: boolean;
  dryRun?: boolean;
}

function shard(text: string): Shard {
  const [, index, count] = /^(\d+)\/(\d+)$/.exec(text) ?? [];
  if (Number(index) >= 1 && Number(index) <= Number(count)) {
    return { index: Number(index) - 1, count: Number(count) };
  }
  throw new InvalidArgumentError("Expected i/n, such as 2/4 for the second of four.");
}

export const concurrency = integerFlag(1, 4096);

export function addBatch(program: Command): void {
  const command = program
    .command("batch <jobs>")
    .description(
      "run the jobs of a file: .jsonl, .csv, or one prompt per line; - reads standard input",
    )
    .requiredOption("-o, --out <folder>", "folder for pictures and results.jsonl; resumed if begun")
    .option("--concurrency <n>", "jobs that run at once", concurrency, 16)
    .addOption(
      new Option("--shard <i/n>", "run only the i-th of n shares of the jobs")
        .argParser(shard)
        .default({ index: 0, count: 1 } satisfies Shard, "1/1"),
    )
    .option("--retry-failed", "retry what failed in an earlier run")
    .option("--dry-run", "check the jobs, their options and images; draw and write nothing");
  addInputFormat(command);
  addFlags(command, ...JOB_FLAGS, "pictureFormat", ...MODEL_FLAGS, "jsonCounts", "quiet")
    .addHelpText("after", HELP)
    .action((jobs: string, flags: BatchFlags) =>
      runCommand(flags, (context) => (flags.dryRun ? dryRun : batch)(jobs, flags, context)),
    );
}

export function addInputFormat(command: Command): Command {
  return command.addOption(
    new Option("--input-format <format>", "format of the jobs (default: by file name)").choices([
      "jsonl",
      "csv",
      "lines",
    ]),
  );
}

const HELP = `
A record has a "prompt", or an "image" with a "question", an "instruction" or nothing (a caption), and may have
an "id" and its own options. Record i without a seed gets --seed + i (default 0 + i).`;

/** Options for records that have none of their own. */
export function recordOptions(flags: DrawOptions & WriteOptions): Record<string, unknown> {
  const { steps, guidance, guidanceSchedule, temperature, order, x0Limit, maxNewTokens } = flags;
  return { steps, guidance, guidanceSchedule, temperature, order, x0Limit, maxNewTokens };
}

/** The records of a file of jobs, or of standard input. */
export async function openJobs(path: string, format: JobFormat | undefined, signal: AbortSignal) {
  if (path === STANDARD) {
    if (process.stdin.isTTY) throw new UsageError("- would read jobs from the terminal");
    const read = (ended = signal) => readRecords(process.stdin, format ?? "jsonl", ended);
    return { images: resolve("."), read };
  }
  const found = await stat(path).catch((error: Error) => {
    throw new UsageError(`cannot read the jobs: ${error.message}`);
  });
  if (!found.isFile())
    throw new UsageError(`expected a file of jobs but ${path} is not a regular file`);
  const known = format ?? formatOf(path);
  const read = (ended = signal) => readRecords(path, known, ended);
  return {
    images: dirname(resolve(path)),
    read,
    /** A second reading, which tells how many there are. */
    count: async () => {
      let count = 0;
      for await (const _ of read()) count++;
      return count;
    },
  };
}

async function batch(path: string, flags: BatchFlags, context: Context): Promise<void> {
  const { signal } = context;
  const jobs = await openJobs(path, flags.inputFormat, signal);
  const counts = { done: 0, failed: 0, doneBefore: 0, failedBefore: 0 };
  let firstFailed: ResultLine | undefined;
  let results = "";
  let started = 0;
  // Other sequences than those that run wait in the engine, ready to join.
  const load = { ...flags, maxSequences: flags.concurrency };
  await withModel(load, signal, async (model) => {
    started = performance.now();
    const folder = await ResultsFolder.open(flags.out, flags.shard).catch(writingFailed(flags.out));
    results = folder.results;
    let progress: RecordProgress | undefined;
    try {
      const total = context.quiet ? undefined : await jobs.count?.();
      progress = startRecords(context, total && shareOf(total, flags.shard));
      await runBatch(model, jobs.read(), folder, {
        shard: flags.shard,
        defaults: { options: recordOptions(flags), seed: parseSeed(flags.seed ?? 0) },
        images: jobs.images,
        format: flags.format,
        concurrency: 2 * flags.concurrency,
        retryFailed: flags.retryFailed ?? false,
        signal,
        onRecord: (outcome, line) => {
          counts[outcome]++;
          firstFailed ??= line;
          progress?.step(outcome);
        },
      }).catch(writingFailed(flags.out));
    } finally {
      progress?.stop();
      await folder.close().catch(writingFailed(flags.out));
    }
  });
  const seconds = (performance.now() - started) / 1000;
  const rate = counts.done > 0 ? `, ${(counts.done / seconds).toFixed(1)} a second` : "";
  const skipped =
    (counts.doneBefore > 0 ? `, ${counts.doneBefore} were done before` : "") +
    (counts.failedBefore > 0 ? `, ${counts.failedBefore} failed before (--retry-failed)` : "");
  note(
    context,
    `${counts.done} done, ${counts.failed} failed${skipped}; ${seconds.toFixed(1)} s${rate}` +
      whyFailed(firstFailed, counts.failed + counts.failedBefore > 0, results),
  );
  if (context.json) await writeJson({ ...counts, seconds: Number(seconds.toFixed(3)) });
  if (counts.failed + counts.failedBefore > 0) process.exitCode = ExitCode.partial;
}

/** What a look into the results would tell first of those that failed, and where they are. */
function whyFailed(first: ResultLine | undefined, some: boolean, results: string): string {
  if (!some) return "";
  if (!first?.error) return `; ${results} says why`;
  const { code, message } = first.error;
  const reason = `${code}: ${message.replace(/\s*\n\s*/g, " | ")}`;
  return `; first failure: record ${first.index}: ${reason} (all are in ${results})`;
}

const shareOf = (total: number, { index, count }: Shard): number =>
  Math.floor((total - index + count - 1) / count);

/** Tells of every record that would fail; the weights are not looked at, and nothing is written. */
async function dryRun(path: string, flags: BatchFlags, context: Context): Promise<void> {
  const { signal, json } = context;
  const jobs = await openJobs(path, flags.inputFormat, signal);
  const checker = new JobChecker(await readCheckpoint(await locateCheckpoint(flags.model), signal));
  const counts = { valid: 0, invalid: 0 };
  const defaults = { options: recordOptions(flags), seed: parseSeed(flags.seed ?? 0) };
  for await (const record of jobs.read()) {
    signal.throwIfAborted();
    if (record.index % flags.shard.count !== flags.shard.index) continue;
    const error = await checker.check(record, { defaults, images: jobs.images, signal });
    counts[error ? "invalid" : "valid"]++;
    if (error) tell(error, json, { record: record.index, line: record.line });
  }
  note(context, `${counts.valid} jobs can be done, ${counts.invalid} records would fail`);
  if (json) await writeJson(counts);
  if (counts.invalid > 0) process.exitCode = ExitCode.partial;
}
