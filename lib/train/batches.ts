/** The examples of a step as the native trainer takes them. A step's batch is a function of its number. */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { InvalidRecordError } from "../errors.js";
import type { NativeTrainingSequence } from "../native.js";
import { Random } from "../philox.js";
import { fillTemplate } from "../prompts.js";
import { BrokenRecords } from "./broken-records.js";
import type { UnifiedRunConfig } from "./config.js";
import { Pictures } from "./pictures.js";
import { Source, type TrainingExample } from "./source.js";

interface OpenSource {
  source: Source;
  pictures: Pictures;
  examples: number;
}

/** Examples of a step as `parts` batches: dealt out in turn, so that each has some of every source. */
export function dealt<T>(examples: readonly T[], parts: number): T[][] {
  const count = Math.min(parts, examples.length);
  return Array.from({ length: count }, (_, p) => examples.filter((_, i) => i % count === p));
}

export class Batches {
  private readonly encoded = new Map<string, number[]>();
  /** By source and index. */
  private readonly broken: BrokenRecords;

  private constructor(
    private readonly checkpoint: Checkpoint,
    private readonly config: UnifiedRunConfig,
    private readonly sources: readonly OpenSource[],
    onBroken: (message: string) => void,
  ) {
    this.broken = new BrokenRecords(config.brokenShare, onBroken);
  }

  static async open(
    checkpoint: Checkpoint,
    config: UnifiedRunConfig,
    onBroken: (message: string) => void,
  ): Promise<Batches> {
    const caches = new Map<string, Pictures>();
    const sources: OpenSource[] = [];
    for (const [i, { manifest, examples }] of config.sources.entries()) {
      const source = await Source.open(manifest, BigInt(config.seed), i);
      // Manifests of one folder share their pictures.
      const folder = manifest.replace(/[^\\/]*$/, "");
      const pictures =
        caches.get(folder) ?? (await Pictures.open(manifest, checkpoint, config.threads));
      caches.set(folder, pictures);
      sources.push({ source, pictures, examples });
    }
    return new Batches(checkpoint, config, sources, onBroken);
  }

  /** Step `step`, from 1, as `accumulation` batches. */
  async of(step: number): Promise<NativeTrainingSequence[][]> {
    // Streams above those of the sources' orders (`Source.at`).
    const random = (k: number) => new Random(BigInt(this.config.seed), 1_000_000 + k, step);
    const jobs: Promise<NativeTrainingSequence>[] = [];
    for (const { source, pictures, examples } of this.sources)
      for (let k = 0; k < examples; k++) {
        const draws = random(jobs.length);
        jobs.push(
          this.broken.replace(source, (step - 1) * examples + k, async (index) =>
            this.sequence(source.example(index, draws), pictures, draws),
          ),
        );
      }
    return dealt(await Promise.all(jobs), this.config.accumulation);
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

  /** Computes what pictures lack of latents, before training. */
  async prepare(onPicture: (done: number, total: number) => void, signal?: AbortSignal) {
    const paths = new Map<string, Pictures>();
    const random = new Random(0n, 0, 0);
    for (const { source, pictures } of this.sources)
      for (let i = 0; i < source.length; i++) {
        try {
          const { image, target } = source.example(i, random);
          paths.set(image, pictures);
          if (target) paths.set(target, pictures);
        } catch (error) {
          this.broken.count();
          this.broken.skip(`${source.path}: record ${i}`, error);
        }
      }
    let done = 0;
    const left = [...paths];
    const work = async () => {
      for (let next = left.pop(); next; next = left.pop()) {
        signal?.throwIfAborted();
        const [path, pictures] = next;
        this.broken.count();
        await pictures.prepare(path).catch((error) => this.broken.skip(path, error));
        onPicture(++done, paths.size);
      }
    };
    await Promise.all(Array.from({ length: 16 }, work));
  }

  async close(): Promise<void> {
    for (const pictures of new Set(this.sources.map((s) => s.pictures))) await pictures.close();
  }
}
