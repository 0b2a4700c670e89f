/** The folder of a run: settings, metrics, checkpoints, samples and a report. */
import {
  constants,
  copyFile,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
  stat,
  truncate,
  writeFile,
} from "node:fs/promises";
import { dirname, join } from "node:path";
import { z } from "zod";
import { readFully } from "../checkpoint/read-fully.js";
import { writeSafetensors } from "../checkpoint/safetensors-writer.js";
import { readWeightFiles } from "../checkpoint/shards.js";
import { InvalidCheckpointError } from "../errors.js";
import { isThere, makeFolder } from "../files.js";
import { freeLock, takeLock, thisOwner } from "../folder-lock.js";
import { readJsonLines } from "../json-lines.js";
import type { NativeTensor, NativeTrainerState } from "../native.js";
import { systemCode } from "../system-code.js";
import { HALF_WRITTEN_ENDING, writeWhole } from "../write-whole.js";
import type { RecordsSeen } from "./broken-records.js";
import type { Subject } from "./subject.js";

/** A step's losses in a line of metrics.jsonl. */
export interface Losses {
  /** Of a whole model; null if the step had no such tokens. */
  imageLoss?: number | null;
  textLoss?: number | null;
  byTask?: Record<string, number>;
  /** Decoder rows per second. */
  rowsPerSecond?: number;
  /** Of an autoencoder: what is minimized, and its parts. */
  loss?: number;
  absoluteError?: number;
  squareError?: number;
  /** The latents' divergence from the standard normal distribution, per value, in nats. */
  kl?: number;
  /** In decibels, of the step's pictures. */
  psnr?: number;
}

/** One line of metrics.jsonl. */
export interface Metrics extends Losses {
  step: number;
  examples: number;
  learningRate: number;
  gradientNorm: number;
  examplesPerSecond: number;
  seconds: number;
  /** Distinct broken records so far in the run; absent in lines of earlier versions. */
  brokenRecords?: number;
}

/** One line of samples.jsonl: figures of the pictures of a step. */
export interface SampleFigures {
  step: number;
  [figure: string]: number;
}

const STATES: readonly NativeTrainerState[] = ["weights", "ema", "first", "second", "updates"];
/** What begins anew where a tensor was frozen. */
const OF_UPDATES: readonly NativeTrainerState[] = ["first", "second", "updates"];
const shapeOf = (state: NativeTrainerState, { shape }: NativeTensor) =>
  state === "updates" ? [1] : shape;
/** The state of the optimizer beside a checkpoint's weights. */
const STATE_FILE = "trainer.safetensors";
/** Where each source of the run is. */
const POSITIONS_FILE = "positions.json";
/** How many records the run has seen, and which of them were broken. */
const RECORDS_FILE = "records.json";
/** Of a checkpoint, what is not the model's but of the run that wrote it. */
export const RUN_FILES = [STATE_FILE, POSITIONS_FILE, RECORDS_FILE];
const positionsSchema = z.array(z.unknown());
const recordsSchema: z.ZodType<RecordsSeen> = z.object({
  seen: z.number().int().min(0),
  broken: z.array(z.string()),
});
/** What is of one step is named by it, so that names sort as steps do. */
export const stepName = (step: number) => `step-${String(step).padStart(8, "0")}`;
const SHEET = /^step-(\d+)\.png$/;
const HALF_WRITTEN_SHEET = new RegExp(`^step-\\d+\\.png${HALF_WRITTEN_ENDING}$`);
const FORMER_SETTINGS = /^run-until-step-(\d+)\.yaml$/;

/** Where a run's data are at a checkpoint. */
export interface DataState {
  /** Of each source. Undefined: a version that did not keep it wrote the checkpoint. */
  positions: unknown[] | undefined;
  records: RecordsSeen;
}

/** `absent` where what is to be read is not there; what cannot be read now must not pass for that. */
function unlessAbsent<T>(reading: Promise<T>, absent: T): Promise<T> {
  return reading.catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return absent;
    throw error;
  });
}

/** Waits until a file is on the disk; Windows does so only with one that may be written to. */
async function syncFile(path: string): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** The same of the names in a folder, on systems that can do it. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path).catch(() => undefined);
  await folder?.sync().catch(() => {});
  await folder?.close();
}

/** The same of all that is in a folder: after a crash its name must not stand for files that are not there. */
async function syncAll(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    await (entry.isDirectory() ? syncFolder(path) : syncFile(path));
  }
  await syncFolder(folder);
}

