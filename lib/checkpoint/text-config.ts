/**
 * The decoder's configuration: GemmaConfig and Gemma2Config of the transformers library, with its defaults
 * and its ways of reading old files.
 */

import type { NativeActivation, NativeTextConfig } from "../native.js";
import type { Fields } from "./fields.js";

export type DecoderKind = "gemma" | "gemma2";

/** What the native side needs, and what only this side does. */
export interface TextConfig extends NativeTextConfig {
  /** Rows that one sequence may have. */
  maxPositions: number;
  bosToken?: number;
  /** Any of these ends a text. */
  eosTokens?: number[];
}

interface Defaults {
  vocab: number;
  hidden: number;
  intermediate: number;
  layers: number;
  heads: number;
  kvHeads: number;
}

const GEMMA: Defaults = {
  vocab: 256000,
  hidden: 3072,
  intermediate: 24576,
  layers: 28,
  heads: 16,
  kvHeads: 16,
};

const GEMMA2: Defaults = {
  vocab: 256000,
  hidden: 2304,
  intermediate: 9216,
  layers: 26,
  heads: 8,
  kvHeads: 4,
};

/** What an absent `text_config` means in a PaliGemma configuration, whose own `vocab_size` it has. */
export const paligemmaText = (vocabSize: unknown) => ({
  model_type: "gemma",
  hidden_size: 2048,
  num_hidden_layers: 18,
  intermediate_size: 16384,
  num_attention_heads: 8,
  num_key_value_heads: 1,
  vocab_size: vocabSize ?? 257152,
});

// Bounds that no model comes near; they keep what is computed from a damaged file within integers.
const MAX_SIZE = 1 << 20;
const MAX_VOCAB = 1 << 24;
const MAX_LAYERS = 1024;

const ACTIVATIONS: Readonly<Record<string, NativeActivation>> = {
  gelu_pytorch_tanh: "gelu_tanh",
  gelu_new: "gelu_tanh",
  gelu_fast: "gelu_tanh",
  gelu: "gelu_erf",
  silu: "silu",
  swish: "silu",
};

/** An activation by its name in the transformers library. */
export function parseActivation(fields: Fields, name: string): NativeActivation {
  const value = fields.string(name, { default: "gelu_pytorch_tanh" });
  return Object.hasOwn(ACTIVATIONS, value)
    ? (ACTIVATIONS[value] as NativeActivation)
    : fields.fail(name, `one of ${Object.keys(ACTIVATIONS).join(", ")}`);
}

/**
 * Gemma's first release says "gelu" and means the tanh form: transformers' `GemmaConfig` makes "gelu_pytorch_tanh" of
 * it (configuration_gemma.py, `__post_init__`).
 */
function gemmaActivation(fields: Fields): NativeActivation {
  const name = fields.has("hidden_act") ? "hidden_act" : "hidden_activation";
  return fields.raw(name) === "gelu" ? "gelu_tanh" : parseActivation(fields, name);
}

function ropeTheta(fields: Fields): number {
  const range = { min: 0, max: 1e12, open: true } as const;
  // The older place of what became rope_parameters; only its absence, or a plain type, is supported.
  for (const name of ["rope_scaling", "rope_parameters"]) {
    if (!fields.has(name)) continue;
    const rope = fields.child(name);
    rope.only("rope_type", "default");
    rope.only("type", "default");
    rope.only("partial_rotary_factor", 1);
    if (rope.has("rope_theta")) return rope.number("rope_theta", range);
  }
  return fields.number("rope_theta", { ...range, default: 10000 });
}

function slidingWindows(fields: Fields, layers: number): number[] {
  const window = fields.isNull("sliding_window")
    ? 0
    : fields.integer("sliding_window", { min: 1, max: 2 ** 31 - 1, default: 4096 });
  const types = fields.raw("layer_types");
  if (types === undefined) {
    return Array.from({ length: layers }, (_, i) => (i % 2 === 0 ? window : 0));
  }
  if (!Array.isArray(types) || types.length !== layers) {
    fields.fail("layer_types", `a list of ${layers} (num_hidden_layers)`);
  }
  return (types as unknown[]).map((type) => {
    if (type === "full_attention") return 0;
    if (type === "sliding_attention") return window;
    return fields.fail("layer_types", '"full_attention" or "sliding_attention"', type);
  });
}

