/** A fresh checkpoint of given sizes, with parts taken from other checkpoints where asked. */
import { copyFile, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parse } from "yaml";
import { type Checkpoint, readCheckpoint } from "../checkpoint/checkpoint.js";
import { checkImageAgainstVae, type ModelConfig, parseModelConfig } from "../checkpoint/config.js";
import { Fields, isObject, show } from "../checkpoint/fields.js";
import { locateCheckpoint } from "../checkpoint/locate.js";
import { writeSafetensors } from "../checkpoint/safetensors-writer.js";
import { storedName } from "../checkpoint/tensor-names.js";
import { type ExpectedTensor, modelTensors, vaeTensors } from "../checkpoint/tensor-table.js";
import { parseVaeConfig } from "../checkpoint/vae-config.js";
import { InvalidConfigError } from "../errors.js";
import { isFile, makeFolder } from "../files.js";
import { expectNoFolder, fillNewFolder } from "../new-folder.js";
import { Tokenizer } from "../tokenizer.js";
import { initialize, noiseIsInput } from "./initialize.js";
import type { Part } from "./part.js";
import { modelSettings } from "./settings.js";
import {
  type ImageSource,
  openImage,
  openText,
  openVae,
  openVision,
  PARTS,
  type VisionSource,
} from "./sources.js";
import { refuseUnread } from "./unread.js";

export interface InitOptions {
  seed: bigint;
  /**
   * A model (a directory or the name of a shipped one) whose tokenizer is taken; absent: that of `text`, or
   * `shapes-64`.
   */
  tokenizer?: string;
  /**
   * Models whose decoder, vision tower with its projector, diffusion head with the embeddings of image tokens, or
   * autoencoder is taken.
   */
  text?: string;
  vision?: string;
  image?: string;
  vae?: string;
  signal?: AbortSignal;
}

const PROJECTOR = /^multi_modal_projector\b/;

/** `generation_config.json` of a fresh model. */
const GENERATION = {
  image: { steps: 25, guidance: 2, guidance_schedule: "constant", temperature: 1, order: "random" },
  text: { max_new_tokens: 64, temperature: 0 },
};
/** Of a fresh head for objective "ddpm", which leaves the numbers without a bound (spec section 6). */
const FRESH_DDPM = { x0_limit: 5 };

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

const toBytes = (values: Float32Array) =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

/** Fields that transformers takes as real numbers alone, so that 30 must be written as 30.0. */
const REAL = /"(attn_logit_softcapping|final_logit_softcapping|rope_theta)": -?\d+(?=[,\n])/g;

const json = (value: unknown) =>
  `${JSON.stringify(value, null, 2).replace(REAL, (field) => `${field}.0`)}\n`;

/**
 * Makes a checkpoint directory from `configPath`: the fields of config.json in YAML, and those of the
 * autoencoder's under `vae`; where there is nothing else, a directory with an autoencoder alone. The directory
 * must not exist; it appears when it is complete. Throws also the signal's reason.
 */
export async function initCheckpoint(
  configPath: string,
  out: string,
  options: InitOptions,
): Promise<Checkpoint> {
  const target = await expectNoFolder(out);
  const plan = await planOf(configPath, options);
  await fillNewFolder(target, async (beside) => {
    await writeCheckpoint(beside, plan, options);
    // Whatever does not fit shows here, before the directory appears.
    await readCheckpoint(beside, options.signal);
  });
  return readCheckpoint(target);
}

/** What a fresh checkpoint will hold, and the models that parts of it come from; all of it fits together. */
interface Plan {
  text?: Part;
  vision?: VisionSource;
  image?: ImageSource;
  vae: { source?: Part; config: object; tensors: ExpectedTensor[] };
  /** Absent: the autoencoder alone. */
  model?: { config: object; parsed: ModelConfig; tensors: ExpectedTensor[] };
  tokenizerAt: string;
}

