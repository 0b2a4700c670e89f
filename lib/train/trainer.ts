/** Training runs: batches to the native trainer, metrics, checkpoints and samples to a folder. */
import { appendFile, readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { stringify } from "yaml";
import { InvalidOptionError, TrainingDivergedError } from "../errors.js";
import type { NativeStepResult } from "../native.js";
import { AutoencoderSubject } from "./autoencoder.js";
import {
  isAutoencoderRun,
  learningRateAt,
  parseRunConfig,
  type RunConfig,
  type RunSettings,
} from "./config.js";
import { writeReport } from "./report.js";
import { type Losses, type Metrics, RunFolder, type SampleFigures } from "./run-folder.js";
import type { Subject } from "./subject.js";
import { UnifiedSubject } from "./unified.js";
import { Watch } from "./watch.js";

export interface TrainOptions {
  /** The folder of the run. */
  out: string;
  /** Go on with a run that is there; else a folder that has one is refused. */
  resume?: boolean;
  /** Stops after the step at work, with a checkpoint. */
  signal?: AbortSignal;
  onStep?: (metrics: Metrics, total: number) => void;
  /** Broken records that were skipped, and what else a person should read. */
  onNote?: (message: string) => void;
}

export interface TrainSummary {
  /** The last step done. */
  step: number;
  /** Whether all steps are done. */
  finished: boolean;
  /** The last checkpoint, which loads for inference. */
  checkpoint: string;
}

/** One training run. */
export class Trainer {
  /** The step of the last checkpoint. */
  private saved: number;
  /** Where the sources were after the last step done here. */
  private positions: unknown[] = [];
  private readonly watches = new Map<string, Watch>();

  private constructor(
    private readonly config: RunConfig,
    private readonly options: TrainOptions,
    private readonly folder: RunFolder,
    private readonly subject: Subject,
    private step: number,
    private readonly metrics: Metrics[],
    private readonly figures: SampleFigures[],
  ) {
    this.saved = step;
  }

  /**
   * Opens a run: loads the model, the manifests and, to go on, the last whole checkpoint. `config` as in
   * run.yaml; relative paths in it are resolved against the working directory.
   *
   * Throws `INVALID_CONFIG`, `INVALID_OPTION`, `TRAINING_DATA`, and what loading a model throws.
   */
  static async open(config: RunSettings, options: TrainOptions): Promise<Trainer> {
    const run = parseRunConfig(config, "the run", process.cwd());
    const folder = new RunFolder(resolve(options.out));
    const there = await folder.exists();
    if (there && !options.resume)
      throw new InvalidOptionError(
        `${options.out} already has a run: resume it, or choose another folder`,
      );
    const onNote = options.onNote ?? (() => {});
    const text = stringify(run);
    const changed = there && (await readFile(join(folder.path, "run.yaml"), "utf8")) !== text;
    if (changed) onNote("the settings differ from those that the run was begun with");
    const subject = isAutoencoderRun(run)
      ? await AutoencoderSubject.open(run, onNote)
      : await UnifiedSubject.open(run, onNote);
    try {
      if (!there) await folder.create(text);
      const step = there ? ((await folder.steps()).at(-1) ?? 0) : 0;
      if (step > 0) {
        await folder.restore(step, subject.native, subject.tensors, run.ema > 0);
        await subject.mixture.restore(step, await folder.positions(step), (name) =>
          onNote(`${name} is new or not as it was: it is read from its beginning`),
        );
      }
      if (changed) await folder.changeSettings(step, text);
      const metrics = await folder.keepMetrics(step);
      const figures = await folder.keepFigures(step);
      return new Trainer(run, options, folder, subject, step, metrics, figures);
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
   * Trains to the end, or until the signal aborts: then with a checkpoint, from which the run goes on as if it
   * had not stopped. Throws `TRAINING_DIVERGED` and `TRAINING_DATA`; the last checkpoint stays.
   */
  async run(): Promise<TrainSummary> {
    const { config, options, subject } = this;
    const started = performance.now() - (this.metrics.at(-1)?.seconds ?? 0) * 1000;
    let next = this.step < config.steps ? subject.batches(this.step + 1) : undefined;
    while (this.step < config.steps && !options.signal?.aborted) {
      const step = this.step + 1;
      const begun = performance.now(); // waiting for data is part of a step
      const { batches, positions } = (await next)!;
      const learningRate = learningRateAt(step, config);
      const work = subject.native.step(batches, { step, learningRate });
      // The next batch is made while this one is at work.
      next = step < config.steps ? subject.batches(step + 1) : undefined;
      next?.catch(() => {}); // told when it is waited for
      const result = await work;
      const took = (performance.now() - begun) / 1000;
      const losses = subject.losses(result, took);
      this.judge(step, result, losses);
      this.step = step;
      this.positions = positions;
      const { gradientNorm } = result;
      const seconds = (performance.now() - started) / 1000;
      await this.record({ step, learningRate, gradientNorm, seconds }, losses, took);
      if (step % config.checkpoint.every === 0) await this.save();
      if (config.samples && step % config.samples.every === 0) await this.sample();
    }
    await next?.catch(() => {});
    if (this.saved !== this.step) await this.save();
    else await this.report();
    return {
      step: this.step,
      finished: this.step >= config.steps,
      checkpoint: this.folder.checkpoint(this.step),
    };
  }

  /** What watches a loss, having seen that of the steps before. */
  private watch(name: string): Watch {
    let watch = this.watches.get(name);
    if (!watch) {
      const before = this.metrics.map((m) => this.subject.watched(m)[name] ?? Number.NaN);
      watch = new Watch(name, before);
      this.watches.set(name, watch);
    }
    return watch;
  }

  private judge(step: number, result: NativeStepResult, losses: Losses): void {
    if (!result.finite) {
      const broken = this.subject.broken(result);
      const where =
        broken.length > 0 ? broken.join(", ") : `the gradient's norm is ${result.gradientNorm}`;
      throw new TrainingDivergedError(
        `step ${step}: ${where}; the weights are those of step ${step - 1}`,
      );
    }
    for (const [name, loss] of Object.entries(this.subject.watched(losses)))
      this.watch(name).see(step, loss);
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
      examples: (this.metrics.at(-1)?.examples ?? 0) + perStep,
      learningRate: of.learningRate,
      ...losses,
      gradientNorm: of.gradientNorm,
      examplesPerSecond: perStep / took,
      seconds: of.seconds,
    };
    this.metrics.push(metrics);
    await appendFile(this.folder.metrics, `${JSON.stringify(metrics)}\n`);
    this.options.onStep?.(metrics, this.config.steps);
  }

  private async save(): Promise<void> {
    const { subject, config } = this;
    await this.folder.save(
      this.step,
      config.checkpoint.keep,
      subject.native,
      subject.tensors,
      config.ema > 0,
      this.positions,
      (folder) => subject.writeCheckpoint(folder),
    );
    this.saved = this.step;
    await this.report();
  }

  private async sample(): Promise<void> {
    if (this.saved !== this.step) await this.save();
    const { sheet, figures } = await this.subject.sample(this.folder.checkpoint(this.step));
    const name = `step-${String(this.step).padStart(8, "0")}.png`;
    await sheet.save(join(this.folder.path, "samples", name));
    if (Object.keys(figures).length > 0) {
      const line = { step: this.step, ...figures };
      this.figures.push(line);
      await appendFile(this.folder.figures, `${JSON.stringify(line)}\n`);
    }
    await this.report();
  }

  private report(): Promise<void> {
    return writeReport(this.folder, this.metrics, this.figures);
  }

  /** Frees the model and closes the files. */
  async close(): Promise<void> {
    await this.subject.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
