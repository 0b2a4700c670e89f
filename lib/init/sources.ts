/** Where parts of a fresh model come from: the directories and files that `unifluid init` takes. */
import { readdir } from "node:fs/promises";
import { basename, extname, join } from "node:path";
import { findPreprocessor } from "../checkpoint/checkpoint.js";
import { parseModelConfig } from "../checkpoint/config.js";
import { Fields, isObject } from "../checkpoint/fields.js";
import { locateCheckpoint } from "../checkpoint/locate.js";
import { readJson } from "../checkpoint/read-json.js";
import { readSafetensorsHeader } from "../checkpoint/safetensors.js";
import { readWeightFiles, type StoredTensor } from "../checkpoint/shards.js";
import {
  canonicalName,
  canonicalVaeName,
  isIgnored,
  type Spelling,
  spellingsOf,
  storedName,
} from "../checkpoint/tensor-names.js";
import type { NamedTensor } from "../checkpoint/tensor-table.js";
import { eosTokens, paligemmaText } from "../checkpoint/text-config.js";
import { parseVaeConfig } from "../checkpoint/vae-config.js";
import { PALIGEMMA_VISION, parseVisionConfig } from "../checkpoint/vision-config.js";
import { CheckpointNotFoundError, InvalidConfigError, InvalidOptionError } from "../errors.js";
import { isFile } from "../files.js";
import type { NativeVaeConfig } from "../native.js";
import { diffusersName, isLdmAutoencoder, ldmConfig, ldmName } from "./ldm-autoencoder.js";
import { Part } from "./part.js";
import { deeperHead, narrowerMlp, type Resizing } from "./resize.js";

type Json = Record<string, unknown>;

async function readObject(path: string): Promise<Json> {
  const json = await readJson(path);
  if (isObject(json)) return json;
  throw new InvalidConfigError(`${path}: expected an object`);
}

/** Canonical names of the tensors that the parts of a model are made of. */
export const PARTS = {
  text: /^(language_model|lm_head)\./,
  vision: /^(vision_tower|multi_modal_projector)\./,
  tokens: /^image_/,
  head: /^diffusion_head\./,
} as const;

/** Tensors of files under canonical names, those of `part` alone. */
function named(
  files: readonly string[],
  tensors: readonly StoredTensor[],
  canonical: (stored: string) => string,
  part: RegExp,
): NamedTensor[] {
  return tensors
    .map((stored) => ({
      name: canonical(stored.name),
      stored,
      path: files[stored.file] as string,
    }))
    .filter(({ name }) => part.test(name) && !isIgnored(name));
}

/** Fields that say of a part where it comes from, or how it lay in another model. */
const FOREIGN =
  /^(architectures|transformers_version|torch_dtype|dtype|_name_or_path|projection_dim|num_image_tokens)$/;

/** The decoder of a Gemma, Gemma 2, PaliGemma or UniFluid directory. */
export async function openText(model: string): Promise<Part> {
  const directory = await locateCheckpoint(model);
  const where = join(directory, "config.json");
  const json = await readObject(where);
  const { kind, text, templates } = parseModelConfig(Fields.of(json, where));
  const section = kind === "gemma" || kind === "gemma2" ? json : textFields(json);
  // One place of the rotary base, which a file of sizes may change: transformers 5 writes another.
  const { rope_parameters, rope_scaling, ...fields } = section;
  const stops = await generationStops(directory, text.vocabSize);
  const { path, files, tensors } = await readWeightFiles(directory, "model");
  return new Part({
    source: model,
    settings:
      kind === "unifluid"
        ? {
            prefix_attention: text.bidirectionalPrefix ? "bidirectional" : "causal",
            prompts: templates,
          }
        : undefined,
    fields: {
      ...Object.fromEntries(Object.entries(fields).filter(([name]) => !FOREIGN.test(name))),
      model_type: text.gemma2 ? "gemma2" : "gemma",
      rope_theta: text.ropeTheta,
      ...(stops && { eos_token_id: stops }),
    },
    sizes: {
      model_type: text.gemma2 ? "gemma2" : "gemma",
      vocab_size: text.vocabSize,
      hidden_size: text.hiddenSize,
      intermediate_size: text.intermediateSize,
      num_hidden_layers: text.layers,
      num_attention_heads: text.heads,
      num_key_value_heads: text.kvHeads,
      head_dim: text.headDim,
    },
    resizing: narrowerMlp(text.intermediateSize),
    files,
    where: path,
    spellings: spellingsOf(kind),
    tensors: named(files, tensors, (n) => canonicalName(n, kind), PARTS.text),
  });
}

