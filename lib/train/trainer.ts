/** Training runs: batches to the native trainer, metrics, checkpoints and samples to a folder. */
import { existsSync } from "node:fs";
import { appendFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { setTimeout } from "node:timers/promises";
import { stringify } from "yaml";
import { onAbort, orAborted } from "../abort.js";
import {
  DisposedError,
  InsufficientMemoryError,
  InvalidOptionError,
  TrainingDataError,
  TrainingDivergedError,
} from "../errors.js";
import { makeFolder } from "../files.js";
import type { NativeStepResult } from "../native.js";
import {
  booleanOption,
  callbackOption,
  invalidOption,
  optionsObject,
  signalOption,
  stringOption,
} from "../options.js";
import { systemCode } from "../system-code.js";
import { AutoencoderSubject } from "./autoencoder.js";
import type { RecordCounts } from "./broken-records.js";
import { changedSettings, changesLosses } from "./changed-settings.js";
import {
  isAutoencoderRun,
  learningRateAt,
  parseRunConfig,
  type RunConfig,
  type RunSettings,
} from "./config.js";
import { History } from "./history.js";
import { ReportPace, writeReport } from "./report.js";
import { type Restored, restoreLast } from "./resume.js";
import {
  type Losses,
  type Metrics,
  RunFolder,
  type SampleFigures,
  stepName,
} from "./run-folder.js";
import type { Subject } from "./subject.js";
import { UnifiedSubject } from "./unified.js";
import { Watches } from "./watch.js";

export interface TrainOptions {
  /** The run's folder. */
  out: string;
  /** Continue the run in the folder, or begin one if there is none; without it, a folder with a run is refused. */
  resume?: boolean;
  /** Stops after the current step, with a checkpoint. */
  signal?: AbortSignal;
  onStep?: (metrics: Metrics, total: number) => void;
  /** Called with messages for people, such as skipped broken records. */
  onNote?: (message: string) => void;
}

export interface TrainSummary {
  /** The last step done. */
  step: number;
  /** Whether all steps are done. */
  finished: boolean;
  /** The last checkpoint, which loads for inference; absent if the run stopped before its first step. */
  checkpoint?: string;
  /** Distinct records of the run found broken, and skipped. */
  brokenRecords: number;
}

/** How long a trainer that is closed waits for data that are being read, in milliseconds: they may never come. */
const PATIENCE = 5_000;

/** One training run. */
export class Trainer {
  private step: number;
  /** The step of the last checkpoint. */
  private saved: number;
  /** Whether there may be a checkpoint more than are to be kept, until the last is known to be good. */
  private crowded = true;
  /** Checkpoints of which was told that they cannot be removed. */
  private readonly unremoved = new Set<string>();
  /** Where the sources were after the last step done, and what they had given. */
  private positions: unknown[] | undefined;
  private records: RecordCounts;
  private readonly pace = new ReportPace();
  /** Aborts as the run is to stop: by its signal, or as the trainer is closed. */
  private readonly stopping = new AbortController();
  private readonly closing = new AbortController();
  /** Leaves the signal, which may outlive the trainer. */
  private readonly unlisten: () => void = () => {};
  /** The data of the next step. */
  private next: ReturnType<Subject["batches"]> | undefined;
  /** The call of `run` that is at work. */
  private running: Promise<TrainSummary> | undefined;
  private closed: Promise<void> | undefined;

  private constructor(
    private readonly config: RunConfig,
    private readonly options: TrainOptions,
    private readonly folder: RunFolder,
    private readonly subject: Subject,
    restored: Restored | undefined,
    private readonly history: History,
    private readonly figures: SampleFigures[],
    private readonly watches: Watches,
    /** The step of a checkpoint of which is known that it was good; 0: of none. */
    private readonly good: number,
  ) {
    this.step = restored?.step ?? 0;
    this.saved = this.step;
    this.positions = restored?.data.positions;
    this.records = subject.mixture.broken.counts;
    const { signal } = options;
    if (signal?.aborted) this.stopping.abort(signal.reason);
    else if (signal) this.unlisten = onAbort(signal, () => this.stopping.abort(signal.reason));
  }

  /**
   * Opens a run: loads the model, the manifests and, to resume, the last intact checkpoint; damaged ones after it are
   * reported to `onNote` and renamed. `config` is as in run.yaml; relative paths start from the working directory.
   *
   * Throws `INVALID_CONFIG`, `INVALID_OPTION`, `TRAINING_DATA`, `OUTPUT_LOCKED` if another trainer has the folder,
   * what loading a model throws and, if all checkpoints are damaged, the error of the last.
   */
  static async open(config: RunSettings, options: TrainOptions): Promise<Trainer> {
    const given = parseOptions(options);
    const run = parseRunConfig(config, "the run", process.cwd());
    const folder = await RunFolder.open(resolve(given.out));
    try {
      return await Trainer.openIn(folder, run, given);
    } catch (error) {
      await folder.abandon();
      throw error;
    }
  }

  private static async openIn(
    folder: RunFolder,
    run: RunConfig,
    options: TrainOptions,
  ): Promise<Trainer> {
    const { out, resume, onNote = () => {} } = options;
    const begun = await folder.begun();
    if (begun && !resume)
      throw new InvalidOptionError(`${out} already has a run: resume it, or choose another folder`);
    // A run's own, of which no step was done, may be replaced; comments of a person may not.
    if (!begun && (await folder.hasForeignSettings()))
      throw new InvalidOptionError(
        `${folder.settings} was not written by a run and would be overwritten: move it, or choose another folder`,
      );
    const before = begun ? await folder.readSettings() : undefined;
    const changed = before === undefined ? [] : changedSettings(before, run);
    if (changed.length > 0)
      onNote(`the settings differ from those the run started with: ${changed.join(", ")}`);
    const subject = isAutoencoderRun(run)
      ? await AutoencoderSubject.open(run, folder, onNote)
      : await UnifiedSubject.open(run, folder, onNote);
    try {
      const text = stringify(run);
      if (before === undefined) await folder.create(text);
      const { mixture } = subject;
      const restored = await restoreLast(folder, subject, run.ema > 0, onNote);
      const step = restored?.step ?? 0;
      if (restored) {
        await mixture.restore(step, restored.data.positions, (name) =>
          onNote(`${name} is new or has changed: it is read from its beginning`),
        );
        mixture.broken.restore(restored.data.records, (kept) => mixture.countedAs(kept));
      } else if (resume) {
        onNote(
          begun
            ? `${out} has no checkpoint to resume from: the run starts over`
            : `there is no run in ${out} to resume: a new one starts`,
        );
      }
      if (begun) await folder.goOnWith(step, text, changed.length > 0);
      const changes = await lossChanges(folder, run);
      const [past, ahead] = [new Past(subject, changes), new Past(subject, changes)];
      const history = new History();
      const next = await folder.keepMetrics(step, (line) => {
        history.add(line);
        past.follow(line);
        ahead.follow(line);
      });
      // Of a run that came further the step after tells of the checkpoint. Losses of something else do not: then it is
      // as good as the losses before.
      if (next) ahead.follow(next);
      const told = next !== undefined || changes.at(-1) === step;
      const good = told && ahead.end().high.length === 0 ? step : 0;
      const figures = await folder.keepFigures(step);
      await folder.keepSheets(step);
      const watches = past.end();
      return new Trainer(run, options, folder, subject, restored, history, figures, watches, good);
    } catch (error) {
      await subject.close();
      throw error;
    }
  }

  /** One line: device, instruction set, threads. */
  get description(): string {
    return this.subject.native.description();
  }

  /** Steps done so far. */
  get done(): number {
    return this.step;
  }

  /**
   * Trains to the end, or until the signal aborts; then it saves a checkpoint, from which the run resumes as if it had
   * not stopped. Throws `TRAINING_DIVERGED`, keeping the last checkpoint that a later step found good and setting
   * later ones aside; `TRAINING_DATA` and `INSUFFICIENT_MEMORY`, with a checkpoint of what was done; and `DISPOSED` if
   * the trainer is closed.
   */
  run(): Promise<TrainSummary> {
    this.running ??= this.train().finally(() => {
      this.running = undefined;
    });
    return this.running;
  }

  private async train(): Promise<TrainSummary> {
    this.throwIfClosed();
    const { config, subject } = this;
    const stop = this.stopping.signal;
    await this.sampleLeft();
    const started = performance.now() - (this.history.last?.seconds ?? 0) * 1000;
    this.prepare(this.step + 1);
    while (this.step < config.steps && !stop.aborted) {
      const step = this.step + 1;
      const begun = performance.now(); // waiting for data is part of a step
      const data = await this.orSaved(this.unlessStopped(this.next!));
      if (!data) break;
      const { batches, positions, records } = data;
      const learningRate = learningRateAt(step, config);
      const work = subject.native.step(batches, { step, learningRate });
      // The next batch is made while this one is at work.
      this.prepare(step + 1);
      const result = await this.orSaved(work, beforeUpdate);
      const took = (performance.now() - begun) / 1000;
      const losses = subject.losses(result, took);
      try {
        this.judge(step, result, losses);
      } catch (error) {
        throw error instanceof TrainingDivergedError ? await this.diverged(error) : error;
      }
      this.step = step;
      this.positions = positions;
      this.records = records;
      const { gradientNorm } = result;
      const seconds = (performance.now() - started) / 1000;
      await this.record({ step, learningRate, gradientNorm, seconds }, losses, took);
      if (this.crowded && this.unjudged === step) await this.prune();
      if (step % config.checkpoint.every === 0) await this.save();
      if (config.samples && step % config.samples.every === 0) await this.sample();
      if (this.pace.due(performance.now())) await this.report();
    }
    this.throwIfClosed();
    if (this.saved !== this.step) await this.save();
    else await this.report();
    this.tellHigh();
    return {
      step: this.step,
      finished: this.step >= config.steps,
      ...(this.step > 0 && { checkpoint: this.folder.checkpoint(this.step) }),
      brokenRecords: this.records.broken,
    };
  }

  /** Begins to make the data of a step, if it is to come. */
  private prepare(step: number): void {
    this.next = undefined;
    if (step > this.config.steps || this.stopping.signal.aborted) return;
    this.next = this.subject.batches(step);
    this.next.catch(() => {}); // told when it is waited for
  }

  /** Undefined as soon as the run is to stop: the data may take long, and progress is to be saved. */
  private async unlessStopped<T>(data: Promise<T>): Promise<T | undefined> {
    const stop = this.stopping.signal;
    try {
      const made = await orAborted(() => data, stop);
      return stop.aborted ? undefined : made;
    } catch (error) {
      if (stop.aborted && error === stop.reason) return undefined;
      throw error;
    }
  }

  /**
   * The data of a step, or its work. Where they end the run, what was done is saved before the error is told, if the
   * error left it whole.
   */
  private async orSaved<T>(
    part: Promise<T>,
    whole: (error: unknown) => boolean = () => true,
  ): Promise<T> {
    try {
      return await part;
    } catch (error) {
      if (this.saved !== this.step && whole(error)) await this.saveForSure();
      this.tellHigh();
      throw error;
    }
  }

  /** Another error is under way: one of saving is only a note beside it. */
  private async saveForSure(): Promise<void> {
    const before = this.saved;
    try {
      await this.save();
      this.options.onNote?.(`step ${this.step} is saved: ${this.folder.checkpoint(this.step)}`);
    } catch (error) {
      const reason = (error as Error).message;
      this.options.onNote?.(`progress since step ${before} could not be saved: ${reason}`);
    }
  }

  /**
   * The first step whose weights no later step has found good: a step's losses are of the weights of the step before,
   * and while losses are high, all since then is in doubt.
   */
  private get unjudged(): number {
    const high = this.watches.high.map(({ since }) => since);
    return Math.max(this.good + 1, Math.min(this.step + 1, ...high) - 1);
  }

  /** Sets aside what is not good any more; gives the error with what is left. */
  private async diverged(error: TrainingDivergedError): Promise<TrainingDivergedError> {
    const { left, renamed } = await this.folder.setAside(this.unjudged, "diverged");
    await this.report();
    return new TrainingDivergedError(`${error.message}; ${this.afterDivergence(left, renamed)}`, {
      cause: error,
    });
  }

  private afterDivergence(left: number | undefined, renamed: number): string {
    if (left !== undefined) return `the last good checkpoint is ${this.folder.checkpoint(left)}`;
    if (renamed > 0)
      return "no checkpoint is known to be good: those there were are named .diverged now, and a resumed run begins anew";
    if (this.step > 0) return "there is no checkpoint yet: a resumed run begins anew";
    // Nothing was learned yet.
    const { config } = this;
    const model = isAutoencoderRun(config) ? config.autoencoder : config.model;
    return `that is of the model that the run begins with: \`unifluid info ${model} --check\` tells whether its weights are finite`;
  }

  /** A run may end before it is known whether its last losses are an explosion. */
  private tellHigh(): void {
    for (const { name, since } of this.watches.high)
      this.options.onNote?.(
        `the ${name} has been high since step ${since}: checkpoints of step ${since - 1} and later may be bad`,
      );
  }

  private judge(step: number, result: NativeStepResult, losses: Losses): void {
    if (!result.finite) {
      const broken = this.subject.broken(result);
      const where =
        broken.length > 0 ? broken.join(", ") : `the gradient's norm is ${result.gradientNorm}`;
      throw new TrainingDivergedError(`step ${step}: ${where}`);
    }
    this.watches.see(step, this.subject.watched(losses));
  }

  private async record(
    of: Pick<Metrics, "step" | "learningRate" | "gradientNorm" | "seconds">,
    losses: Losses,
    took: number,
  ): Promise<void> {
    const perStep = this.config.sources.reduce((sum, s) => sum + s.examples, 0);
    const metrics: Metrics = {
      step: of.step,
      // A run may go on with more or fewer a step than it began with.
      examples: (this.history.last?.examples ?? 0) + perStep,
      learningRate: of.learningRate,
      ...losses,
      gradientNorm: of.gradientNorm,
      examplesPerSecond: perStep / took,
      seconds: of.seconds,
      brokenRecords: this.records.broken,
    };
    this.history.add(metrics);
    await appendFile(this.folder.metrics, `${JSON.stringify(metrics)}\n`);
    this.options.onStep?.(metrics, this.config.steps);
  }

  private async save(): Promise<void> {
    const { subject, config, positions } = this;
    // The last checkpoint is the one that is used: nothing is left out of it, unless the trainer is closed.
    const { signal } = this.step < config.steps ? this.stopping : this.closing;
    await this.folder.save(
      this.step,
      subject,
      config.ema > 0,
      { positions, records: subject.mixture.broken.stateAt(this.records) },
      (folder) => subject.writeCheckpoint(folder, signal),
    );
    this.saved = this.step;
    await this.prune();
    this.crowded = true;
    await this.report();
  }

  private async prune(): Promise<void> {
    const left = await this.folder.prune(this.config.checkpoint.keep, this.unjudged);
    // They take room, and are no reason to end a run.
    for (const { path, error } of left) {
      if (this.unremoved.has(path)) continue;
      this.unremoved.add(path);
      this.options.onNote?.(`an old checkpoint could not be removed: ${error.message}`);
    }
    this.crowded = false;
  }

  private get sheet(): string {
    return join(this.folder.samples, `${stepName(this.step)}.png`);
  }

  /** The sheet that the run was to make where it was stopped, or killed, before it was there. */
  private async sampleLeft(): Promise<void> {
    const { samples } = this.config;
    if (!samples || this.step === 0 || this.saved !== this.step || this.stopping.signal.aborted)
      return;
    if (this.step % samples.every === 0 && !existsSync(this.sheet)) await this.sample();
  }

  private async sample(): Promise<void> {
    if (this.saved !== this.step) await this.save();
    const { folder } = this;
    const stop = this.stopping.signal;
    const drawn = await this.subject.sample(folder.checkpoint(this.step), stop).catch((error) => {
      if (stop.aborted && error === stop.reason) return undefined; // whoever stops the run does not wait for them
      // What the system or the data refuse ends a run. Pictures to look at are not worth it.
      if (systemCode(error) !== undefined || error instanceof TrainingDataError) throw error;
      this.options.onNote?.(`the samples of step ${this.step} were not drawn: ${error.message}`);
      return undefined;
    });
    if (!drawn) return;
    const { sheet, figures } = drawn;
    await makeFolder(folder.samples);
    await sheet.save(this.sheet);
    // They may be there already, where only the sheet was missing.
    const told = this.figures.some(({ step }) => step === this.step);
    if (Object.keys(figures).length > 0 && !told) {
      const line = { step: this.step, ...figures };
      this.figures.push(line);
      await appendFile(folder.figures, `${JSON.stringify(line)}\n`);
    }
    await this.report();
  }

  private async report(): Promise<void> {
    const begun = performance.now();
    await writeReport(this.folder, this.history, this.figures);
    this.pace.wrote(begun, performance.now());
  }

  /**
   * Frees the model, closes the files and releases the folder. A run in progress rejects with `DISPOSED` after its
   * step, without a checkpoint; a signal stops it with one.
   */
  close(): Promise<void> {
    this.closed ??= this.shut();
    return this.closed;
  }

  private async shut(): Promise<void> {
    this.stopping.abort(closedError());
    this.closing.abort(closedError());
    this.unlisten();
    await this.running?.catch(() => {}); // told to whoever waits for it
    this.subject.native.dispose(); // whatever becomes of the data
    const patience = new AbortController();
    const { signal } = patience;
    try {
      await Promise.race([
        this.closeSubject(),
        setTimeout(PATIENCE, undefined, { signal }).catch(() => {}),
      ]);
    } finally {
      patience.abort();
      await this.folder.close();
    }
  }

  private async closeSubject(): Promise<void> {
    await this.next?.catch(() => {}); // it reads what is to be closed
    await this.subject.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private throwIfClosed(): void {
    if (this.closed) throw closedError();
  }
}

const closedError = () => new DisposedError("this trainer was closed");

/** Whether a step failed before its update; a device that fails may do so amid it, and so may a defect. */
const beforeUpdate = (error: unknown): boolean =>
  error instanceof InsufficientMemoryError || error instanceof InvalidOptionError;

/** Checked, with a signal of Node's own. */
function parseOptions(options: TrainOptions): TrainOptions {
  const names = ["out", "resume", "signal", "onStep", "onNote"] as const;
  const given = optionsObject(options, names);
  const { out, resume = false, signal, onStep, onNote } = given;
  if (stringOption("out", out) === "") throw invalidOption("the name of a folder", "out", out);
  callbackOption("onStep", onStep);
  callbackOption("onNote", onNote);
  return { ...given, resume: booleanOption("resume", resume), signal: signalOption(signal) };
}

/** The steps after which a run's losses were of something else than before. */
async function lossChanges(folder: RunFolder, run: RunConfig): Promise<number[]> {
  const former = await folder.formerSettings();
  return former
    .filter(({ text }, i) => changesLosses(changedSettings(text, former[i + 1]?.text ?? run)))
    .map(({ until }) => until);
}

/** The losses of steps done, one after another. `changes`: of `lossChanges`. */
class Past {
  private readonly watches: Watches;
  private changed = 0;

  constructor(
    private readonly subject: Subject,
    private readonly changes: readonly number[],
  ) {
    this.watches = new Watches(subject.scales);
  }

  follow(line: Metrics): void {
    const { changes, watches } = this;
    for (; (changes[this.changed] ?? line.step) < line.step; this.changed++) watches.forget();
    watches.follow(line.step, this.subject.watched(line));
  }

  /** Watches that have seen them all. */
  end(): Watches {
    if (this.changed < this.changes.length) this.watches.forget();
    return this.watches;
  }
}
