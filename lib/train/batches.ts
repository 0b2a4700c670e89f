/** The examples of a step as the native trainer takes them. */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { InvalidRecordError } from "../errors.js";
import type { NativeTrainingSequence } from "../native.js";
import { Random } from "../philox.js";
import { fillTemplate } from "../prompts.js";
import { BrokenRecords } from "./broken-records.js";
import type { UnifiedRunConfig } from "./config.js";
import { dealt, Mixture } from "./mixture.js";
import { Pictures, pathOf } from "./pictures.js";
import type { SourceRecord, TrainingExample } from "./source.js";
import type { StepData } from "./subject.js";

/** Records whose pictures are prepared at once. */
const TOGETHER = 16;

export class Batches {
  private readonly encoded = new Map<string, number[]>();

  private constructor(
    private readonly checkpoint: Checkpoint,
    private readonly config: UnifiedRunConfig,
    readonly mixture: Mixture,
    /** Of each source. */
    private readonly pictures: readonly Pictures[],
  ) {}

  static async open(
    checkpoint: Checkpoint,
    config: UnifiedRunConfig,
    onBroken: (message: string) => void,
  ): Promise<Batches> {
    const mixture = await Mixture.open(config, new BrokenRecords(config.brokenShare, onBroken));
    // Sources of one folder share their pictures.
    const caches = new Map<string, Pictures>();
    try {
      for (const { folder } of mixture.sources)
        if (!caches.has(folder))
          caches.set(folder, await Pictures.open(folder, checkpoint, config.threads));
    } catch (error) {
      for (const pictures of caches.values()) await pictures.close();
      await mixture.close();
      throw error;
    }
    const pictures = mixture.sources.map(({ folder }) => caches.get(folder) as Pictures);
    return new Batches(checkpoint, config, mixture, pictures);
  }

  /** Step `step`, from 1, as `accumulation` batches. */
  async of(step: number): Promise<StepData<NativeTrainingSequence>> {
    const { examples, positions } = await this.mixture.draw(step, async (record, random, place) =>
      this.sequence(record.example(random), this.pictures[place] as Pictures, random),
    );
    return { batches: dealt(examples, this.config.accumulation), positions };
  }

  private ids(text: string): number[] {
    let ids = this.encoded.get(text);
    if (!ids) {
      ids = this.checkpoint.tokenizer!.encode(text);
      // Prompts repeat; what does not should not fill the memory.
      if (this.encoded.size > 100_000) this.encoded.clear();
      this.encoded.set(text, ids);
    }
    return ids;
  }

  private async sequence(
    example: TrainingExample,
    pictures: Pictures,
    random: Random,
  ): Promise<NativeTrainingSequence> {
    const { task } = example;
    const { config, spec } = this.checkpoint;
    const drawing = task === "generate" || task === "edit";
    const text = drawing && random.chance(this.config.promptDropout) ? "" : example.prompt;
    const template = fillTemplate(config!.templates, task, text);
    const sequence: NativeTrainingSequence = {
      task,
      tokens: Int32Array.from([config!.bosToken, ...this.ids(template)]),
    };
    const picture = await pictures.get(example.image);
    if (task === "generate") {
      sequence.targetLatents = picture.latents;
    } else {
      if (!spec.vision)
        throw new InvalidRecordError(`the model reads no images, which ${task} needs`);
      sequence.visionPixels = this.visionPixels(picture.pixels);
    }
    if (task === "edit") {
      if (spec.image?.editSourceLatents) sequence.sourceLatents = picture.latents;
      sequence.targetLatents = (await pictures.get(example.target!)).latents;
    }
    if (example.text !== undefined)
      sequence.targetTokens = Int32Array.from([
        ...this.ids(example.text),
        config!.eosTokens[0] as number,
      ]);
    return sequence;
  }

  /** [3, S, S], normalized as the checkpoint's preprocessor says. */
  private visionPixels(pixels: Uint8Array): Float32Array {
    const { rescaleFactor, mean, std } = this.checkpoint.preprocessor!;
    const area = pixels.length / 3;
    const out = new Float32Array(pixels.length);
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < area; i++)
        out[c * area + i] = ((pixels[i * 3 + c] as number) * rescaleFactor - mean[c]!) / std[c]!;
    return out;
  }

  /** Computes what pictures lack of latents, before training; gives their number. */
  async prepare(onPicture: () => void, signal?: AbortSignal): Promise<number> {
    const done = new Set<string>();
    const random = new Random(0n, 0, 0);
    const prepare = async (record: SourceRecord, pictures: Pictures) => {
      const { image, target } = record.example(random);
      for (const picture of target === undefined ? [image] : [image, target]) {
        await pictures.prepare(picture);
        const path = pathOf(picture);
        if (!done.has(path)) onPicture();
        done.add(path);
      }
    };
    for (const [place, source] of this.mixture.sources.entries()) {
      const records = source.all();
      const work = async () => {
        for await (const record of records) {
          signal?.throwIfAborted();
          await this.mixture.broken.attempt(record.name, () =>
            prepare(record, this.pictures[place] as Pictures),
          );
        }
      };
      await Promise.all(Array.from({ length: TOGETHER }, work));
    }
    return done.size;
  }

  async close(): Promise<void> {
    await this.mixture.close();
    for (const pictures of new Set(this.pictures)) await pictures.close();
  }
}