async function planOf(configPath: string, options: InitOptions): Promise<Plan> {
  const { vae: vaeFields = {}, ...given } = await readYaml(configPath);
  const at = (section: string) => `${configPath}: ${section}`;
  if (!isObject(vaeFields)) throw new InvalidConfigError(`expected a mapping for ${at("vae")}`);
  const text = options.text === undefined ? undefined : await openText(options.text);
  const vision = options.vision === undefined ? undefined : await openVision(options.vision);
  const image = options.image === undefined ? undefined : await openImage(options.image);
  const source =
    options.vae === undefined ? undefined : await openVae(options.vae, vaeFields, at("vae"));
  if (!source && Object.keys(vaeFields).length === 0)
    throw new InvalidConfigError(`expected a mapping for vae in ${configPath}, or --vae`);

  const vaeConfig = {
    _class_name: "AutoencoderKL",
    ...(source ? source.configUnder(vaeFields, at("vae")) : vaeFields),
  };
  const readVae = Fields.of(vaeConfig, at("vae"));
  const vae = parseVaeConfig(readVae);
  refuseUnread(readVae, vaeFields, at("vae"));
  source?.match(vaeTensors(vae));

  const alone = Object.keys(given).length === 0 && !text && !vision && !image;
  const config: Record<string, unknown> = {
    model_type: "unifluid",
    ...modelSettings([text, image?.head], given, configPath),
  };
  if (text) config.text_config = text.configUnder(given.text_config, at("text_config"));
  if (vision)
    config.vision_config = vision.part.configUnder(given.vision_config, at("vision_config"));
  if (image) {
    config.image_generation = image.tokens.configUnder(
      given.image_generation,
      at("image_generation"),
    );
    config.diffusion_head = image.head.configUnder(given.diffusion_head, at("diffusion_head"));
  }
  const read = Fields.of(config, configPath);
  const parsed = alone ? undefined : parseModelConfig(read);
  if (parsed) refuseUnread(read, given, configPath);
  const tensors = parsed ? modelTensors(parsed) : [];
  text?.match(tensors.filter(({ name }) => PARTS.text.test(name)));
  vision?.part.match(
    tensors.filter(({ name }) => PARTS.vision.test(name)),
    PROJECTOR,
  );
  image?.tokens.match(tensors.filter(({ name }) => PARTS.tokens.test(name)));
  image?.head.match(tensors.filter(({ name }) => PARTS.head.test(name)));
  const tokenizerAt = await locateCheckpoint(options.tokenizer ?? options.text ?? "shapes-64");
  if (parsed) await checkTokenizer(join(tokenizerAt, "tokenizer.json"), parsed, configPath);
  if (parsed?.image) checkImageAgainstVae(parsed.image, vae, configPath);
  return {
    text,
    vision,
    image,
    vae: { source, config: vaeConfig, tensors: vaeTensors(vae) },
    model: parsed && { config, parsed, tensors },
    tokenizerAt,
  };
}

/** A tensor's values: of the part that is taken, or fresh. */
function valuesFrom(
  { text, vision, image, vae, model }: Plan,
  { seed, signal }: InitOptions,
): (tensor: ExpectedTensor) => Promise<Float32Array> {
  const drawn = model?.parsed.image;
  const head =
    drawn && !drawn.flow ? noiseIsInput(drawn.headWidth, drawn.tokenChannels, seed) : undefined;
  const special: Record<string, Float32Array | undefined> = {
    "diffusion_head.input_proj.weight": head?.input,
    "diffusion_head.input_proj.bias": head?.bias,
    "diffusion_head.final_layer.linear.weight": head?.output,
  };
  const parts = [text, vision?.part, image?.tokens, image?.head, vae.source];
  return async (tensor) => {
    signal?.throwIfAborted();
    const part = parts.find((p) => p?.has(tensor.name));
    return part ? part.values(tensor) : (special[tensor.name] ?? initialize(tensor, seed, signal));
  };
}

async function writeCheckpoint(folder: string, plan: Plan, options: InitOptions): Promise<void> {
  const { text, vision, image, vae, model, tokenizerAt } = plan;
  const at = (...names: string[]) => join(folder, ...names);
  const valuesOf = valuesFrom(plan, options);
  const writeTensors = (path: string, tensors: readonly ExpectedTensor[]) =>
    writeSafetensors(
      path,
      tensors
        // An output matrix of its own only where the decoder that is taken has one.
        .filter(({ name, optional }) => !optional || text?.has(name))
        .map((tensor) => ({
          name: storedName(tensor.name),
          dtype: "F32" as const,
          shape: tensor.shape,
          bytes: async () => toBytes(await valuesOf(tensor)),
        })),
    );
  await makeFolder(at("vae"));
  await writeTensors(at("vae", "diffusion_pytorch_model.safetensors"), vae.tensors);
  await writeFile(at("vae", "config.json"), json(vae.config));
  if (!model) return;
  await writeTensors(at("model.safetensors"), model.tensors);
  await writeFile(at("config.json"), json(model.config));
  // A checkpoint needs no tokenizer_config.json: other programs read it.
  for (const name of ["tokenizer.json", "tokenizer_config.json"])
    if (await isFile(join(tokenizerAt, name))) await copyFile(join(tokenizerAt, name), at(name));
  const side = model.parsed.vision?.imageSize;
  const preprocessorAt = at("preprocessor_config.json");
  if (vision?.preprocessor !== undefined)
    await writeFile(preprocessorAt, json(vision.preprocessor));
  else if (side !== undefined) await writeFile(preprocessorAt, json(preprocessor(side)));
  const drawing = image
    ? image.drawing
    : { ...GENERATION.image, ...(model.parsed.image?.flow === false && FRESH_DDPM) };
  await writeFile(at("generation_config.json"), json({ ...GENERATION, image: drawing }));
}

/**
 * Throws unless the tokens that begin and end texts are special ones: Gemma's ids, which a silent configuration means,
 * are those of characters in other tokenizers.
 */
async function checkTokenizer(path: string, config: ModelConfig, where: string): Promise<void> {
  const tokenizer = await Tokenizer.load(path, config.text.vocabSize);
  const check = (field: string, id: number) => {
    if (tokenizer.isSpecial(id)) return;
    throw new InvalidConfigError(
      `${where}: expected a special token for ${field} but id ${id} is ${show(tokenizer.token(id))} in ${path}; set text_config.${field}`,
    );
  };
  check("bos_token_id", config.bosToken);
  for (const id of config.eosTokens) check("eos_token_id", id);
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
