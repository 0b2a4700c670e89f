/** Training an autoencoder: pictures alone, and reconstructions as samples. */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { orAborted } from "../abort.js";
import { loadAddon } from "../addon.js";
import { type Checkpoint, readCheckpoint } from "../checkpoint/checkpoint.js";
import { bfloat16Bytes, writeSafetensors } from "../checkpoint/safetensors-writer.js";
import { storedName } from "../checkpoint/tensor-names.js";
import { ENCODER_TENSORS, vaeFactor } from "../checkpoint/vae-config.js";
import { contactSheet } from "../contact-sheet.js";
import { decoding } from "../decoding.js";
import type { Device } from "../device.js";
import { InsufficientMemoryError, InvalidConfigError, TrainingDataError } from "../errors.js";
import { isFile } from "../files.js";
import { Image } from "../image.js";
import { decodeImage } from "../image-input.js";
import { vaeTrainingActivations } from "../memory.js";
import { UniFluid } from "../model.js";
import type {
  NativeStepResult,
  NativeTensor,
  NativeTrainer,
  NativeVaeConfig,
  NativeVaeExample,
} from "../native.js";
import { Random } from "../philox.js";
import { resize, toVaePixels } from "../preprocess.js";
import { psnr } from "../psnr.js";
import { writeWhole } from "../write-whole.js";
import { BrokenRecords } from "./broken-records.js";
import { frozenBy } from "./changed-settings.js";
import type { AutoencoderRunConfig, SourceConfig } from "./config.js";
import { equalizeLatents, LatentMeter, type LatentStatistics, latentFactors } from "./latents.js";
import { dealt, largestBatch, Mixture, openSource, SUBSTITUTES } from "./mixture.js";
import { createTrainer } from "./native-trainer.js";
import type { PictureFile } from "./pictures.js";
import { startingCheckpoint } from "./resume.js";
import type { Losses, RunFolder } from "./run-folder.js";
import type { Source, SourceRecord } from "./source.js";
import { commonOptions, type StepData, type Subject } from "./subject.js";
import { matches } from "./wildcards.js";

/** Pictures that are encoded or decoded at a time. */
const AT_ONCE = 16;
/** The stream of randomness of the sheets of samples, and the place of their own manifest among the sources. */
const SHEET_STREAM = 1_000;
/** Square of the distance between the darkest pixel, -1, and the brightest, 1. */
const PEAK_SQUARE = 4;
const WEIGHTS = "diffusion_pytorch_model.safetensors";
/** The tensors in which latents can be equalized. */
const BESIDE_LATENTS = /^vae\.(post_)?quant_conv\./;

export class AutoencoderSubject implements Subject {
  /** Of the last checkpoint's latents. */
  private measured: LatentStatistics | undefined;
  /** Whether latents keep the factors that the run began with, once it is known. */
  private keptFactors: boolean | undefined;

  private constructor(
    private readonly config: AutoencoderRunConfig,
    private readonly folder: RunFolder,
    private readonly checkpoint: Checkpoint,
    /** The autoencoder's configuration, read as the run opens: its directory may be gone later. */
    private readonly fields: object,
    readonly tensors: readonly NativeTensor[],
    readonly frozen: ReadonlySet<string>,
    readonly native: NativeTrainer,
    readonly mixture: Mixture,
    private readonly size: number,
    private readonly onNote: (message: string) => void,
  ) {}

  static async open(
    config: AutoencoderRunConfig,
    folder: RunFolder,
    onNote: (message: string) => void,
  ): Promise<AutoencoderSubject> {
    // A checkpoint of the run has factors of its own, by which the noise of latents would be another.
    const fits = ({ vae }: Checkpoint) => vae !== undefined && config.latentNoise === 0;
    const checkpoint = await startingCheckpoint(config.autoencoder, folder, fits, onNote);
    const { spec } = checkpoint;
    const size = pictureSize(config, checkpoint);
    const path = join(checkpoint.directory, "vae", "config.json");
    const fields: object = JSON.parse(await readFile(path, "utf8"));
    const tensors = spec.tensors.filter((t) => t.name.startsWith("vae."));
    const broken = new BrokenRecords(config.brokenShare, onNote);
    const mixture = await Mixture.open(config, broken);
    // They are read when there is something to show; that there are some is known now. What is broken is told then.
    if (config.samples) await shownOf(config, 1, new BrokenRecords(1, () => {}), decodedOf);
    const pictures = largestBatch(config);
    const common = commonOptions(config, tensors, storedName);
    const native = await createTrainer(
      `training ${checkpoint.directory} on ${pictures} pictures of ${size} x ${size} at a time`,
      { files: spec.files, tensors, vae: spec.vae },
      config.device,
      { ...common, vae: { klWeight: config.klWeight, latentNoise: config.latentNoise } },
      vaeTrainingActivations(spec.vae!, size, pictures),
    );
    const frozen = new Set(common.frozen);
    return new AutoencoderSubject(
      config,
      folder,
      checkpoint,
      fields,
      tensors,
      frozen,
      native,
      mixture,
      size,
      onNote,
    );
  }