/** A soft-cap; null: none. */
function softCap(fields: Fields, name: string, fallback: number): number {
  if (fields.isNull(name)) return 0;
  return fields.number(name, { min: 0, max: 1e6, default: fallback });
}

/** An optional token id. */
export function tokenId(fields: Fields, name: string, vocabSize: number): number | undefined {
  return fields.has(name) ? fields.integer(name, { min: 0, max: vocabSize - 1 }) : undefined;
}

/** `eos_token_id`: one id or several. */
export function eosTokens(fields: Fields, vocabSize: number): number[] | undefined {
  if (!fields.has("eos_token_id")) return undefined;
  const range = { min: 0, max: vocabSize - 1 };
  return Array.isArray(fields.raw("eos_token_id"))
    ? fields.integers("eos_token_id", range)
    : [fields.integer("eos_token_id", range)];
}

/**
 * @param use How the decoder is used: alone, or behind image rows as PaliGemma and UniFluid do.
 */
export function parseTextConfig(
  fields: Fields,
  kind: DecoderKind,
  use: { alone: boolean; bidirectionalPrefix: boolean },
): TextConfig {
  const gemma2 = kind === "gemma2";
  const defaults = gemma2 ? GEMMA2 : GEMMA;
  const size = (name: string, fallback: number, max = MAX_SIZE) =>
    fields.integer(name, { min: 1, max, default: fallback });

  const vocabSize = size("vocab_size", defaults.vocab, MAX_VOCAB);
  const layers = size("num_hidden_layers", defaults.layers, MAX_LAYERS);
  const heads = size("num_attention_heads", defaults.heads, 4096);
  const kvHeads = size("num_key_value_heads", defaults.kvHeads, 4096);
  const headDim = size("head_dim", 256, 4096);
  if (heads % kvHeads !== 0) {
    fields.fail("num_key_value_heads", `a divisor of num_attention_heads (${heads})`, kvHeads);
  }
  if (headDim % 2 !== 0) {
    fields.fail("head_dim", "an even number (rotary embedding turns pairs)", headDim);
  }
  fields.only("attention_bias", false);
  if (use.alone) fields.only("use_bidirectional_attention", false);

  return {
    gemma2,
    vocabSize,
    hiddenSize: size("hidden_size", defaults.hidden),
    intermediateSize: size("intermediate_size", defaults.intermediate),
    layers,
    heads,
    kvHeads,
    headDim,
    rmsNormEps: fields.number("rms_norm_eps", { min: 0, max: 1, default: 1e-6 }),
    ropeTheta: ropeTheta(fields),
    attentionScale:
      (gemma2
        ? fields.number("query_pre_attn_scalar", { min: 0, max: 1e9, open: true, default: 256 })
        : headDim) ** -0.5,
    attentionSoftCap: gemma2 ? softCap(fields, "attn_logit_softcapping", 50) : 0,
    logitSoftCap: gemma2 ? softCap(fields, "final_logit_softcapping", 30) : 0,
    windows: gemma2 ? slidingWindows(fields, layers) : new Array<number>(layers).fill(0),
    activation: gemma2 ? parseActivation(fields, "hidden_activation") : gemmaActivation(fields),
    firstPosition: use.alone ? 0 : 1,
    bidirectionalPrefix: use.bidirectionalPrefix,
    tied: false, // settled once the tensors are known
    maxPositions: size("max_position_embeddings", 8192, 2 ** 31 - 1),
    bosToken: tokenId(fields, "bos_token_id", vocabSize),
    eosTokens: eosTokens(fields, vocabSize),
  };
}
