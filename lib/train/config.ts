/** `run.yaml`: what a training run is, checked before anything starts. */
import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { parse } from "yaml";
import { z } from "zod";
import { isObject } from "../checkpoint/fields.js";
import { isShippedModel } from "../checkpoint/locate.js";
import { type Device, isDevice } from "../device.js";
import { InvalidConfigError } from "../errors.js";
import { isFolder } from "../files.js";
import { ORDERS } from "../generation-config.js";

const positive = z.number().positive().finite();
const share = z.number().min(0).max(1);
/** Of what a moment keeps at each step: with 1 it would take nothing in, and be divided by 0. */
const decay = z.number().min(0).lt(1);
const count = z.number().int().positive();

const pattern = z.string().min(1);

const sourceSchema = z
  .strictObject({
    /** JSON lines beside their images. */
    manifest: pattern.optional(),
    /** Tar files in the form of WebDataset: names with {000..011}, {a,b}, * and ?. */
    shards: z
      .union([pattern, z.array(pattern).min(1)])
      .transform((value) => (typeof value === "string" ? [value] : value))
      .optional(),
    /** Examples of each step that come from here: the weight in the mixture. */
    examples: count,
    /** Records in the shuffle buffer; 1: in the order in which they lie. Default: all of a manifest, 1000 of shards. */
    shuffle: count.optional(),
    /** Shards: what a plain text beside an image is. */
    task: z.enum(["caption", "generate"]).optional(),
  })
  .refine(({ manifest, shards }) => (manifest === undefined) !== (shards === undefined), {
    error: "expected either manifest or shards",
  })
  .refine(({ manifest, task }) => manifest === undefined || task === undefined, {
    error: "expected no task: records of a manifest have their own",
    path: ["task"],
  });

const sampleSchema = z.strictObject({
  every: count,
  prompts: z.array(z.string().min(1)).min(1).max(100),
  steps: count.optional(),
  guidance: positive.optional(),
  seed: z.number().int().min(0).default(0),
});

/** What every run has. */
const common = {
  sources: z.array(sourceSchema).min(1),
  steps: count,
  /** Batches that a step is split into, to save memory. */
  accumulation: count.default(1),
  learningRate: positive,
  schedule: z.enum(["constant", "cosine", "decay"]).default("cosine"),
  /** Steps over which the rate rises from 0. */
  warmup: z.number().int().min(0).default(0),
  /** Schedule "decay": the share of all steps, at the end, over which the rate falls to 0. */
  decayShare: share.default(0.2),
  beta1: decay.default(0.9),
  epsilon: positive.default(1e-8),
  clipNorm: z.number().min(0).default(1),
  /** Tensors that are not trained; * stands for anything. */
  freeze: z.array(z.string().min(1)).default([]),
  compute: z.enum(["f32", "bf16"]).default("bf16"),
  seed: z.number().int().min(0).default(0),
  threads: count.optional(),
  /** "auto": the first GPU that can be used and has room for the weights, else the CPU. */
  device: z
    .custom<Device>(isDevice, "expected auto, cpu, cuda or cuda:1, cuda:2, ...")
    .default("auto"),
  checkpoint: z.strictObject({ every: count.default(500), keep: count.default(2) }).prefault({}),
  /** Broken records beyond this share of those seen stop the run. */
  brokenShare: share.default(0.01),
};

const unifiedSchema = z.strictObject({
  /** The checkpoint to start from: a directory or the name of a shipped model. */
  model: z.string().min(1),
  ...common,
  beta2: decay.default(0.98),
  weightDecay: z.number().min(0).default(0.02),
  ema: z.number().min(0).lt(1).default(0.998),
  /** The weight of the text loss. */
  lambda: z.number().min(0).default(0.5),
  /** Timesteps at which each image token is trained. */
  diffusionBatchMultiplier: count.default(4),
  /** "ddpm": the largest weight of a timestep's square error. */
  noiseWeightCap: z.number().min(1).default(1),
  /** Standard deviation up to which the image tokens that others follow are read with noise. */
  contextNoise: z.number().min(0).max(10).default(0),
  order: z.enum(ORDERS).default("random"),
  /** How often the prompt of a drawing is emptied, for guidance. */
  promptDropout: share.default(0.1),
  recompute: z.boolean().default(false),
  /** The folder that prepared pictures are kept in; default: one beside each manifest or first shard. */
  cache: z.string().min(1).optional(),
  samples: sampleSchema.optional(),
});

const reconstructionSchema = z.strictObject({
  every: count,
  /** Pictures of the sheet and of the mean PSNR. */
  pictures: count.max(256).default(8),
  /** Where they come from; default: the first source, whose pictures are trained on. */
  manifest: z.string().min(1).optional(),
});