export class RunFolder {
  private constructor(
    readonly path: string,
    /** Whether it was made just now. */
    private readonly made: boolean,
  ) {}

  /**
   * The folder at an absolute path, which is made where it is missing, for this process alone until `close`. Throws
   * `OUTPUT_LOCKED` while another has it.
   */
  static async open(path: string): Promise<RunFolder> {
    const made = !(await isThere(path));
    await makeFolder(path);
    const folder = new RunFolder(path, made);
    await takeLock(folder.lock, thisOwner());
    return folder;
  }

  /** Lets others have it. */
  async close(): Promise<void> {
    await freeLock(this.lock);
  }

  /** The same of a folder in which nothing came about. */
  async abandon(): Promise<void> {
    await this.close();
    if (this.made) await rmdir(this.path).catch(() => {}); // something is in it
  }

  private get lock(): string {
    return join(this.path, ".run.lock");
  }

  get settings(): string {
    return join(this.path, "run.yaml");
  }

  get samples(): string {
    return join(this.path, "samples");
  }

  get metrics(): string {
    return join(this.path, "metrics.jsonl");
  }

  /** What was last measured of an autoencoder's latents. */
  get latents(): string {
    return join(this.path, "latents.json");
  }

  get figures(): string {
    return join(this.path, "samples.jsonl");
  }

  private get checkpoints(): string {
    return join(this.path, "checkpoints");
  }

  checkpoint(step: number): string {
    return join(this.checkpoints, stepName(step));
  }

  /** Fills the folder of a new run. */
  async create(settings: string): Promise<void> {
    await makeFolder(this.checkpoints);
    await makeFolder(this.samples);
    await writeFile(this.settings, settings);
  }

  /**
   * Writes the settings with which the run goes on behind `step`; those before stay under another name. Of several
   * changes at one step only the first replaces settings that steps were done with, and of settings that came into force
   * behind it no step is left. `changed`: whether the settings are others than those in the folder.
   */
  async goOnWith(step: number, settings: string, changed: boolean): Promise<void> {
    const behind = (await this.formerSettings()).filter(({ until }) => until > step);
    const before = this.former(step);
    const [first] = behind;
    if (first && !(await isThere(before))) await rename(this.former(first.until), before);
    for (const { until } of behind) await rm(this.former(until), { force: true });
    if (!changed) return;
    if (!first)
      await copyFile(this.settings, before, constants.COPYFILE_EXCL).catch((error) => {
        if (error.code !== "EEXIST") throw error;
      });
    await writeWhole(this.settings, Buffer.from(settings));
  }

  /** Where settings are that were in force until a step. */
  private former(until: number): string {
    return join(this.path, `run-until-${stepName(until)}.yaml`);
  }

  /** Settings that were replaced, each with the step until which they were in force, the earliest first. */
  async formerSettings(): Promise<{ until: number; text: string }[]> {
    const names = (await readdir(this.path)).filter((name) => FORMER_SETTINGS.test(name)).sort();
    return Promise.all(
      names.map(async (name) => ({
        until: Number(FORMER_SETTINGS.exec(name)?.[1]),
        text: await readFile(join(this.path, name), "utf8"),
      })),
    );
  }

  /** Whether a step was done in it, or a checkpoint written. */
  async begun(): Promise<boolean> {
    const names = await this.checkpointNames();
    if (names.some((name) => /^step-\d+(\.diverged|\.damaged)?$/.test(name))) return true;
    const metrics = await unlessAbsent(stat(this.metrics), undefined);
    return metrics !== undefined && metrics.size > 0;
  }

  /** Its run.yaml, if it has one. */
  async readSettings(): Promise<string | undefined> {
    return unlessAbsent<string | undefined>(readFile(this.settings, "utf8"), undefined);
  }

  /** Whether its run.yaml is a user's own: a run makes the folder of checkpoints first. */
  async hasForeignSettings(): Promise<boolean> {
    if (await isThere(this.checkpoints)) return false;
    return isThere(this.settings);
  }

  private checkpointNames(): Promise<string[]> {
    return unlessAbsent(readdir(this.checkpoints), []);
  }

  /** The folder of the last checkpoint; undefined: there is none. */
  async lastCheckpoint(): Promise<string | undefined> {
    const names = await this.checkpointNames();
    const last = names
      .filter((name) => /^step-\d+$/.test(name))
      .sort()
      .at(-1);
    return last && join(this.checkpoints, last);
  }

