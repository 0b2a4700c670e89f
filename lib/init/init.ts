/** A fresh checkpoint of given sizes, with parts taken from other checkpoints where asked. */
import { copyFile, mkdir, open, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { parse } from "yaml";
import { type Checkpoint, readCheckpoint } from "../checkpoint/checkpoint.js";
import { checkImageAgainstVae, parseModelConfig } from "../checkpoint/config.js";
import { Fields, isObject } from "../checkpoint/fields.js";
import { locateCheckpoint } from "../checkpoint/locate.js";
import { writeSafetensors } from "../checkpoint/safetensors-writer.js";
import { storedName } from "../checkpoint/tensor-names.js";
import { type ExpectedTensor, modelTensors, vaeTensors } from "../checkpoint/tensor-table.js";
import { parseVaeConfig } from "../checkpoint/vae-config.js";
import { InvalidConfigError, InvalidOptionError, TensorShapeError } from "../errors.js";
import type { NativeModelSpec } from "../native.js";
import { Tokenizer } from "../tokenizer.js";
import { initialize, noiseIsInput } from "./initialize.js";

export interface InitOptions {
  seed: bigint;
  /** A model (a directory or the name of a shipped one) whose tokenizer is taken. */
  tokenizer: string;
  /** Models whose decoder, vision tower with its projector, or autoencoder is taken. */
  text?: string;
  vision?: string;
  vae?: string;
}

/** Names of the tensors that a part is made of. */
const PARTS = {
  text: /^(language_model|lm_head)\b/,
  vision: /^(vision_tower|multi_modal_projector)\b/,
  vae: /^vae\./,
} as const;
type Part = keyof typeof PARTS;

const PROMPTS = {
  generate: "draw {prompt}\n",
  caption: "caption en\n",
  answer: "answer en {question}\n",
  edit: "edit {instruction}\n",
};

/** What `config.json` of a fresh model holds beside what the YAML file says. */
const DEFAULTS = {
  model_type: "unifluid",
  prefix_attention: "bidirectional",
  edit_source_latents: true,
  prompts: PROMPTS,
};

/** `generation_config.json` of a fresh model. */
const GENERATION = {
  image: { steps: 25, guidance: 2, guidance_schedule: "constant", temperature: 1, order: "random" },
  text: { max_new_tokens: 64, temperature: 0 },
};

async function readYaml(path: string): Promise<Record<string, unknown>> {
  let json: unknown;
  try {
    json = parse(await readFile(path, "utf8"));
  } catch (cause) {
    throw new InvalidConfigError(`cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
  if (!isObject(json)) throw new InvalidConfigError(`expected a mapping in ${path}`);
  return json;
}

/** Bytes of the tensors of a part, as float32. */
class Donor {
  private constructor(
    private readonly spec: NativeModelSpec,
    readonly directory: string,
  ) {}

  static async open(model: string): Promise<Donor> {
    const directory = await locateCheckpoint(model);
    return new Donor((await readCheckpoint(directory)).spec, directory);
  }

  has(name: string): boolean {
    return this.spec.tensors.some((t) => t.name === name);
  }

  async read({ name, shape }: ExpectedTensor): Promise<Float32Array> {
    const tensor = this.spec.tensors.find((t) => t.name === name);
    const found = tensor ? `[${tensor.shape.join(", ")}]` : "no such tensor";
    if (!tensor || tensor.shape.join() !== shape.join())
      throw new TensorShapeError(
        `${this.directory}: expected [${shape.join(", ")}] for ${name} but found ${found}`,
      );
    const count = shape.reduce((n, d) => n * d, 1);
    const bytes = new Uint8Array(count * (tensor.dtype === "F32" ? 4 : 2));
    const file = await open(this.spec.files[tensor.file] as string);
    try {
      await file.read(bytes, 0, bytes.length, tensor.offset);
    } finally {
      await file.close();
    }
    if (tensor.dtype === "F32") return new Float32Array(bytes.buffer);
    const halves = new Uint16Array(bytes.buffer);
    if (tensor.dtype === "BF16")
      return new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
    return Float32Array.from(halves, halfToFloat);
  }
}

function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const toBytes = (values: Float32Array) =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

/** Fields that transformers takes as real numbers alone, so that 30 must be written as 30.0. */
const REAL = /"(attn_logit_softcapping|final_logit_softcapping|rope_theta)": -?\d+(?=[,\n])/g;

const json = (value: unknown) =>
  `${JSON.stringify(value, null, 2).replace(REAL, (field) => `${field}.0`)}\n`;

/**
 * Makes a checkpoint directory from `configPath`: the fields of config.json in YAML, and those of the
 * autoencoder's under `vae`; where there is nothing else, a directory with an autoencoder alone. The directory
 * must not exist; it appears when it is complete.
 */
export async function initCheckpoint(
  configPath: string,
  out: string,
  options: InitOptions,
): Promise<Checkpoint> {
  const target = resolve(out);
  if (await stat(target).catch(() => undefined))
    throw new InvalidOptionError(`expected a folder that does not exist yet but ${out} does`);
  const { vae: vaeFields, ...given } = await readYaml(configPath);
  const donors: Partial<Record<Part, Donor>> = {};
  for (const part of Object.keys(PARTS) as Part[]) {
    const model = options[part];
    if (model !== undefined) donors[part] = await Donor.open(model);
  }
  const vaeConfig = donors.vae
    ? JSON.parse(await readFile(join(donors.vae.directory, "vae", "config.json"), "utf8"))
    : vaeFields;
  if (!isObject(vaeConfig))
    throw new InvalidConfigError(`expected a mapping for vae in ${configPath}, or --vae`);
  const vae = parseVaeConfig(
    Fields.of({ _class_name: "AutoencoderKL", ...vaeConfig }, `${configPath}: vae`),
  );
  const alone = Object.keys(given).length === 0 && !donors.text && !donors.vision;
  const config: Record<string, unknown> = { ...DEFAULTS, ...given };
  const parsed = alone ? undefined : parseModelConfig(config, configPath);
  const tokenizerAt = await locateCheckpoint(options.tokenizer);
  if (parsed) await Tokenizer.load(join(tokenizerAt, "tokenizer.json"), parsed.text.vocabSize);
  if (parsed?.image) checkImageAgainstVae(parsed.image, vae, configPath);

  const { seed } = options;
  const head =
    parsed?.image && !parsed.image.flow
      ? noiseIsInput(parsed.image.headWidth, parsed.image.tokenChannels, seed)
      : undefined;
  const special: Record<string, Float32Array | undefined> = {
    "diffusion_head.input_proj.weight": head?.input,
    "diffusion_head.input_proj.bias": head?.bias,
    "diffusion_head.final_layer.linear.weight": head?.output,
  };
  const valuesOf = async (tensor: ExpectedTensor): Promise<Float32Array> => {
    const part = (Object.keys(PARTS) as Part[]).find((p) => PARTS[p].test(tensor.name));
    const donor = part && donors[part];
    return donor ? donor.read(tensor) : (special[tensor.name] ?? initialize(tensor, seed));
  };
  const write = (path: string, tensors: readonly ExpectedTensor[]) =>
    writeSafetensors(
      path,
      tensors
        // An output matrix of its own only where the decoder that is taken has one.
        .filter(({ name, optional }) => !optional || donors.text?.has(name))
        .map((tensor) => ({
          name: storedName(tensor.name),
          dtype: "F32" as const,
          shape: tensor.shape,
          bytes: async () => toBytes(await valuesOf(tensor)),
        })),
    );

  const beside = `${target}.partial`;
  await rm(beside, { recursive: true, force: true });
  await mkdir(join(beside, "vae"), { recursive: true });
  try {
    await write(join(beside, "vae", "diffusion_pytorch_model.safetensors"), vaeTensors(vae));
    await writeFile(
      join(beside, "vae", "config.json"),
      json({ _class_name: "AutoencoderKL", ...vaeConfig }),
    );
    if (parsed) {
      await write(join(beside, "model.safetensors"), modelTensors(parsed));
      await writeFile(join(beside, "config.json"), json(config));
      for (const name of ["tokenizer.json", "tokenizer_config.json"])
        await copyFile(join(tokenizerAt, name), join(beside, name));
      const side = parsed.vision?.imageSize;
      if (side !== undefined)
        await writeFile(join(beside, "preprocessor_config.json"), json(preprocessor(side)));
      await writeFile(join(beside, "generation_config.json"), json(GENERATION));
    }
    // Whatever does not fit shows here, before the directory appears.
    await readCheckpoint(beside);
    await mkdir(dirname(target), { recursive: true });
    await rename(beside, target);
  } catch (error) {
    await rm(beside, { recursive: true, force: true });
    throw error;
  }
  return readCheckpoint(target);
}

/** SigLIP's: pixels to [-1, 1]. */
function preprocessor(side: number) {
  return {
    image_processor_type: "SiglipImageProcessor",
    do_resize: true,
    size: { height: side, width: side },
    resample: 3,
    do_rescale: true,
    rescale_factor: 1 / 255,
    do_normalize: true,
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
    do_convert_rgb: true,
  };
}
