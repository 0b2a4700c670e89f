/** `unifluid train` and `unifluid prepare`: a run from its run.yaml. */

import { dirname } from "node:path";
import type { Command } from "commander";
import type { Device } from "../device.js";
import type { RunConfig } from "../train/config.js";
import { type Context, note, type OutputFlags, runCommand } from "./context.js";
import { OutputError } from "./exit-codes.js";
import { addFlags, OUTPUT_FLAGS } from "./flags.js";
import { writeJson, writingFailed } from "./output.js";
import { type RecordProgress, startRecords, startTraining } from "./progress.js";

interface TrainFlags extends OutputFlags {
  out: string;
  resume?: boolean;
  device?: Device;
}

export function addTrain(program: Command): void {
  const command = program
    .command("train <config>")
    .description(
      "train a model or an autoencoder from a run.yaml; Ctrl-C stops with a checkpoint to resume from",
    )
    .option("-o, --out <folder>", "folder of the run", "run")
    .option("--resume", "resume from the run's last intact checkpoint")
    .option(
      "--device <device>",
      "training device, overriding the file's: auto, cpu, cuda, cuda:1, ...",
    );
  addFlags(command, ...OUTPUT_FLAGS).action((config: string, flags: TrainFlags) =>
    runCommand(flags, (context) => train(config, flags, context)),
  );
}

export function addPrepare(program: Command): void {
  const command = program
    .command("prepare <config>")
    .description(
      "precompute the latents of a run's pictures; otherwise training does it as it goes",
    );
  addFlags(command, ...OUTPUT_FLAGS).action((config: string, flags: OutputFlags) =>
    runCommand(flags, (context) => prepare(config, context)),
  );
}

const skipped = (records: number) =>
  `${records} broken ${records === 1 ? "record was" : "records were"} skipped`;

async function train(config: string, flags: TrainFlags, context: Context): Promise<void> {
  const { readRunConfig } = await import("../train/config.js");
  const { Trainer } = await import("../train/trainer.js");
  const progress = startTraining(context);
  const run = await readRunConfig(config);
  const settings = flags.device === undefined ? run : { ...run, device: flags.device };
  // The disk of the data may be the one that is full.
  const caches = await cachesOf(run);
  const trainer = await Trainer.open(settings, {
    out: flags.out,
    resume: flags.resume,
    signal: context.signal,
    onStep: progress.step,
    onNote: (message) => {
      progress.clear();
      note(context, message);
    },
  })
    .catch(keepingFailed(caches))
    .catch(writingFailed(flags.out, ...caches));
  try {
    note(context, `${trainer.description}; step ${trainer.done} done`);
    const summary = await trainer
      .run()
      .catch(keepingFailed(caches))
      .catch(writingFailed(flags.out, ...caches));
    progress.stop();
    if (summary.brokenRecords > 0) note(context, skipped(summary.brokenRecords));
    const { step, checkpoint } = summary;
    note(context, checkpoint ? `step ${step}: ${checkpoint}` : "no step was done");
    if (context.json) await writeJson(summary);
    context.signal.throwIfAborted();
  } finally {
    progress.stop();
    await trainer.close();
  }
}

/** The folders in which a run keeps prepared pictures: an autoencoder's keeps none. */
async function cachesOf(run: RunConfig): Promise<string[]> {
  const { isAutoencoderRun } = await import("../train/config.js");
  const { cacheFolder } = await import("../train/pictures.js");
  if (isAutoencoderRun(run)) return [];
  const folders = run.sources.map(({ manifest, shards }) => dirname(manifest ?? shards![0]!));
  return [...new Set(folders.map((folder) => cacheFolder(folder, run.cache)))];
}

/** What is said of a disk that takes no more. */
const FULL = new Set(["ENOSPC", "EDQUOT", "EFBIG", "EROFS"]);

/** Data are only read, but for pictures that are kept: where a full disk ends a run by its data, it is theirs. */
const keepingFailed = (caches: readonly string[]) => (error: Error) => {
  const { code } = (error.cause ?? {}) as NodeJS.ErrnoException;
  const ofData = (error as NodeJS.ErrnoException).code === "TRAINING_DATA";
  if (!ofData || !FULL.has(code ?? "")) throw error;
  throw new OutputError(`cannot write to ${caches.join(" or ")}: ${error.message}`, {
    cause: error,
  });
};

async function prepare(config: string, context: Context): Promise<void> {
  const { isAutoencoderRun, readRunConfig } = await import("../train/config.js");
  const { InvalidOptionError } = await import("../errors.js");
  const { Batches } = await import("../train/batches.js");
  const { readCheckpoint } = await import("../checkpoint/checkpoint.js");
  const { locateCheckpoint } = await import("../checkpoint/locate.js");
  const run = await readRunConfig(config);
  if (isAutoencoderRun(run))
    throw new InvalidOptionError(
      `${config} trains an autoencoder: there are no latents to compute ahead`,
    );
  const checkpoint = await readCheckpoint(await locateCheckpoint(run.model));
  const caches = await cachesOf(run);
  let progress: RecordProgress | undefined;
  const batches = await Batches.open(checkpoint, run, (message) => {
    progress?.clear();
    note(context, message);
  })
    .catch(keepingFailed(caches))
    .catch(writingFailed(...caches));
  let pictures = 0;
  progress = startRecords(context, undefined);
  try {
    pictures = await batches
      .prepare(() => progress?.step("done"), context.signal)
      .catch(keepingFailed(caches))
      .catch(writingFailed(...caches));
  } finally {
    progress.stop();
    await batches.close();
  }
  const brokenRecords = batches.mixture.broken.counts.broken;
  if (brokenRecords > 0) note(context, skipped(brokenRecords));
  note(context, `${pictures} pictures prepared`);
  if (context.json) await writeJson({ pictures, brokenRecords });
}