  /** Steps that have a whole checkpoint, the latest last. What a kill left half-written is removed. */
  async steps(): Promise<number[]> {
    const names = await this.checkpointNames();
    for (const name of names.filter((n) => n.endsWith(".partial")))
      await rm(join(this.checkpoints, name), { recursive: true });
    return names
      .map((name) => /^step-(\d+)$/.exec(name)?.[1])
      .filter((digits) => digits !== undefined)
      .map(Number)
      .sort((a, b) => a - b);
  }

  /**
   * Writes a checkpoint beside, then renames it. `write` puts what loads for inference into an empty folder; the
   * trainer's state comes beside it.
   */
  async save(
    step: number,
    { native, tensors, frozen }: Pick<Subject, "native" | "tensors" | "frozen">,
    average: boolean,
    data: DataState,
    write: (folder: string) => Promise<void>,
  ): Promise<void> {
    const target = this.checkpoint(step);
    const beside = `${target}.partial`;
    await rm(beside, { recursive: true, force: true });
    await mkdir(beside, { recursive: true });
    try {
      await write(beside);
      const states = STATES.filter((s) => average || s !== "ema");
      await writeSafetensors(
        join(beside, STATE_FILE),
        states.flatMap((state) =>
          tensors
            .filter(({ name }) => state === "weights" || !frozen.has(name))
            .map((tensor) => ({
              name: `${state}.${tensor.name}`,
              dtype: "F32" as const,
              shape: shapeOf(state, tensor),
              bytes: () => native.read(tensor.name, state, "F32"),
            })),
        ),
      );
      await writeFile(join(beside, POSITIONS_FILE), `${JSON.stringify(data.positions)}\n`);
      await writeFile(join(beside, RECORDS_FILE), `${JSON.stringify(data.records)}\n`);
      await syncAll(beside);
      await rm(target, { recursive: true, force: true });
      await rename(beside, target);
      await syncFolder(dirname(target));
    } catch (error) {
      // A full disk, say, is not to stay full.
      await rm(beside, { recursive: true, force: true });
      // Where an open file was written to, the system names none: which disk it was is to be told.
      if (systemCode(error) !== undefined) (error as NodeJS.ErrnoException).path ??= target;
      throw error;
    }
  }

  /**
   * Removes checkpoints but for the latest `keep` and, where none of those is, the latest before step `unjudged`:
   * the last one whose weights a later step has found good. Gives those that cannot be removed, with why.
   */
  async prune(keep: number, unjudged: number): Promise<{ path: string; error: Error }[]> {
    const steps = await this.steps();
    const good = steps.filter((step) => step < unjudged).at(-1);
    const left: { path: string; error: Error }[] = [];
    for (const path of steps.slice(0, -keep).map((step) => this.checkpoint(step)))
      if (good === undefined || path !== this.checkpoint(good))
        await rm(path, { recursive: true, force: true }).catch((error) => {
          left.push({ path, error });
        });
    return left;
  }

  /**
   * Renames the checkpoints of step `from` and later, so that no run goes on from them; gives the last that stays, and
   * how many were renamed.
   */
  async setAside(
    from: number,
    why: "diverged" | "damaged",
  ): Promise<{ left: number | undefined; renamed: number }> {
    const steps = await this.steps();
    const aside = steps.filter((step) => step >= from);
    for (const path of aside.map((step) => this.checkpoint(step))) {
      await rm(`${path}.${why}`, { recursive: true, force: true });
      await rename(path, `${path}.${why}`);
    }
    return { left: steps.filter((step) => step < from).at(-1), renamed: aside.length };
  }