  async batches(step: number): Promise<StepData<NativeVaeExample>> {
    const { size } = this;
    const make = async (record: SourceRecord, random: Random, _: number, suspect: boolean) => {
      if (suspect) await expectPictures(record);
      const picture = await pictureOf(record, random, size);
      return { pixels: await toVaePixels(picture, size, size, loadAddon()) };
    };
    const { examples, ...after } = await this.mixture.draw(step, make);
    return { batches: dealt(examples, this.config.accumulation), ...after };
  }

  losses({ vae }: NativeStepResult): Losses {
    const { loss, absolute, square, kl } = vae!;
    return {
      loss,
      absoluteError: absolute,
      squareError: square,
      kl,
      psnr: 10 * Math.log10(PEAK_SQUARE / square),
    };
  }

  watched({ loss }: Losses) {
    return { loss: loss ?? Number.NaN };
  }

  /** Of pixels from -1 to 1 a grey picture has errors of at most 1. The divergence may begin anywhere. */
  readonly scales = { loss: { chance: 2, explosion: 10 } };

  broken({ vae }: NativeStepResult): string[] {
    const { absolute, square, kl } = vae!;
    return Object.entries({ "absolute error": absolute, "square error": square, divergence: kl })
      .filter(([, value]) => !Number.isFinite(value))
      .map(([name, value]) => `the ${name} is ${value}`);
  }

  async check(folder: string): Promise<void> {
    await readCheckpoint(folder);
  }

  /** A directory with the autoencoder alone, whose latents have mean 0 and spread 1. */
  async writeCheckpoint(folder: string, signal: AbortSignal): Promise<void> {
    const { checkpoint, config, tensors, frozen, fields } = this;
    const directory = join(folder, "vae");
    await mkdir(directory);
    const what = config.ema > 0 ? "ema" : "weights";
    const values = new Map(
      tensors.map(({ name }): [string, Float32Array] => [
        storedName(name),
        new Float32Array(Uint8Array.from(this.native.read(name, what, "F32")).buffer),
      ]),
    );
    const half = config.dtype === "bfloat16";
    const write = async (factors: object) => {
      await writeFile(
        join(directory, "config.json"),
        `${JSON.stringify({ ...fields, ...factors }, null, 2)}\n`,
      );
      await writeSafetensors(
        join(directory, WEIGHTS),
        tensors.map(({ name, shape }) => ({
          name: storedName(name),
          dtype: half ? ("BF16" as const) : ("F32" as const),
          shape,
          bytes: () => {
            const floats = values.get(storedName(name)) as Float32Array;
            return half ? bfloat16Bytes(floats) : new Uint8Array(floats.buffer);
          },
        })),
      );
    };
    this.keptFactors ??= await this.keepsFactors();
    if (this.keptFactors) return write({});
    await write({ scaling_factor: 1, shift_factor: 0 });
    // Whoever stops a run may give it seconds, and goes on without the factors. Data that hang are left to themselves.
    const measuring = orAborted(() => this.measureSomewhere(folder, signal), signal);
    const statistics = await measuring.catch(async (error) => {
      const stopped = signal.aborted && error === signal.reason;
      const known = error instanceof TrainingDataError || error instanceof InsufficientMemoryError;
      if (!stopped && !known) throw error;
      // What was learned is not to be lost with the data: the next checkpoint measures again.
      this.measured ??= await folderStatistics(this.folder);
      const instead = this.measured
        ? "it uses the factors of the previous one"
        : "it has no factors";
      const why = stopped ? "the run was stopped" : error.message;
      this.onNote(`the latents of a checkpoint were not measured, ${instead}: ${why}`);
      return this.measured;
    });
    if (!statistics) return;
    if (statistics !== this.measured) {
      this.measured = statistics;
      await writeWhole(this.folder.latents, Buffer.from(`${JSON.stringify(statistics)}\n`));
    }
    const { quantConv, postQuantConv } = checkpoint.spec.vae as NativeVaeConfig;
    const foldable =
      quantConv &&
      postQuantConv &&
      !tensors.some(({ name }) => BESIDE_LATENTS.test(name) && frozen.has(name));
    if (config.equalize && foldable) equalizeLatents(values, statistics);
    await write(latentFactors(statistics));
  }