/** The end tokens of its `generation_config.json`, which stand above those of `config.json`: a chat model has more. */
async function generationStops(directory: string, vocab: number): Promise<number[] | undefined> {
  const path = join(directory, "generation_config.json");
  return eosTokens(Fields.of(await readJson(path, {}), path), vocab);
}

/** Of a model with images; PaliGemma may give ids at the top, and leave the section out. */
function textFields(json: Json): Json {
  const ids = ["bos_token_id", "eos_token_id"].filter((name) => json[name] !== undefined);
  const section = isObject(json.text_config) ? json.text_config : paligemmaText(json.vocab_size);
  return { ...Object.fromEntries(ids.map((name) => [name, json[name]])), ...section };
}

/** How a SigLIP directory spells the names of its tower: transformers 5 saves a tower alone without a prefix. */
const SIGLIP_SPELLINGS: readonly Spelling[] = ["vision_model.", ""].map(
  (prefix) => (name) => name.replace(/^vision_tower\./, prefix),
);
const siglipName = (stored: string) =>
  stored.replace(
    /^vision_model\.|^(?=(embeddings|encoder|post_layernorm|head)\.)/,
    "vision_tower.",
  );

export interface VisionSource {
  part: Part;
  /** What its directory says of preparing images, if anything. */
  preprocessor?: unknown;
}

/** The vision tower, with the projector if there is one, of a PaliGemma, UniFluid or SigLIP directory. */
export async function openVision(model: string): Promise<VisionSource> {
  const directory = await locateCheckpoint(model);
  const where = join(directory, "config.json");
  const json = await readObject(where);
  const kind = Fields.of(json, where).oneOf("model_type", [
    "siglip",
    "siglip_vision_model",
    "paligemma",
    "unifluid",
  ]);
  const absent = kind === "siglip" ? {} : kind === "paligemma" ? PALIGEMMA_VISION : undefined;
  const section = kind === "siglip_vision_model" ? json : (json.vision_config ?? absent);
  if (!isObject(section))
    throw new InvalidOptionError(`expected a model that reads images for --vision: ${model}`);
  const vision = parseVisionConfig(new Fields(section, where));
  const siglip = kind === "siglip" || kind === "siglip_vision_model";
  const canonical = siglip ? siglipName : (name: string) => canonicalName(name, kind);
  const { path, files, tensors } = await readWeightFiles(directory, "model");
  return {
    part: new Part({
      source: model,
      fields: {
        ...Object.fromEntries(Object.entries(section).filter(([name]) => !FOREIGN.test(name))),
        model_type: "siglip_vision_model",
      },
      sizes: {
        hidden_size: vision.hiddenSize,
        intermediate_size: vision.intermediateSize,
        num_hidden_layers: vision.layers,
        num_attention_heads: vision.heads,
        image_size: vision.imageSize,
        patch_size: vision.patchSize,
      },
      files,
      where: path,
      spellings: siglip ? SIGLIP_SPELLINGS : spellingsOf(kind),
      tensors: named(files, tensors, canonical, PARTS.vision),
    }),
    preprocessor: (await findPreprocessor(directory))?.json,
  };
}

export interface ImageSource {
  /** The embeddings of image tokens. */
  tokens: Part;
  head: Part;
  /** The section `image` of its `generation_config.json`. */
  drawing: Json;
}

/** What draws in a UniFluid directory: the embeddings of image tokens and the diffusion head. */
export async function openImage(model: string): Promise<ImageSource> {
  const directory = await locateCheckpoint(model);
  const where = join(directory, "config.json");
  const json = await readObject(where);
  const { image, templates } = parseModelConfig(Fields.of(json, where));
  const generation = join(directory, "generation_config.json");
  const { image: drawing = {} } = (await isFile(generation)) ? await readObject(generation) : {};
  if (!image) throw new InvalidOptionError(`expected a model that draws for --image: ${model}`);
  const { path, files, tensors } = await readWeightFiles(directory, "model");
  const part = (section: unknown, sizes: Json, names: RegExp, resizing?: Resizing) =>
    new Part({
      source: model,
      settings: { edit_source_latents: image.editSourceLatents, prompts: templates },
      fields: section as Json,
      sizes,
      resizing,
      files,
      where: path,
      spellings: spellingsOf("unifluid"),
      tensors: named(files, tensors, (n) => canonicalName(n, "unifluid"), names),
    });
  return {
    tokens: part(
      json.image_generation,
      { grid: image.grid, token_channels: image.tokenChannels },
      PARTS.tokens,
    ),
    head: part(
      json.diffusion_head,
      { width: image.headWidth, depth: image.headDepth, objective: image.flow ? "flow" : "ddpm" },
      PARTS.head,
      deeperHead(image.headDepth),
    ),
    drawing: drawing as Json,
  };
}

