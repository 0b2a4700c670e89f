/** The examples of a step as the native trainer takes them. A step's batch is a function of its number. */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { InvalidRecordError, TrainingDataError, UniFluidError } from "../errors.js";
import type { NativeTrainingSequence } from "../native.js";
import { Random } from "../philox.js";
import { fillTemplate } from "../prompts.js";
import type { RunConfig } from "./config.js";
import { Pictures } from "./pictures.js";
import { Source, type TrainingExample } from "./source.js";

/** Records that may be tried in the place of a broken one. */
const SUBSTITUTES = 100;
/** Records seen before a share of broken ones means anything. */
const LEAST_SEEN = 200;

interface OpenSource {
  source: Source;
  pictures: Pictures;
  examples: number;
}

export class Batches {
  private readonly encoded = new Map<string, number[]>();
  /** Broken records by source and index, told once. */
  private readonly broken = new Set<string>();
  private seen = 0;

  private constructor(
    private readonly checkpoint: Checkpoint,
    private readonly config: RunConfig,
    private readonly sources: readonly OpenSource[],
    private readonly onBroken: (message: string) => void,
  ) {}

  static async open(
    checkpoint: Checkpoint,
    config: RunConfig,
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
    for (const open of this.sources)
      for (let k = 0; k < open.examples; k++)
        jobs.push(this.draw(open, (step - 1) * open.examples + k, random(jobs.length)));
    const all = await Promise.all(jobs);
    const parts = Math.min(this.config.accumulation, all.length);
    // Dealt out in turn, so that each batch has some of every source.
    return Array.from({ length: parts }, (_, p) => all.filter((_, i) => i % parts === p));
  }

  private async draw(open: OpenSource, position: number, random: Random) {
    const { source } = open;
    for (let attempt = 0; attempt < Math.min(SUBSTITUTES, source.length); attempt++) {
      const index = source.at(position + attempt);
      const name = `${source.path}: record ${index}`;
      if (this.broken.has(name)) continue;
      if (attempt === 0) this.seen++;
      try {
        return await this.sequence(source.example(index, random), open.pictures, random);
      } catch (error) {
        this.skip(name, error);
      }
    }
    throw new TrainingDataError(`${source.path}: too many broken records one after another`);
  }

  private skip(name: string, error: unknown): void {
    const known =
      error instanceof UniFluidError || typeof (error as { errno?: unknown }).errno === "number";
    if (!known) throw error;
    this.broken.add(name);
    this.onBroken(`${name}: ${(error as Error).message}`);
    const most = this.config.brokenShare * Math.max(this.seen, LEAST_SEEN);
    if (this.broken.size > most)
      throw new TrainingDataError(
        `${this.broken.size} of ${this.seen} records seen are broken, more than brokenShare (${this.config.brokenShare}) allows; the last: ${name}: ${(error as Error).message}`,
      );
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
          this.seen++;
          this.skip(`${source.path}: record ${i}`, error);
        }
      }
    let done = 0;
    const left = [...paths];
    const work = async () => {
      for (let next = left.pop(); next; next = left.pop()) {
        signal?.throwIfAborted();
        const [path, pictures] = next;
        this.seen++;
        await pictures.prepare(path).catch((error) => this.skip(path, error));
        onPicture(++done, paths.size);
      }
    };
    await Promise.all(Array.from({ length: 16 }, work));
  }

  async close(): Promise<void> {
    for (const pictures of new Set(this.sources.map((s) => s.pictures))) await pictures.close();
  }
}