  /**
   * Whether the half that is frozen stays as it was when the run began. Latents that stay as they were keep their
   * factors: models may have learned them. So do those of a new encoder for a decoder that stays, which models draw
   * for. What was trained before has other latents than those factors are of.
   */
  private async keepsFactors(): Promise<boolean> {
    const { tensors, config, folder } = this;
    const stays = (freeze: readonly string[], encoder: boolean) =>
      tensors.every(
        ({ name }) =>
          ENCODER_TENSORS.test(name) !== encoder ||
          freeze.some((pattern) => matches(storedName(name), pattern)),
      );
    const halves = [true, false].filter((encoder) => stays(config.freeze, encoder));
    if (halves.length === 0) return false;
    const former = (await folder.formerSettings()).filter(({ until }) => until > 0);
    if (halves.some((encoder) => former.every(({ text }) => stays(frozenBy(text), encoder))))
      return true;
    this.onNote(
      `the ${halves[0] ? "encoder" : "decoder"} was trained before it was frozen: latents differ from those of earlier ` +
        "checkpoints; a new run that starts from a checkpoint keeps them",
    );
    return false;
  }

  /** Where the run computes, or on the CPU where training leaves no room there. */
  private measureSomewhere(folder: string, signal: AbortSignal): Promise<LatentStatistics> {
    return this.measure(folder, this.config.device, signal).catch((error) => {
      if (!(error instanceof InsufficientMemoryError)) throw error;
      return this.measure(folder, "cpu", signal);
    });
  }

  /** Of the latents of the first steps' pictures. */
  private async measure(
    folder: string,
    device: Device,
    signal: AbortSignal,
  ): Promise<LatentStatistics> {
    const { threads } = this.config;
    await using model = await UniFluid.load(folder, { device, threads, signal });
    const meter = new LatentMeter((this.checkpoint.spec.vae as NativeVaeConfig).latentChannels);
    const mixture = await Mixture.open(this.config, this.mixture.broken.uncounted());
    try {
      let left = this.config.latentPictures;
      for (let step = 1; left > 0; step++) {
        const { examples } = await mixture.draw(step, async (record, random) => {
          signal.throwIfAborted();
          return pictureOf(record, random, this.size);
        });
        const pictures = examples.slice(0, left);
        left -= pictures.length;
        for (const latents of await inTurn(pictures, (picture) =>
          model.encodeImage(picture, { signal }),
        ))
          meter.add(latents);
      }
    } finally {
      await mixture.close();
    }
    return meter.statistics();
  }

  /** Pairs of a picture and what is left of it, with the mean PSNR of all. */
  async sample(checkpoint: string, signal: AbortSignal) {
    const { config, size, mixture } = this;
    const { pictures: count } = config.samples!;
    const shown = () =>
      shownOf(config, count, mixture.broken.uncounted(), (record, random) =>
        pictureOf(record, random, size),
      );
    const pictures = await orAborted(shown, signal);
    // "auto" takes the CPU where training fills the GPU.
    const { device, threads } = config;
    await using model = await UniFluid.load(checkpoint, { device, threads, signal });
    const pairs = await inTurn(pictures, async (picture) => {
      const latents = await model.encodeImage(picture, { signal });
      const rebuilt = await model.decodeLatents(latents, { width: size, height: size, signal });
      return { picture, rebuilt, ratio: psnr(picture, rebuilt) };
    });
    const sheet = await contactSheet(
      pairs.flatMap(({ picture, rebuilt, ratio }) => [
        { image: picture, label: "source" },
        { image: rebuilt, label: `reconstruction, ${ratio.toFixed(1)} dB` },
      ]),
      { columns: 2 * Math.ceil(Math.sqrt(pairs.length / 2)) },
    );
    const mean = pairs.reduce((sum, { ratio }) => sum + ratio, 0) / pairs.length;
    return { sheet, figures: { psnr: mean } };
  }