/** Extensions of files that PyTorch pickles. */
const PICKLES = [".ckpt", ".pt", ".pth", ".bin"];

const pickled = (path: string) =>
  new InvalidOptionError(
    `expected safetensors for --vae but ${path} is a pickle of PyTorch, which can run any program and is not read: convert it in Python, safetensors.torch.save_file(torch.load("${basename(path)}", map_location="cpu", weights_only=True)["model"], "${basename(path, extname(path))}.safetensors")`,
  );

const vaeSizes = (vae: NativeVaeConfig): Json => ({
  block_out_channels: vae.blockOutChannels,
  layers_per_block: vae.layersPerBlock,
  latent_channels: vae.latentChannels,
  norm_num_groups: vae.normGroups,
  mid_block_add_attention: vae.midBlockAttention,
  use_quant_conv: vae.quantConv,
  use_post_quant_conv: vae.postQuantConv,
});

/**
 * The autoencoder of a directory that has one in diffusers' form, itself or under `vae/`, or of a safetensors
 * file under LDM's names, which may be given by its directory. `given`: what the YAML file says of it, which
 * tells what such a file does not.
 */
export async function openVae(model: string, given: Json, where: string): Promise<Part> {
  if (await isFile(model)) return openLdm(model, given, where);
  const directory = await locateCheckpoint(model);
  for (const at of [join(directory, "vae"), directory]) {
    const path = join(at, "config.json");
    if (!(await isFile(path))) continue;
    const json = await readObject(path);
    if (json._class_name !== "AutoencoderKL" && at === directory) continue;
    const sizes = vaeSizes(parseVaeConfig(Fields.of(json, path)));
    const weights = await readWeightFiles(at, "diffusion_pytorch_model");
    const { files } = weights;
    return new Part({
      source: model,
      fields: json,
      sizes,
      files,
      where: weights.path,
      spellings: spellingsOf("vae"),
      tensors: named(files, weights.tensors, canonicalVaeName, /^/),
    });
  }
  const names = await readdir(directory);
  const files = names.filter((name) => name.endsWith(".safetensors"));
  if (files.length === 1) return openLdm(join(directory, files[0] as string), given, where);
  const pickle = names.find((name) => PICKLES.includes(extname(name)));
  if (files.length === 0 && pickle) throw pickled(join(directory, pickle));
  throw new CheckpointNotFoundError(
    `there is no autoencoder in ${model}: expected vae/config.json, the config.json of an AutoencoderKL, or one safetensors file under LDM's names`,
  );
}

/** Of an autoencoder's tensors in a checkpoint of a whole LDM. */
const FIRST_STAGE = "first_stage_model.";

async function openLdm(path: string, given: Json, where: string): Promise<Part> {
  if (PICKLES.includes(extname(path))) throw pickled(path);
  const header = await readSafetensorsHeader(path);
  const within = header.tensors.filter(({ name }) => name.startsWith(FIRST_STAGE));
  const stored = (within.length > 0 ? within : header.tensors)
    .map((tensor) => ({
      ...tensor,
      name: within.length > 0 ? tensor.name.slice(FIRST_STAGE.length) : tensor.name,
      file: 0,
    }))
    // What LDM trains with: the critic and its weight, and an average of all weights under names of its own.
    .filter(({ name }) => !/^(loss|model_ema)\./.test(name));
  if (!isLdmAutoencoder(stored))
    throw new InvalidOptionError(
      `expected an autoencoder under LDM's names for --vae but ${path} lacks encoder.down.0.block.0.conv1.weight`,
    );
  const told = ldmConfig(stored);
  const fields = {
    ...told,
    norm_num_groups: given.norm_num_groups ?? told.norm_num_groups,
    ...(given.scaling_factor !== undefined && { scaling_factor: given.scaling_factor }),
  };
  if (!("scaling_factor" in fields))
    throw new InvalidConfigError(
      `${where}: expected a number for scaling_factor, which ${path} does not have`,
    );
  const vae = parseVaeConfig(Fields.of(fields, where));
  const levels = vae.blockOutChannels.length;
  return new Part({
    source: path,
    fields: { _class_name: "AutoencoderKL", ...fields },
    sizes: vaeSizes(vae),
    files: [path],
    where: path,
    spellings: [(name) => ldmName(storedName(name), levels)],
    tensors: stored.map((tensor) => ({
      name: canonicalVaeName(diffusersName(tensor.name, levels)),
      stored: tensor,
      path,
    })),
  });
}
