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
/**
 * Of what a moment keeps at each step: with 1 it would take nothing in, and be divided by 0. This and epsilon are rounded
 * to float32.
 */
const decay = z
  .number()
  .min(0)
  .lt(1)
  .refine((value) => Math.fround(value) < 1, {
    error: "expected a number that is below 1 in float32",
  });
const epsilon = positive.refine((value) => Math.fround(value) > 0, {
  error: "expected a number that is above 0 in float32",
});
const count = z.number().int().positive();

const pattern = z.string().min(1);

const sourceSchema = z
  .strictObject({
    /** A JSON Lines file beside its images. */
    manifest: pattern.optional(),
    /** WebDataset tar files; names may use {000..011}, {a,b}, * and ?. */
    shards: z
      .union([pattern, z.array(pattern).min(1)])
      .transform((value) => (typeof value === "string" ? [value] : value))
      .optional(),
    /** Examples per step from this source: its weight in the mixture. */
    examples: count,
    /** Records in the shuffle buffer; 1: file order. Default: all of a manifest, 1000 of shards. */
    shuffle: count.optional(),
    /** For shards: what an image's plain text is. */
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
  /** Batches a step is split into, to save memory. */
  accumulation: count.default(1),
  learningRate: positive,
  schedule: z.enum(["constant", "cosine", "decay"]).default("cosine"),
  /** Steps over which the rate rises from 0. */
  warmup: z.number().int().min(0).default(0),
  /** Schedule "decay": the last share of all steps, over which the rate falls to 0. */
  decayShare: share.default(0.2),
  beta1: decay.default(0.9),
  epsilon: epsilon.default(1e-8),
  clipNorm: z.number().min(0).default(1),
  /** Tensors not to train; * matches anything. */
  freeze: z.array(z.string().min(1)).default([]),
  /** Type of the operands of matrix products. */
  compute: z.enum(["float32", "bfloat16"]).default("bfloat16"),
  seed: z.number().int().min(0).default(0),
  threads: count.optional(),
  /** "auto": the first usable GPU with room for the weights, otherwise the CPU. */
  device: z
    .custom<Device>(isDevice, "expected auto, cpu, cuda or cuda:1, cuda:2, ...")
    .default("auto"),
  checkpoint: z.strictObject({ every: count.default(500), keep: count.default(2) }).prefault({}),
  /** Share of broken records, of those seen, beyond which the run stops. */
  brokenShare: share.default(0.01),
};

const unifiedSchema = z.strictObject({
  /** The checkpoint to start from: a directory or an included model's name. */
  model: z.string().min(1),
  ...common,
  beta2: decay.default(0.98),
  weightDecay: z.number().min(0).default(0.02),
  ema: z.number().min(0).lt(1).default(0.998),
  /** The weight of the text loss. */
  lambda: z.number().min(0).default(0.5),
  /** Timesteps at which each image token is trained. */
  diffusionBatchMultiplier: count.default(4),
  /** "ddpm": maximum weight of a timestep's squared error. */
  noiseWeightCap: z.number().min(1).default(1),
  /** Maximum standard deviation of noise added to image tokens that others follow. */
  contextNoise: z.number().min(0).max(10).default(0),
  order: z.enum(ORDERS).default("random"),
  /** How often a drawing's prompt is emptied, for guidance. */
  promptDropout: share.default(0.1),
  recompute: z.boolean().default(false),
  /** Folder for prepared pictures; default: one beside each manifest or first shard. */
  cache: z.string().min(1).optional(),
  samples: sampleSchema.optional(),
});

const reconstructionSchema = z.strictObject({
  every: count,
  /** Pictures on the sheet and in the mean PSNR. */
  pictures: count.max(256).default(8),
  /** Where they come from; default: the first source, whose pictures are trained on. */
  manifest: z.string().min(1).optional(),
});

const autoencoderSchema = z.strictObject({
  /** The directory whose autoencoder is trained, or an included model's name. */
  autoencoder: z.string().min(1),
  ...common,
  beta2: decay.default(0.99),
  weightDecay: z.number().min(0).default(0.01),
  ema: z.number().min(0).lt(1).default(0.995),
  /** Weight of the latents' divergence from the standard normal distribution. */
  klWeight: z.number().min(0).default(1e-3),
  /** Maximum standard deviation of noise on decoded latents, where their spread is 1. */
  latentNoise: z.number().min(0).max(10).default(0),
  /** Side of a picture, in pixels; default: the directory's model's. */
  imageSize: count.optional(),
  /** Pictures on which each checkpoint's latents are measured. */
  latentPictures: count.default(256),
  /** Give each channel of the latents the same mean and spread. */
  equalize: z.boolean().default(true),
  /** Type of weights in checkpoints; bfloat16 takes half the space. */
  dtype: z.enum(["float32", "bfloat16"]).default("float32"),
  samples: reconstructionSchema.optional(),
});

/** Settings of a run, as in run.yaml; omitted ones have defaults. */
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