const autoencoderSchema = z.strictObject({
  /** The directory whose autoencoder is trained, or the name of a shipped model. */
  autoencoder: z.string().min(1),
  ...common,
  beta2: decay.default(0.99),
  weightDecay: z.number().min(0).default(0.01),
  ema: z.number().min(0).lt(1).default(0.995),
  /** The weight of the divergence of the latents from the standard normal distribution. */
  klWeight: z.number().min(0).default(1e-3),
  /** Standard deviation up to which latents are decoded with noise, where their spread is 1. */
  latentNoise: z.number().min(0).max(10).default(0),
  /** Pixels across a picture; default: that of the directory's model. */
  imageSize: count.optional(),
  /** Pictures over which each checkpoint's latents are measured. */
  latentPictures: count.default(256),
  /** Give each channel of the latents the same mean and spread. */
  equalize: z.boolean().default(true),
  /** Of the weights in checkpoints; bfloat16 takes half as much room. */
  dtype: z.enum(["float32", "bfloat16"]).default("float32"),
  samples: reconstructionSchema.optional(),
});

/** What a run is given, as in run.yaml: what is left out has its default. */
export type UnifiedRunSettings = z.input<typeof unifiedSchema>;
export type AutoencoderRunSettings = z.input<typeof autoencoderSchema>;
export type RunSettings = UnifiedRunSettings | AutoencoderRunSettings;

export type UnifiedRunConfig = z.infer<typeof unifiedSchema>;
export type AutoencoderRunConfig = z.infer<typeof autoencoderSchema>;
/** The run of a whole model, or of an autoencoder. */
export type RunConfig = UnifiedRunConfig | AutoencoderRunConfig;

export type SourceConfig = RunConfig["sources"][number];

export const isAutoencoderRun = (config: RunConfig): config is AutoencoderRunConfig =>
  "autoencoder" in config;

/**
 * Checks a run's settings; `where` names them in errors. Relative paths are resolved against `folder`, but for the
 * names of shipped models.
 */
export function parseRunConfig(value: unknown, where: string, folder: string): RunConfig {
  const at = (path: string) => resolve(folder, path);
  const directory = (name: string) => (isShippedModel(name) ? name : at(name));
  const sourcesOf = (config: RunConfig) =>
    config.sources.map(({ manifest, shards, ...rest }) => ({
      ...(manifest === undefined ? { shards: shards!.map(at) } : { manifest: at(manifest) }),
      ...rest,
    }));
  if (isObject(value) && "autoencoder" in value) {
    const config = check(autoencoderSchema, value, where);
    const { samples } = config;
    return {
      ...config,
      autoencoder: directory(config.autoencoder),
      sources: sourcesOf(config),
      ...(samples?.manifest && { samples: { ...samples, manifest: at(samples.manifest) } }),
    };
  }
  const config = check(unifiedSchema, value, where);
  return {
    ...config,
    model: directory(config.model),
    sources: sourcesOf(config),
    ...(config.cache !== undefined && { cache: at(config.cache) }),
  };
}

function check<T>(schema: z.ZodType<T>, value: unknown, where: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const problems = result.error.issues.map(
    ({ path, message }) => `${path.join(".") || "the file"}: ${message}`,
  );
  throw new InvalidConfigError(`${where}: ${problems.join("; ")}`);
}

/** The settings in a file, beside which a folder may have the name of a shipped model: then it is meant. */
export async function readRunConfig(path: string): Promise<RunConfig> {
  let value: unknown;
  try {
    value = parse(await readFile(path, "utf8"));
  } catch (cause) {
    throw new InvalidConfigError(`cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
  const folder = dirname(resolve(path));
  const config = parseRunConfig(value, path, folder);
  const beside = (name: string) =>
    isFolder(resolve(folder, name)).then((is) => (is ? resolve(folder, name) : name));
  return isAutoencoderRun(config)
    ? { ...config, autoencoder: await beside(config.autoencoder) }
    : { ...config, model: await beside(config.model) };
}

/** The learning rate of a step, which counts from 1. */
export function learningRateAt(step: number, config: RunConfig): number {
  const { learningRate, warmup, steps, schedule, decayShare } = config;
  const rise = warmup > 0 ? Math.min(1, step / warmup) : 1;
  const left = (steps - step + 1) / steps;
  const fall = {
    constant: 1,
    cosine: 0.5 - 0.5 * Math.cos(Math.PI * Math.min(1, left)),
    decay: decayShare > 0 ? Math.min(1, left / decayShare) : 1,
  }[schedule];
  return learningRate * rise * fall;
}
