/** The image encoder's configuration: SiglipVisionConfig of the transformers library, with its defaults. */

import type { NativeVisionConfig } from "../native.js";
import type { Fields } from "./fields.js";
import { parseActivation } from "./text-config.js";

/** What an absent `vision_config` means in a PaliGemma configuration. */
export const PALIGEMMA_VISION = {
  hidden_size: 1152,
  intermediate_size: 4096,
  num_hidden_layers: 27,
  num_attention_heads: 16,
  image_size: 224,
  patch_size: 14,
} as const;

export function parseVisionConfig(fields: Fields): NativeVisionConfig {
  const size = (name: string, fallback: number, max = 1 << 16) =>
    fields.integer(name, { min: 1, max, default: fallback });
  fields.only("model_type", "siglip_vision_model");
  fields.only("num_channels", 3);

  const hiddenSize = size("hidden_size", 768);
  const heads = size("num_attention_heads", 12, 1024);
  if (hiddenSize % heads !== 0) {
    fields.fail("num_attention_heads", `a divisor of hidden_size (${hiddenSize})`, heads);
  }
  const patchSize = size("patch_size", 16, 1024);
  const imageSize = size("image_size", 224, 16384);
  if (imageSize < patchSize) {
    fields.fail("image_size", `at least patch_size (${patchSize})`, imageSize);
  }
  return {
    hiddenSize,
    intermediateSize: size("intermediate_size", 3072, 1 << 20),
    layers: size("num_hidden_layers", 12, 1024),
    heads,
    imageSize,
    patchSize,
    layerNormEps: fields.number("layer_norm_eps", { min: 0, max: 1, default: 1e-6 }),
    activation: parseActivation(fields, "hidden_act"),
  };
}

/**
 * Rows of image features that the encoder makes of one image: one for each whole patch. What is left over at the
 * right and at the bottom belongs to none, as in the convolution of transformers' `SiglipVisionEmbeddings`.
 */
export function visionRows({ imageSize, patchSize }: NativeVisionConfig): number {
  return Math.floor(imageSize / patchSize) ** 2;
}
