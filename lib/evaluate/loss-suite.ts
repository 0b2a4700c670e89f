/**
 * The suite "loss": what training minimizes, on records that a model was not trained on. The draws of a record
 * follow from the seed and its place in the manifests, so that models are compared on the same noise.
 */
import { resolve } from "node:path";
import { type Checkpoint, readCheckpoint } from "../checkpoint/checkpoint.js";
import { locateCheckpoint } from "../checkpoint/locate.js";
import type { Device } from "../device.js";
import { NumericalError, TrainingDataError, UniFluidError } from "../errors.js";
import type { CellOrder } from "../generation-config.js";
import { defaultThreads } from "../load-options.js";
import type { NativeTrainer, NativeTrainingSequence } from "../native.js";
import { Random } from "../philox.js";
import { systemCode } from "../system-code.js";
import { ManifestSource } from "../train/manifest-source.js";
import { createTrainer } from "../train/native-trainer.js";
import { cacheFolder, Pictures } from "../train/pictures.js";
import { Sequences } from "../train/sequences.js";
import type { SourceRecord } from "../train/source.js";

export interface LossOptions {
  /** Manifests as training takes them. */
  manifests: readonly string[];
  seed: bigint;
  /** Timesteps at which each image token is tried. Default 4. */
  timesteps?: number;
  /** Order of the image tokens. Default: the model's. */
  order?: CellOrder;
  /** Default: "auto". */
  device?: Device;
  threads?: number;
  /** The folder that prepared pictures are kept in. Default: one beside each manifest. */
  cache?: string;
  /** Bytes; default: what the system has free. */
  maxMemory?: number;
  signal?: AbortSignal;
  /** Called after each record. */
  onRecord?: () => void;
}

export interface TextLoss {
  /** Mean cross-entropy of a token, in nats. */
  loss: number;
  /** exp(loss) */
  perplexity: number;
  /** Share of tokens that the model, given those before, held for the likeliest. */
  accuracy: number;
  tokens: number;
}

export interface ImageLoss {
  /** Mean diffusion loss of a token (spec section 6). */
  loss: number;
  tokens: number;
}

export interface LossReport {
  suite: "loss";
  seed: bigint;
  manifests: string[];
  records: number;
  timesteps: number;
  order: CellOrder;
  /** Over all records that are drawings, and over those that are texts. */
  image?: ImageLoss;
  text?: TextLoss;
  byTask: Record<string, { records: number } & (ImageLoss | TextLoss)>;
}

/** Records that are computed together. Their draws depend on it. */
const TOGETHER = 32;
/** Streams of randomness that pick among a record's texts; one for each manifest. */
const STREAM = 3_000_000;

/** Measures a checkpoint directory or shipped model. Throws `TRAINING_DATA` and what loading a model throws. */
export async function evaluateLoss(model: string, options: LossOptions): Promise<LossReport> {
  const { signal } = options;
  const checkpoint = await readCheckpoint(await locateCheckpoint(model), signal);
  const records = await Records.open(checkpoint, options);
  try {
    const order = options.order ?? checkpoint.generation.image.order;
    const timesteps = options.timesteps ?? 4;
    const native = await openTrainer(checkpoint, { ...options, order, timesteps });
    try {
      return {
        suite: "loss",
        seed: options.seed,
        manifests: [...options.manifests],
        records: records.length,
        timesteps,
        order,
        ...(await measure(native, records, timesteps, options)),
      };
    } finally {
      native.dispose();
    }
  } finally {
    await records.close();
  }
}

function openTrainer(
  { spec, directory }: Checkpoint,
  options: LossOptions & { order: CellOrder; timesteps: number },
): Promise<NativeTrainer> {
  const tensors = spec.tensors.filter((t) => !t.name.startsWith("vae."));
  const of = { ...spec, tensors };
  return createTrainer(directory, of, options.device ?? "auto", {
    threads: options.threads ?? defaultThreads(),
    maxMemory: options.maxMemory ?? 0,
    compute: "float32",
    seed: options.seed,
    frozen: [],
    unified: {
      // Without gradients nothing is computed again: only memory is saved.
      recompute: true,
      textWeight: 1,
      batchMultiplier: options.timesteps,
      noiseWeightCap: 1,
      contextNoise: 0,
      order: options.order,
    },
  });
}

/** A record, where its pictures are kept, and its place among all: which names its randomness. */
interface Place {
  record: SourceRecord;
  pictures: Pictures;
  stream: number;
  index: number;
}

/** The records of all manifests, one after another. */
class Records {
  private readonly places: Place[] = [];
  private readonly pictures = new Map<string, Pictures>();
  private readonly sequences: Sequences;

  private constructor(
    checkpoint: Checkpoint,
    private readonly seed: bigint,
  ) {
    this.sequences = new Sequences(checkpoint, { promptDropout: 0 });
  }

  /** Checks what the records say; their pictures are read when they are reached. */
  static async open(checkpoint: Checkpoint, options: LossOptions): Promise<Records> {
    const records = new Records(checkpoint, options.seed);
    try {
      for (const [i, manifest] of options.manifests.entries())
        await records.add(manifest, STREAM + i, checkpoint, options);
    } catch (error) {
      await records.close();
      throw error;
    }
    return records;
  }

