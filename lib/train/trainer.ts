/** Training runs: batches to the native trainer, metrics, checkpoints and samples to a folder. */
import { appendFile, readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { stringify } from "yaml";
import { loadAddon } from "../addon.js";
import { type Checkpoint, readCheckpoint } from "../checkpoint/checkpoint.js";
import { locateCheckpoint } from "../checkpoint/locate.js";
import { contactSheet } from "../contact-sheet.js";
import { fromNative, InvalidOptionError, TrainingDivergedError } from "../errors.js";
import { defaultThreads } from "../load-options.js";
import { UniFluid } from "../model.js";
import type { NativeStepResult, NativeTensor, NativeTrainer } from "../native.js";
import { Batches } from "./batches.js";
import { learningRateAt, matches, parseRunConfig, type RunConfig } from "./config.js";
import { writeReport } from "./report.js";
import { type Metrics, RunFolder } from "./run-folder.js";

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

/** A loss so many times its median of the last steps, for so many steps, has exploded. */
const EXPLOSION = 10;
const EXPLODED_STEPS = 5;
const MEDIAN_OF = 100;

/** Watches losses for what no more training will mend. */
class Watch {
  private readonly recent: number[] = [];
  private high = 0;

  constructor(private readonly name: string) {}

  /** Throws `TRAINING_DIVERGED`. */
  see(step: number, loss: number): void {
    if (Number.isNaN(loss)) return; // a step without such tokens
    const sorted = [...this.recent].sort((a, b) => a - b);
    const median = sorted[sorted.length >> 1];
    this.high = median !== undefined && loss > EXPLOSION * median ? this.high + 1 : 0;
    if (this.high >= EXPLODED_STEPS)
      throw new TrainingDivergedError(
        `step ${step}: the ${this.name} exploded: ${loss.toPrecision(4)}, where ${median?.toPrecision(4)} was usual`,
      );
    this.recent.push(loss);
    if (this.recent.length > MEDIAN_OF) this.recent.shift();
  }
}

/** One training run. */
export class Trainer {
  private constructor(
    private readonly config: RunConfig,
    private readonly options: TrainOptions,
    private readonly folder: RunFolder,
    private readonly checkpoint: Checkpoint,
    private readonly tensors: readonly NativeTensor[],
    private readonly native: NativeTrainer,
    private readonly batches: Batches,
    private step: number,
    private readonly metrics: Metrics[],
  ) {}

  /**
   * Opens a run: loads the model, the manifests and, to go on, the last whole checkpoint. `config` as in
   * run.yaml; relative paths in it are resolved against the working directory.
   *
   * Throws `INVALID_CONFIG`, `INVALID_OPTION`, `TRAINING_DATA`, and what loading a model throws.
   */
  static async open(config: unknown, options: TrainOptions): Promise<Trainer> {
    const run = parseRunConfig(config, "the run", process.cwd());
    const folder = new RunFolder(resolve(options.out));
    const there = await folder.exists();
    if (there && !options.resume)
      throw new InvalidOptionError(
        `${options.out} already has a run: resume it, or choose another folder`,
      );
    const checkpoint = await readCheckpoint(await locateCheckpoint(run.model));
    const tensors = checkpoint.spec.tensors.filter((t) => !t.name.startsWith("vae."));
    const frozen = tensors.map((t) => t.name).filter((n) => run.freeze.some((p) => matches(n, p)));
    const unused = run.freeze.find((p) => !tensors.some((t) => matches(t.name, p)));
    if (unused !== undefined)
      throw new InvalidOptionError(`freeze: no tensor fits ${JSON.stringify(unused)}`);
    const text = stringify(run);
    if (there && (await readFile(join(folder.path, "run.yaml"), "utf8")) !== text)
      options.onNote?.("the settings differ from those that the run was begun with");
    const batches = await Batches.open(checkpoint, run, (m) => options.onNote?.(`skipped ${m}`));
    try {
      const native = await loadAddon()
        .createTrainer(checkpoint.spec, {
          threads: run.threads ?? defaultThreads(),
          maxMemory: 0,
          compute: run.compute,
          recompute: run.recompute,
          seed: BigInt(run.seed),
          textWeight: run.lambda,
          batchMultiplier: run.diffusionBatchMultiplier,
          noiseWeightCap: run.noiseWeightCap,
          order: run.order,
          frozen,
          beta1: run.beta1,
          beta2: run.beta2,
          epsilon: run.epsilon,
          weightDecay: run.weightDecay,
          clipNorm: run.clipNorm,
          emaDecay: run.ema,
        })
        .catch((error) => {
          throw fromNative(error);
        });
      if (!there) await folder.create(text);
      const step = there ? ((await folder.steps()).at(-1) ?? 0) : 0;
      if (step > 0) await folder.restore(step, native, tensors);
      const metrics = await folder.keepMetrics(step);
      return new Trainer(run, options, folder, checkpoint, tensors, native, batches, step, metrics);
    } catch (error) {
      await batches.close();
      throw error;
    }
  }

  /** One line: device, instruction set, threads. */
  get description(): string {
    return this.native.description();
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
    const { config, options } = this;
    const watches = { image: new Watch("image loss"), text: new Watch("text loss") };
    const started = performance.now() - (this.metrics.at(-1)?.seconds ?? 0) * 1000;
    let saved = this.step;
    let next = this.step < config.steps ? this.batches.of(this.step + 1) : undefined;
    while (this.step < config.steps && !options.signal?.aborted) {
      const step = this.step + 1;
      const batch = (await next)!;
      const begun = performance.now();
      const learningRate = learningRateAt(step, config);
      const work = this.native.step(batch, { step, learningRate });
      // The next batch is made while this one is at work.
      next = step < config.steps ? this.batches.of(step + 1) : undefined;
      next?.catch(() => {}); // told when it is waited for
      const result = await work.catch((error) => {
        throw fromNative(error);
      });
      this.judge(step, result, watches);
      this.step = step;
      const seconds = (performance.now() - begun) / 1000;
      await this.record(step, result, learningRate, seconds, (performance.now() - started) / 1000);
      if (step % config.checkpoint.every === 0) {
        await this.save();
        saved = step;
      }
      if (config.samples && step % config.samples.every === 0) await this.sample(saved);
    }
    await next?.catch(() => {});
    if (saved !== this.step) await this.save();
    else await writeReport(this.folder, this.metrics);
    return {
      step: this.step,
      finished: this.step >= config.steps,
      checkpoint: this.folder.checkpoint(this.step),
    };
  }

  private judge(step: number, result: NativeStepResult, watches: Record<"image" | "text", Watch>) {
    const { finite, imageLoss, textLoss, byTask } = result;
    if (!finite) {
      const bad = Object.entries(byTask).filter(([, t]) => !Number.isFinite(t.loss));
      const where =
        bad.length > 0
          ? bad.map(([t, { loss }]) => `the loss of ${t} is ${loss}`).join(", ")
          : `the gradient's norm is ${result.gradientNorm}`;
      throw new TrainingDivergedError(
        `step ${step}: ${where}; the weights are those of step ${step - 1}`,
      );
    }
    watches.image.see(step, imageLoss);
    watches.text.see(step, textLoss);
  }

  private async record(
    step: number,
    result: NativeStepResult,
    learningRate: number,
    took: number,
    seconds: number,
  ): Promise<void> {
    const perStep = this.config.sources.reduce((sum, s) => sum + s.examples, 0);
    const orNull = (v: number) => (Number.isFinite(v) ? v : null);
    const metrics: Metrics = {
      step,
      examples: step * perStep,
      learningRate,
      imageLoss: orNull(result.imageLoss),
      textLoss: orNull(result.textLoss),
      byTask: Object.fromEntries(Object.entries(result.byTask).map(([t, v]) => [t, v.loss])),
      gradientNorm: result.gradientNorm,
      rowsPerSecond: result.rows / took,
      examplesPerSecond: perStep / took,
      seconds,
    };
    this.metrics.push(metrics);
    await appendFile(this.folder.metrics, `${JSON.stringify(metrics)}\n`);
    this.options.onStep?.(metrics, this.config.steps);
  }

  private async save(): Promise<void> {
    const { checkpoint, native, tensors, config } = this;
    await this.folder.save(
      this.step,
      config.checkpoint.keep,
      checkpoint,
      native,
      tensors,
      config.ema > 0,
    );
    await writeReport(this.folder, this.metrics);
  }

  /** Pictures of the last checkpoint's weights, drawn as any program would draw them. */
  private async sample(saved: number): Promise<void> {
    const { samples } = this.config;
    if (!samples) return;
    if (saved !== this.step) await this.save();
    await using model = await UniFluid.load(this.folder.checkpoint(this.step), {
      threads: this.config.threads,
    });
    const { prompts, steps, guidance, seed } = samples;
    const images = await Promise.all(
      prompts.map((prompt, i) => model.generate(prompt, { steps, guidance, seed: seed + i })),
    );
    const sheet = await contactSheet(images.map((image, i) => ({ image, label: prompts[i]! })));
    const name = `step-${String(this.step).padStart(8, "0")}.png`;
    await sheet.save(join(this.folder.path, "samples", name));
    await writeReport(this.folder, this.metrics);
  }

  /** Frees the model and closes the files. */
  async close(): Promise<void> {
    this.native.dispose();
    await this.batches.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
