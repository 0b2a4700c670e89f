/**
 * Tensor names: from the spellings that checkpoints use to the one that the native side knows (spec
 * section 3). Canonical names are transformers' module names without `model.` and `vision_model.`, and the
 * autoencoder's diffusers names under `vae.`.
 */

import type { ModelConfig } from "./config.js";

/** The canonical name of a tensor of `model.safetensors`. */
export function canonicalName(stored: string, kind: ModelConfig["kind"]): string {
  if (kind === "gemma" || kind === "gemma2") {
    return replacePrefix(stored, "model.", "language_model.");
  }
  let name = replacePrefix(stored, "model.", "");
  name = replacePrefix(name, "language_model.model.", "language_model.");
  name = replacePrefix(name, "language_model.lm_head.", "lm_head.");
  return replacePrefix(name, "vision_tower.vision_model.", "vision_tower.");
}

/** Attention names of diffusers' first releases. */
const OLD_VAE_ATTENTION: readonly (readonly [string, string])[] = [
  [".query.", ".to_q."],
  [".key.", ".to_k."],
  [".value.", ".to_v."],
  [".proj_attn.", ".to_out.0."],
];

/** The canonical name of a tensor of the autoencoder's file. */
export function canonicalVaeName(stored: string): string {
  let name = stored;
  if (name.includes(".attentions.")) {
    for (const [old, current] of OLD_VAE_ATTENTION) name = name.replace(old, current);
  }
  return `vae.${name}`;
}

/** The ways in which checkpoints spell canonical names, the newest first. */
export type Spelling = (canonical: string) => string;

const PLAIN_SPELLINGS: readonly Spelling[] = [
  (canonical) => replacePrefix(canonical, "language_model.", "model."),
];

const MODEL_SPELLINGS: readonly Spelling[] = [
  storedName,
  (canonical) =>
    replacePrefix(
      replacePrefix(canonical, "language_model.", "language_model.model."),
      "vision_tower.",
      "vision_tower.vision_model.",
    ),
  // PaliGemma as transformers 5 saves it.
  (canonical) => replacePrefix(canonical, "language_model.", "language_model.model."),
];

const VAE_SPELLINGS: readonly Spelling[] = [
  storedName,
  (canonical) => {
    let name = storedName(canonical);
    if (name.includes(".attentions.")) {
      for (const [old, current] of OLD_VAE_ATTENTION) name = name.replace(current, old);
    }
    return name;
  },
];

/** The spellings of `model.safetensors`, by the kind of model, or of the autoencoder's file. */
export function spellingsOf(kind: ModelConfig["kind"] | "vae"): readonly Spelling[] {
  if (kind === "vae") return VAE_SPELLINGS;
  return kind === "gemma" || kind === "gemma2" ? PLAIN_SPELLINGS : MODEL_SPELLINGS;
}

/** How a canonical name is spelled in what we write: transformers' newer names, and diffusers' own. */
export function storedName(canonical: string): string {
  if (canonical.startsWith("vae.")) return canonical.slice("vae.".length);
  if (canonical.startsWith("vision_tower."))
    return replacePrefix(canonical, "vision_tower.", "model.vision_tower.vision_model.");
  return /^(language_model|multi_modal_projector)\./.test(canonical)
    ? `model.${canonical}`
    : canonical;
}

function replacePrefix(name: string, prefix: string, by: string): string {
  return name.startsWith(prefix) ? by + name.slice(prefix.length) : name;
}

/**
 * Tensors that published files carry and no computation of ours reads: SigLIP's pooling head, which
 * PaliGemma does not use, and tables that are recomputed.
 */
export function isIgnored(canonical: string): boolean {
  return (
    canonical.startsWith("vision_tower.head.") ||
    canonical === "vision_tower.embeddings.position_ids" ||
    canonical.endsWith(".rotary_emb.inv_freq")
  );
}
