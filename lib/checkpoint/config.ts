/**
 * `config.json` of the three kinds of directory (spec section 2), and what its parts must have in common.
 */

import { InvalidConfigError } from "../errors.js";
import type { NativeImageConfig, NativeVaeConfig, NativeVisionConfig } from "../native.js";
import { parseTemplates, type Templates } from "../prompts.js";
import { Fields } from "./fields.js";
import {
  type DecoderKind,
  eosTokens,
  paligemmaText,
  parseTextConfig,
  type TextConfig,
  tokenId,
} from "./text-config.js";
import { vaeFactor } from "./vae-config.js";
import { PALIGEMMA_VISION, parseVisionConfig } from "./vision-config.js";

/** What a checkpoint directory contains; "vae": only an autoencoder. */
export type CheckpointKind = "unifluid" | "paligemma" | "gemma" | "gemma2" | "vae";

export interface ImageConfig extends NativeImageConfig {
  /** Side of a drawn image, in pixels. */
  imageSize: number;
}

/** A model's `config.json`; a directory with only an autoencoder has none. */
export interface ModelConfig {
  kind: Exclude<CheckpointKind, "vae">;
  text: TextConfig;
  vision?: NativeVisionConfig;
  image?: ImageConfig;
  templates: Templates;
  bosToken: number;
  eosTokens: number[];
}

/** Gemma's ids, where a configuration is silent. */
const BOS = 2;
export const EOS = 1;

/** Reads a model's `config.json`. */
export function parseModelConfig(fields: Fields): ModelConfig {
  const kind = fields.oneOf("model_type", ["unifluid", "paligemma", "gemma", "gemma2"]);
  const text = parseText(fields, kind);
  const config: ModelConfig = {
    kind,
    text,
    templates: parseTemplates(fields),
    // A PaliGemma configuration may give the ids only at the top.
    bosToken: text.bosToken ?? tokenId(fields, "bos_token_id", text.vocabSize) ?? BOS,
    eosTokens: text.eosTokens ?? eosTokens(fields, text.vocabSize) ?? [EOS],
  };
  if (config.bosToken >= text.vocabSize) {
    fields.fail("bos_token_id", `an id below vocab_size (${text.vocabSize})`, config.bosToken);
  }
  if (kind === "paligemma") {
    config.vision = parseVisionConfig(childOr(fields, "vision_config", PALIGEMMA_VISION));
  }
  if (kind === "unifluid") {
    if (fields.has("vision_config"))
      config.vision = parseVisionConfig(fields.child("vision_config"));
    config.image = parseImageConfig(fields);
  }
  return config;
}

function childOr(fields: Fields, name: string, absent: Record<string, unknown>): Fields {
  return fields.has(name) ? fields.child(name) : new Fields(absent, `${fields.where}: ${name}`);
}

function parseText(fields: Fields, kind: Exclude<CheckpointKind, "vae">): TextConfig {
  if (kind === "gemma" || kind === "gemma2") {
    return parseTextConfig(fields, kind, { alone: true, bidirectionalPrefix: false });
  }
  const absent = paligemmaText(fields.raw("vocab_size"));
  const text = kind === "paligemma" ? childOr(fields, "text_config", absent) : required(fields);
  const decoder: DecoderKind =
    kind === "paligemma"
      ? text.oneOf("model_type", ["gemma", "gemma2"], { default: "gemma" })
      : text.oneOf("model_type", ["gemma", "gemma2"]);
  if (kind === "paligemma") text.only("use_bidirectional_attention", true);
  const attention = fields.oneOf("prefix_attention", ["bidirectional", "causal"], {
    default: "bidirectional",
  });
  const bidirectionalPrefix = kind === "paligemma" || attention === "bidirectional";
  return parseTextConfig(text, decoder, { alone: false, bidirectionalPrefix });
}

function required(fields: Fields): Fields {
  return fields.has("text_config")
    ? fields.child("text_config")
    : fields.fail("text_config", "an object");
}

function parseImageConfig(fields: Fields): ImageConfig {
  for (const name of ["image_generation", "diffusion_head"]) {
    if (!fields.has(name)) fields.fail(name, "an object");
  }
  const image = fields.child("image_generation");
  const head = fields.child("diffusion_head");
  head.only("noise_schedule", "cosine");
  const config: ImageConfig = {
    imageSize: image.integer("image_size", { min: 1, max: 16384 }),
    grid: image.integer("grid", { min: 1, max: 1024 }),
    latentPatch: image.integer("latent_patch", { min: 1, max: 64 }),
    tokenChannels: image.integer("token_channels", { min: 1, max: 1 << 16 }),
    headWidth: head.integer("width", { min: 1, max: 1 << 16 }),
    headDepth: head.integer("depth", { min: 1, max: 1024 }),
    timesteps: head.integer("timesteps", { min: 2, max: 10_000, default: 1000 }),
    flow: head.oneOf("objective", ["ddpm", "flow"], { default: "ddpm" }) === "flow",
    editSourceLatents: fields.boolean("edit_source_latents", { default: true }),
  };
  checkGeometry(config, image);
  return config;
}

/** What must hold whatever the autoencoder is, which may not be there. */
function checkGeometry(config: ImageConfig, fields: Fields): void {
  const { imageSize, grid, latentPatch, tokenChannels } = config;
  const cells = grid * latentPatch;
  if (imageSize % cells !== 0) {
    fields.fail(
      "image_size",
      `a multiple of grid * latent_patch (${cells}), the latents of a side,`,
      imageSize,
    );
  }
  if (tokenChannels % latentPatch ** 2 !== 0) {
    fields.fail(
      "token_channels",
      `a multiple of latent_patch^2 (${latentPatch ** 2})`,
      tokenChannels,
    );
  }
}

/** What the image part and the autoencoder must agree on. */
export function checkImageAgainstVae(
  image: ImageConfig,
  vae: NativeVaeConfig,
  where: string,
): void {
  const factor = vaeFactor(vae);
  const grid = image.imageSize / factor / image.latentPatch;
  if (grid !== image.grid) {
    throw new InvalidConfigError(
      `${where}: expected image_size / VAE factor / latent_patch = ${image.imageSize} / ${factor} / ` +
        `${image.latentPatch} = ${grid} for image_generation.grid but found ${image.grid}`,
    );
  }
  const channels = vae.latentChannels * image.latentPatch ** 2;
  if (channels !== image.tokenChannels) {
    throw new InvalidConfigError(
      `${where}: expected latent_channels * latent_patch^2 = ${channels} for ` +
        `image_generation.token_channels but found ${image.tokenChannels}`,
    );
  }
}