  async close(): Promise<void> {
    this.native.dispose();
    await this.mixture.close();
  }
}

/** Of a record with two pictures, one is drawn. */
const decodedOf = (record: SourceRecord, random: Random) => decoded(random.pick(record.pictures()));

const decoded = (file: PictureFile) => decodeImage(typeof file === "string" ? file : file.bytes);

/** Throws where one of a record's pictures cannot be read. */
async function expectPictures(record: SourceRecord): Promise<void> {
  for (const file of record.pictures()) await decoding.run(() => decoded(file));
}

/** At the size of the run. */
async function pictureOf(record: SourceRecord, random: Random, size: number): Promise<Image> {
  return decoding.run(async () => {
    const image = await decodedOf(record, random);
    const { pixels } = await resize(image, size, size, "bicubic", loadAddon());
    return Image.fromPixels(pixels, size, size);
  });
}

/**
 * What `make` makes of the records of a sheet, `count` or all there are: the same each time. Throws `TRAINING_DATA`
 * where there are none.
 */
async function shownOf<T>(
  config: AutoencoderRunConfig,
  count: number,
  broken: BrokenRecords,
  make: (record: SourceRecord, random: Random) => Promise<T>,
): Promise<T[]> {
  const random = new Random(BigInt(config.seed), SHEET_STREAM, 0);
  const source = await openShown(config);
  const pictures: T[] = [];
  const names = new Set<string>();
  let misses = 0;
  try {
    while (pictures.length < count) {
      const record = await source.next();
      if (names.has(record.name)) break; // those were all
      names.add(record.name);
      const had = pictures.length;
      await broken.attempt(record, async () => {
        pictures.push(await make(record, random));
      });
      misses = pictures.length > had ? 0 : misses + 1;
      if (misses > SUBSTITUTES) break; // so, likely, would be the rest, however many they are
    }
  } finally {
    await source.close();
  }
  if (pictures.length === 0)
    throw new TrainingDataError(
      `samples: none of ${names.size} records of ${source.name} has a picture that can be read`,
    );
  return pictures;
}

/** The source of the pictures that sheets show. */
function openShown({ samples, sources, ...config }: AutoencoderRunConfig): Promise<Source> {
  const seed = BigInt(config.seed);
  return samples?.manifest
    ? openSource({ manifest: samples.manifest }, { seed, place: SHEET_STREAM })
    : openSource(sources[0] as SourceConfig, { seed, place: 0 });
}

/** The side of a run's pictures. */
function pictureSize({ autoencoder, imageSize }: AutoencoderRunConfig, checkpoint: Checkpoint) {
  const { vae } = checkpoint.spec;
  if (!vae)
    throw new InvalidConfigError(
      `expected a directory with an autoencoder under vae/ for autoencoder but found none in ${autoencoder}`,
    );
  const size = imageSize ?? checkpoint.config?.image?.imageSize;
  if (size === undefined)
    throw new InvalidConfigError(
      `expected the side of the pictures for imageSize, since ${autoencoder} does not have one`,
    );
  const factor = vaeFactor(vae);
  if (size % factor !== 0)
    throw new InvalidConfigError(
      `expected a multiple of ${factor} for imageSize but received ${size}`,
    );
  return size;
}

/** `make` of each item, some at a time. */
async function inTurn<T, R>(items: readonly T[], make: (item: T) => Promise<R>): Promise<R[]> {
  const out: R[] = [];
  for (let i = 0; i < items.length; i += AT_ONCE)
    out.push(...(await Promise.all(items.slice(i, i + AT_ONCE).map(make))));
  return out;
}

/** Of the last checkpoint of an earlier process that measured its latents; undefined: there is none. */
async function folderStatistics({ latents }: RunFolder): Promise<LatentStatistics | undefined> {
  if (!(await isFile(latents))) return undefined;
  return JSON.parse(await readFile(latents, "utf8"));
}