  /**
   * Puts the state of a checkpoint into a subject's trainer. `average`: whether it keeps a moving average, which begins
   * with the weights where the checkpoint has none. Tensors that are frozen now have weights alone, and what was frozen
   * until now begins anew.
   */
  async restore(
    step: number,
    { native, tensors, frozen }: Pick<Subject, "native" | "tensors" | "frozen">,
    average: boolean,
  ): Promise<void> {
    const folder = this.checkpoint(step);
    const { files, tensors: stored } = await readWeightFiles(folder, "trainer");
    const path = files[0] as string;
    const names = new Set(tensors.map((t) => t.name));
    const found = new Map(stored.map((tensor) => [tensor.name, tensor]));
    for (const { name } of stored)
      if (!names.has(name.slice(name.indexOf(".") + 1)))
        throw new InvalidCheckpointError(`${folder}: ${name} is not a tensor of this model`);
    const has = (state: string) => stored.some(({ name }) => name.startsWith(`${state}.`));
    const [kept, counted] = [has("ema"), has("updates")];
    const file = await open(path);
    try {
      for (const state of STATES) {
        if (state === "ema" && !average) continue;
        if (state === "updates" && !counted) continue;
        for (const tensor of tensors) {
          const { name } = tensor;
          if (state !== "weights" && frozen.has(name)) continue;
          const size = 4 * shapeOf(state, tensor).reduce((product, n) => product * n, 1);
          const thawed = counted && !found.has(`updates.${name}`);
          if (thawed && OF_UPDATES.includes(state)) {
            native.write(name, state, new Uint8Array(size));
            continue;
          }
          const from = state === "ema" && (!kept || thawed) ? "weights" : state;
          const source = found.get(`${from}.${name}`);
          if (!source)
            throw new InvalidCheckpointError(`${folder}: ${STATE_FILE} has no ${from}.${name}`);
          if (source.bytes !== size)
            throw new InvalidCheckpointError(`${folder}: ${from}.${name} has another size`);
          const bytes = new Uint8Array(size);
          await readFully(file, bytes, source.offset, path);
          native.write(name, state, bytes);
          // Earlier versions did not count: what has no moments was frozen, or no example used it.
          if (state === "second" && !counted) {
            const updates = Float32Array.of(bytes.some((byte) => byte !== 0) ? step : 0);
            native.write(name, "updates", new Uint8Array(updates.buffer));
          }
        }
      }
    } finally {
      await file.close();
    }
  }

  /** Where the sources were at a checkpoint, and what they had given. Throws `INVALID_CHECKPOINT`. */
  async dataState(step: number): Promise<DataState> {
    const read = async <T>(name: string, schema: z.ZodType<T>): Promise<T | undefined> => {
      const path = join(this.checkpoint(step), name);
      const text = await unlessAbsent<string | undefined>(readFile(path, "utf8"), undefined);
      if (text === undefined) return undefined;
      try {
        return schema.parse(JSON.parse(text));
      } catch (cause) {
        throw new InvalidCheckpointError(`${path} is not what a run writes`, { cause });
      }
    };
    const positions = await read(POSITIONS_FILE, positionsSchema);
    const records = await read(RECORDS_FILE, recordsSchema);
    // Earlier versions wrote neither, or no counts.
    if (records && !positions)
      throw new InvalidCheckpointError(`${this.checkpoint(step)} has no ${POSITIONS_FILE}`);
    return { positions, records: records ?? { seen: 0, broken: [] } };
  }

  /**
   * Calls `see` with each line of metrics up to a step; what a later part of a broken-off run wrote is dropped. Gives
   * what it had of the step after, if it came to it.
   */
  async keepMetrics(step: number, see: (line: Metrics) => void): Promise<Metrics | undefined> {
    let next: Metrics | undefined;
    await keepLines<Metrics>(this.metrics, (line) => {
      if (line.step === step + 1) next = line;
      if (!(line.step <= step)) return false;
      see(line);
      return true;
    });
    return next;
  }

  /** The figures of samples up to a step; later ones are dropped as well. */
  async keepFigures(step: number): Promise<SampleFigures[]> {
    const figures: SampleFigures[] = [];
    await keepLines<SampleFigures>(this.figures, (line) => {
      if (!(line.step <= step)) return false;
      figures.push(line);
      return true;
    });
    return figures;
  }

  /** The same of the sheets of samples. What a kill left half-written is removed. */
  async keepSheets(step: number): Promise<void> {
    for (const name of await unlessAbsent(readdir(this.samples), []))
      if (HALF_WRITTEN_SHEET.test(name) || Number(SHEET.exec(name)?.[1]) > step)
        await rm(join(this.samples, name), { force: true });
  }

  /** Names of the sheets of samples, the first first. */
  async sheets(): Promise<string[]> {
    const names = await unlessAbsent(readdir(this.samples), []);
    return names.filter((name) => SHEET.test(name)).sort();
  }
}

/** Cuts off what is behind the last line of a file that is kept, also what a kill left half-written. */
async function keepLines<T>(path: string, keep: (line: T) => boolean): Promise<void> {
  let kept = 0;
  const reading = readJsonLines(path, (line, end) => {
    if (keep(line as T)) kept = end;
  });
  await unlessAbsent(reading, undefined);
  const size = await unlessAbsent(
    stat(path).then((found) => found.size),
    0,
  );
  if (size > kept) await truncate(path, kept);
}
