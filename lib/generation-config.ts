/** Settings of sampling: the defaults of `generation_config.json`, and what a call sets instead. */

import type { Fields } from "./checkpoint/fields.js";
import { choiceOption, definedOf, integerOption, numberOption } from "./options.js";

/** "linear": from almost none at the first image token to full at the last (spec section 6). */
export type GuidanceSchedule = "constant" | "linear";
export const SCHEDULES = ["constant", "linear"] as const satisfies GuidanceSchedule[];

/** Order in which an image's cells are drawn. */
export type CellOrder = "random" | "raster";
export const ORDERS = ["random", "raster"] as const satisfies CellOrder[];

export interface ImageSettings {
  /**
   * Diffusion steps per image token. With objective "ddpm" at most the model's timesteps, of which they are a subset;
   * with "flow" at most 10,000.
   */
  steps: number;
  /** How strongly the prompt counts; 1: no guidance, half the work; below 0: away from the prompt. */
  guidance: number;
  guidanceSchedule: GuidanceSchedule;
  /** Scale of the sampling noise; 0: the most likely path. */
  temperature: number;
  order: CellOrder;
  /** Bound on the predicted clean latents, 0 or more; `Infinity`: none. */
  x0Limit: number;
}

export const IMAGE_SETTINGS = [
  "steps",
  "guidance",
  "guidanceSchedule",
  "temperature",
  "order",
  "x0Limit",
] as const satisfies (keyof ImageSettings)[];

export interface TextSettings {
  maxNewTokens: number;
  /** 0: always the most likely token. */
  temperature: number;
}

export const TEXT_SETTINGS = [
  "maxNewTokens",
  "temperature",
] as const satisfies (keyof TextSettings)[];

export interface GenerationConfig {
  image: ImageSettings;
  text: TextSettings;
}

export const DEFAULT_GENERATION: GenerationConfig = {
  image: {
    steps: 50,
    guidance: 3,
    guidanceSchedule: "linear",
    temperature: 1,
    order: "random",
    x0Limit: Infinity,
  },
  text: { maxNewTokens: 64, temperature: 0 },
};

// Far beyond sense, and far within what float32 holds.
const GUIDANCE = { min: -1e4, max: 1e4 };
const TEMPERATURE = { min: 0, max: 1e4 };
const X0_LIMIT = { min: 0, max: 1e30 };
// Equal steps of an integral, which no timesteps limit (spec section 6).
const FLOW_STEPS = 10_000;
const NEW_TOKENS = { min: 1, max: 1 << 24 };

/** The most steps that a model can be asked for; `image`: the part of it that draws. */
export function mostSteps(image: { timesteps: number; flow: boolean }): number {
  return image.flow ? FLOW_STEPS : image.timesteps;
}

/** Reads `generation_config.json`; what it leaves out has the spec's defaults. `most`: of steps. */
export function parseGenerationConfig(fields: Fields, most: number): GenerationConfig {
  const [image, text] = [fields.child("image"), fields.child("text")];
  const defaults = DEFAULT_GENERATION;
  return {
    image: {
      steps: image.integer("steps", {
        min: 1,
        max: most,
        default: Math.min(defaults.image.steps, most),
      }),
      guidance: image.number("guidance", { ...GUIDANCE, default: defaults.image.guidance }),
      guidanceSchedule: image.oneOf("guidance_schedule", SCHEDULES, {
        default: defaults.image.guidanceSchedule,
      }),
      temperature: image.number("temperature", {
        ...TEMPERATURE,
        default: defaults.image.temperature,
      }),
      order: image.oneOf("order", ORDERS, { default: defaults.image.order }),
      x0Limit: image.has("x0_limit") ? image.number("x0_limit", X0_LIMIT) : Infinity,
    },
    text: {
      maxNewTokens: text.integer("max_new_tokens", {
        ...NEW_TOKENS,
        default: defaults.text.maxNewTokens,
      }),
      temperature: text.number("temperature", {
        ...TEMPERATURE,
        default: defaults.text.temperature,
      }),
    },
  };
}

/** The defaults with a call's own settings over them, checked. `most`: of steps. */
export function imageSettings(
  defaults: ImageSettings,
  options: Partial<ImageSettings>,
  most: number,
): ImageSettings {
  const s = { ...defaults, ...definedOf(options) };
  return {
    steps: integerOption("steps", s.steps, { min: 1, max: most }),
    guidance: numberOption("guidance", s.guidance, GUIDANCE),
    guidanceSchedule: choiceOption("guidanceSchedule", s.guidanceSchedule, SCHEDULES),
    temperature: numberOption("temperature", s.temperature, TEMPERATURE),
    order: choiceOption("order", s.order, ORDERS),
    x0Limit: s.x0Limit === Infinity ? Infinity : numberOption("x0Limit", s.x0Limit, X0_LIMIT),
  };
}

/** The same for text. */
export function textSettings(defaults: TextSettings, options: Partial<TextSettings>): TextSettings {
  const s = { ...defaults, ...definedOf(options) };
  return {
    maxNewTokens: integerOption("maxNewTokens", s.maxNewTokens, NEW_TOKENS),
    temperature: numberOption("temperature", s.temperature, TEMPERATURE),
  };
}
