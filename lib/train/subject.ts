/** What a run trains, a whole model or an autoencoder, as the loop of steps sees it. */
import { InvalidOptionError } from "../errors.js";
import type { Image } from "../image.js";
import { defaultThreads } from "../load-options.js";
import type {
  NativeStepResult,
  NativeTensor,
  NativeTrainer,
  NativeTrainerOptions,
  NativeTrainingSequence,
  NativeVaeExample,
} from "../native.js";
import type { RecordCounts } from "./broken-records.js";
import type { RunConfig } from "./config.js";
import type { Mixture } from "./mixture.js";
import type { Losses } from "./run-folder.js";
import type { LossScale } from "./watch.js";
import { matches } from "./wildcards.js";

/** The examples of a step as batches whose gradients are summed, and where the sources and the run are after it. */
export interface StepData<Example> {
  batches: Example[][];
  positions: unknown[];
  records: RecordCounts;
}

export interface Subject {
  readonly native: NativeTrainer;
  /** Those that the trainer has, under their canonical names. */
  readonly tensors: readonly NativeTensor[];
  /** Where the examples come from. */
  readonly mixture: Mixture;
  /** The examples of step `step`, from 1; steps follow one another. Throws `TRAINING_DATA`. */
  batches(step: number): Promise<StepData<NativeTrainingSequence> | StepData<NativeVaeExample>>;
  /** What a line of metrics says of a step. */
  losses(result: NativeStepResult, seconds: number): Losses;
  /** Losses by name: those that explode end the run. NaN where a step has none. */
  watched(losses: Losses): Record<string, number>;
  /** Of each watched loss, by its name. */
  readonly scales: Readonly<Record<string, LossScale>>;
  /** Losses that are not finite, in words. */
  broken(result: NativeStepResult): string[];
  /** Names of those tensors that stay as they are. */
  readonly frozen: ReadonlySet<string>;
  /** Throws what is wrong with a checkpoint that the run wrote, beside the run's own state in it. */
  check(folder: string): Promise<void>;
  /**
   * Writes the weights of now into an empty folder, so that it loads for inference. As `signal` aborts, without what
   * takes long.
   */
  writeCheckpoint(folder: string, signal: AbortSignal): Promise<void>;
  /** Pictures made with the weights of a checkpoint, and figures of them. Rejects as `signal` aborts. */
  sample(
    checkpoint: string,
    signal: AbortSignal,
  ): Promise<{ sheet: Image; figures: Record<string, number> }>;
  close(): Promise<void>;
}

/** What the trainers of both kinds have in common. `nameOf`: how users call a tensor. */
export function commonOptions(
  config: RunConfig,
  tensors: readonly NativeTensor[],
  nameOf: (canonical: string) => string = (name) => name,
): Pick<
  NativeTrainerOptions,
  "threads" | "maxMemory" | "compute" | "seed" | "frozen" | "optimizer"
> {
  const names = tensors.map((t) => t.name);
  const unused = config.freeze.find((p) => !names.some((n) => matches(nameOf(n), p)));
  if (unused !== undefined)
    throw new InvalidOptionError(`freeze: no tensor matches ${JSON.stringify(unused)}`);
  return {
    threads: config.threads ?? defaultThreads(),
    maxMemory: 0,
    compute: config.compute,
    seed: BigInt(config.seed),
    frozen: names.filter((n) => config.freeze.some((p) => matches(nameOf(n), p))),
    optimizer: {
      beta1: config.beta1,
      beta2: config.beta2,
      epsilon: config.epsilon,
      weightDecay: config.weightDecay,
      clipNorm: config.clipNorm,
      emaDecay: config.ema,
    },
  };
}
