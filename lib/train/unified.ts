/** Training a whole model: sequences of all tasks, drawings as samples. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Checkpoint, readCheckpoint } from "../checkpoint/checkpoint.js";
import { writeSafetensors } from "../checkpoint/safetensors-writer.js";
import { storedName } from "../checkpoint/tensor-names.js";
import { contactSheet } from "../contact-sheet.js";
import { CheckpointNotFoundError, InvalidConfigError } from "../errors.js";
import { imageSettings, mostSteps } from "../generation-config.js";
import { UniFluid } from "../model.js";
import type { NativeStepResult, NativeTensor, NativeTrainer } from "../native.js";
import { checkLength, prefixRows } from "../prefixes.js";
import { requireAbility } from "../tasks.js";
import { Batches } from "./batches.js";
import type { UnifiedRunConfig } from "./config.js";
import { createTrainer } from "./native-trainer.js";
import { startingCheckpoint } from "./resume.js";
import { type Losses, RUN_FILES, type RunFolder } from "./run-folder.js";
import { expectLearner } from "./sequences.js";
import { SideFiles } from "./side-files.js";
import { commonOptions, type Subject } from "./subject.js";

const GENERATION_CONFIG = "generation_config.json";

const orNull = (v: number) => (Number.isFinite(v) ? v : null);

export class UnifiedSubject implements Subject {
  private constructor(
    private readonly config: UnifiedRunConfig,
    private readonly checkpoint: Checkpoint,
    private readonly sideFiles: SideFiles,
    readonly tensors: readonly NativeTensor[],
    readonly frozen: ReadonlySet<string>,
    readonly native: NativeTrainer,
    private readonly data: Batches,
  ) {}

  static async open(
    config: UnifiedRunConfig,
    folder: RunFolder,
    onNote: (message: string) => void,
  ): Promise<UnifiedSubject> {
    const whole = ({ config }: Checkpoint) => config !== undefined;
    const checkpoint = await startingCheckpoint(config.model, folder, whole, onNote);
    expectLearner(checkpoint);
    const sideFiles = await SideFiles.read(checkpoint.directory, RUN_FILES);
    checkSamples(config, checkpoint);
    const tensors = checkpoint.spec.tensors.filter((t) => !t.name.startsWith("vae."));
    const options = {
      ...commonOptions(config, tensors),
      unified: {
        recompute: config.recompute,
        textWeight: config.lambda,
        batchMultiplier: config.diffusionBatchMultiplier,
        noiseWeightCap: config.noiseWeightCap,
        contextNoise: config.contextNoise,
        order: config.order,
      },
    };
    // Its checkpoints have the same autoencoder, and outlive the model that the run began with.
    const data = await Batches.open(checkpoint, config, onNote, () => folder.lastCheckpoint());
    try {
      const { spec, directory } = checkpoint;
      const of = { ...spec, tensors };
      const name = `training ${directory}`;
      const native = await createTrainer(name, of, config.device, options);
      return new UnifiedSubject(
        config,
        checkpoint,
        sideFiles,
        tensors,
        new Set(options.frozen),
        native,
        data,
      );
    } catch (error) {
      await data.close();
      throw error;
    }
  }

  get mixture() {
    return this.data.mixture;
  }

  batches(step: number) {
    return this.data.of(step);
  }

  losses(result: NativeStepResult, seconds: number): Losses {
    const { imageLoss, textLoss, byTask, rows } = result;
    return {
      imageLoss: orNull(imageLoss),
      textLoss: orNull(textLoss),
      byTask: Object.fromEntries(Object.entries(byTask).map(([t, v]) => [t, v.loss])),
      rowsPerSecond: rows / seconds,
    };
  }

  watched({ imageLoss, textLoss }: Losses) {
    return { "image loss": imageLoss ?? Number.NaN, "text loss": textLoss ?? Number.NaN };
  }

  /**
   * Chance, of images whose latents have unit spread, is to predict zero: "flow" is the square of noise less data,
   * "ddpm" that of noise, times a weight of at most the cap. Of texts it is that all tokens are as likely; they
   * cannot rise as far, for capped logits of 30 bound their loss.
   */
  get scales() {
    const { text, image } = this.checkpoint.spec;
    const chance = image?.flow ? 2 : this.config.noiseWeightCap;
    return {
      "image loss": { chance, explosion: 10 },
      "text loss": { chance: Math.log(text!.vocabSize), explosion: 2.5 },
    };
  }

  broken({ byTask }: NativeStepResult): string[] {
    return Object.entries(byTask)
      .filter(([, { loss }]) => !Number.isFinite(loss))
      .map(([task, { loss }]) => `the loss of ${task} is ${loss}`);
  }

  async check(folder: string): Promise<void> {
    const { config, vae } = await readCheckpoint(folder);
    // What is left without them would pass for a checkpoint of another kind.
    if (!config) throw new CheckpointNotFoundError(`${folder} has no config.json`);
    if (!vae && this.checkpoint.vae) throw new CheckpointNotFoundError(`${folder} has no vae`);
  }

  /** In bfloat16; all but the weights as in the checkpoint that the run began with. */
  async writeCheckpoint(folder: string): Promise<void> {
    await this.sideFiles.write(folder);
    if (this.checkpoint.spec.image) await this.writeOrder(folder);
    const what = this.config.ema > 0 ? "ema" : "weights";
    await writeSafetensors(
      join(folder, "model.safetensors"),
      this.tensors.map(({ name, shape }) => ({
        name: storedName(name),
        dtype: "BF16" as const,
        shape,
        bytes: () => this.native.read(name, what, "BF16"),
      })),
    );
  }

  /** Into the settings of drawing: what was trained in an order is drawn in it. */
  private async writeOrder(folder: string): Promise<void> {
    const fields = this.sideFiles.fields(GENERATION_CONFIG) ?? {};
    const image = { ...(fields.image as object | undefined), order: this.config.order };
    const text = JSON.stringify({ ...fields, image }, null, 2);
    await writeFile(join(folder, GENERATION_CONFIG), `${text}\n`);
  }

  /** Drawn as any program would draw them: "auto" takes the CPU where training fills the GPU. */
  async sample(checkpoint: string, signal: AbortSignal) {
    const { device, threads } = this.config;
    const { prompts, steps, guidance, seed } = this.config.samples!;
    await using model = await UniFluid.load(checkpoint, { device, threads, signal });
    const images = await model.generate(prompts, { steps, guidance, seed, signal });
    const sheet = await contactSheet(images.map((image, i) => ({ image, label: prompts[i]! })));
    return { sheet, figures: {} };
  }

  async close(): Promise<void> {
    this.native.dispose();
    await this.data.close();
  }
}

/** Throws where what is to be drawn cannot be: not when the first of it is due, which may be hours later. */
function checkSamples({ samples }: UnifiedRunConfig, checkpoint: Checkpoint): void {
  if (!samples) return;
  named("samples", () => requireAbility(checkpoint, "generate"));
  const image = checkpoint.spec.image!;
  const { steps, guidance } = samples;
  const { generation } = checkpoint;
  named("samples", () => imageSettings(generation.image, { steps, guidance }, mostSteps(image)));
  for (const [i, prompt] of samples.prompts.entries())
    named(`samples.prompts.${i}`, () =>
      checkLength(checkpoint, prefixRows(checkpoint, "generate", prompt), image.grid ** 2),
    );
}

function named(setting: string, check: () => unknown): void {
  try {
    check();
  } catch (cause) {
    throw new InvalidConfigError(`${setting}: ${(cause as Error).message}`, { cause });
  }
}