  private async add(
    manifest: string,
    stream: number,
    checkpoint: Checkpoint,
    { seed, device, threads, cache, signal }: LossOptions,
  ): Promise<void> {
    const source = await ManifestSource.open(resolve(manifest), { seed, place: 0 });
    // Manifests of one folder share their pictures, and all do where they are kept in one.
    const folder = cacheFolder(source.folder, cache);
    const pictures =
      this.pictures.get(folder) ??
      (await Pictures.open(source.folder, checkpoint, { device, threads, cache }));
    this.pictures.set(folder, pictures);
    let index = 0;
    for await (const record of source.all()) {
      const place = { record, pictures, stream, index: index++ };
      signal?.throwIfAborted();
      try {
        this.sequences.tokensOf(record.example(this.random(place)));
      } catch (error) {
        blame(record, error);
      }
      this.places.push(place);
    }
  }

  private random({ stream, index }: Place): Random {
    return new Random(this.seed, stream, index);
  }

  get length(): number {
    return this.places.length;
  }

  /** The name of a record in messages. */
  name(i: number): string {
    return this.places[i]!.record.name;
  }

  async sequence(i: number): Promise<NativeTrainingSequence> {
    const place = this.places[i]!;
    const random = this.random(place);
    return this.sequences
      .of(place.record.example(random), place.pictures, random)
      .catch((error) => blame(place.record, error));
  }

  async close(): Promise<void> {
    await Promise.all([...this.pictures.values()].map((pictures) => pictures.close()));
  }
}

/** A figure is of all records or of none: a broken one ends the suite. */
function blame({ name }: SourceRecord, error: unknown): never {
  if (!(error instanceof UniFluidError) && systemCode(error) === undefined) throw error;
  throw new TrainingDataError(`${name}: ${(error as Error).message}`, { cause: error });
}

class Sum {
  private loss = 0;
  private right = 0;
  private count = 0;
  records = 0;

  add({ loss, tokens, right }: { loss: number; tokens: number; right: number }): void {
    this.loss += loss * tokens;
    this.right += right;
    this.count += tokens;
  }

  image(timesteps: number): ImageLoss {
    return { loss: this.loss / this.count, tokens: this.count / timesteps };
  }

  text(): TextLoss {
    const loss = this.loss / this.count;
    const accuracy = this.right / this.count;
    return { loss, perplexity: Math.exp(loss), accuracy, tokens: this.count };
  }
}

async function measure(
  native: NativeTrainer,
  records: Records,
  timesteps: number,
  { signal, onRecord }: LossOptions,
): Promise<Pick<LossReport, "image" | "text" | "byTask">> {
  const image = new Sum();
  const text = new Sum();
  const tasks = new Map<string, { sum: Sum; draws: boolean }>();
  const batch = (first: number) => {
    const count = Math.max(0, Math.min(TOGETHER, records.length - first));
    const made = Promise.all(Array.from({ length: count }, (_, k) => records.sequence(first + k)));
    made.catch(() => {}); // told when it is waited for
    return made;
  };
  let next = batch(0);
  for (let first = 0; first < records.length; first += TOGETHER) {
    signal?.throwIfAborted();
    const sequences = await next;
    const step = first / TOGETHER + 1;
    const last = first + sequences.length - 1;
    const between = `, between ${records.name(first)} and ${records.name(last)}`;
    const work = native.evaluate([sequences], { step, ema: false });
    // The next records are read while these are at work.
    next = batch(first + TOGETHER);
    const result = await work.catch((error) => {
      // Of a row of text: the core knows no records.
      if (!(error instanceof NumericalError)) throw error;
      throw new NumericalError(`${error.message}${between}`, { cause: error });
    });
    if (!result.finite) {
      const bad = Object.entries(result.byTask).filter(([, { loss }]) => !Number.isFinite(loss));
      const tasks = bad.map(([task]) => task).join(" and ");
      throw new NumericalError(`the loss of ${tasks} is not finite${between}`);
    }
    for (const { task, targetLatents } of sequences) {
      const known = tasks.get(task) ?? { sum: new Sum(), draws: targetLatents !== undefined };
      known.sum.records++;
      tasks.set(task, known);
    }
    for (const [task, sums] of Object.entries(result.byTask)) {
      const { sum, draws } = tasks.get(task)!;
      sum.add(sums);
      (draws ? image : text).add(sums);
    }
    for (const _ of sequences) onRecord?.();
  }
  const byTask: LossReport["byTask"] = {};
  for (const [task, { sum, draws }] of [...tasks].sort(([a], [b]) => (a < b ? -1 : 1)))
    byTask[task] = { records: sum.records, ...(draws ? sum.image(timesteps) : sum.text()) };
  const any = (draws: boolean) => [...tasks.values()].some((t) => t.draws === draws);
  return {
    ...(any(true) ? { image: image.image(timesteps) } : {}),
    ...(any(false) ? { text: text.text() } : {}),
    byTask,
  };
}
