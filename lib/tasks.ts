/** What a checkpoint's weights can do, and what is missing for what they cannot. */

import type { Checkpoint } from "./checkpoint/checkpoint.js";
import { UnsupportedTaskError } from "./errors.js";

/** Tasks that a model may support. */
export type Task = "generate" | "edit" | "caption" | "answer" | "complete" | "encode" | "decode";

type Part = "decoder" | "plainText" | "vision" | "diffusionHead" | "autoencoder" | "sourceEncoder";

const PARTS: Readonly<Record<Part, { has(c: Checkpoint): boolean; name: string }>> = {
  decoder: {
    has: (c) => c.spec.text !== undefined,
    name: "a decoder with its tokenizer (config.json, model.safetensors)",
  },
  plainText: {
    // PaliGemma is for understanding images only (spec section 1).
    has: (c) => c.kind !== "paligemma",
    name: 'a plain text model (model_type "gemma", "gemma2" or "unifluid")',
  },
  vision: {
    has: (c) => c.spec.vision !== undefined,
    name: "a vision tower (vision_config)",
  },
  diffusionHead: {
    has: (c) => c.spec.image !== undefined,
    name: 'a diffusion head (diffusion_head, of model_type "unifluid")',
  },
  autoencoder: {
    has: (c) => c.spec.vae !== undefined,
    name: "an autoencoder (vae/config.json with its weights)",
  },
  sourceEncoder: {
    has: (c) => c.spec.vae !== undefined || !c.spec.image?.editSourceLatents,
    name: "an autoencoder for the source image (vae/config.json with its weights)",
  },
};

const NEEDS = {
  generate: ["decoder", "diffusionHead", "autoencoder"],
  generateLatents: ["decoder", "diffusionHead"],
  edit: ["decoder", "diffusionHead", "vision", "autoencoder"],
  editLatents: ["decoder", "diffusionHead", "vision", "sourceEncoder"],
  caption: ["decoder", "vision"],
  answer: ["decoder", "vision"],
  complete: ["decoder", "plainText"],
  encode: ["autoencoder"],
  imageFeatures: ["vision"],
  decode: ["autoencoder"],
  tokenize: ["decoder"],
} as const satisfies Record<string, readonly Part[]>;

export type Ability = keyof typeof NEEDS;

const TASKS: readonly Task[] = [
  "generate",
  "edit",
  "caption",
  "answer",
  "complete",
  "encode",
  "decode",
];

function missingPart(checkpoint: Checkpoint, ability: Ability): string | undefined {
  const part = NEEDS[ability].find((name) => !PARTS[name].has(checkpoint));
  return part && PARTS[part].name;
}

/** The tasks that a checkpoint's weights can do. */
export function tasksOf(checkpoint: Checkpoint): Task[] {
  return TASKS.filter((task) => missingPart(checkpoint, task) === undefined);
}

/** Throws `UnsupportedTaskError`, naming the missing part, where the weights cannot do it. */
export function requireAbility(checkpoint: Checkpoint, ability: Ability): void {
  const part = missingPart(checkpoint, ability);
  if (part === undefined) return;
  const can = tasksOf(checkpoint).join(", ");
  throw new UnsupportedTaskError(
    `this checkpoint (${checkpoint.kind}) cannot ${ability}: it lacks ${part}; it can ${can}`,
  );
}
