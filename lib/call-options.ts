/** What calls of the model are given: options, items of many, and images and texts that belong together. */

import { InvalidOptionError } from "./errors.js";
import {
  IMAGE_SETTINGS,
  type ImageSettings,
  TEXT_SETTINGS,
  type TextSettings,
} from "./generation-config.js";
import type { ImageInput } from "./image-input.js";
import {
  invalidOption,
  optionsObject,
  priorityOption,
  signalOption,
  stringOption,
} from "./options.js";
import type { Seed } from "./seed.js";

/** Options of all calls. */
export interface CallOptions {
  /** Rejects the call with its reason and frees the sequence at the next step. */
  signal?: AbortSignal;
  /**
   * Of waiting requests, the highest goes first: -1000 to 1000, default 0. One level is worth 64 places in the queue,
   * so no request waits forever.
   */
  priority?: number;
}

/** Drawing options; defaults come from `generation_config.json`. */
export interface DrawOptions extends CallOptions, Partial<ImageSettings> {
  /** Determines the image; image `i` of several gets `seed + i`. Default: random, returned as `image.seed`. */
  seed?: Seed;
}

/** Text options; defaults come from `generation_config.json`. */
export interface WriteOptions extends CallOptions, Partial<TextSettings> {
  /** Determines sampling at temperatures above 0. */
  seed?: Seed;
}

/** What a bulk item may have besides its prompt or image: its own options, and `data` of the caller. */
export type ItemOptions<Options> = Options & {
  /** Anything of yours; ignored, and returned with the result as `item.data`. */
  data?: unknown;
};
/** A prompt with its own options. */
export type PromptItem = { prompt: string } & ItemOptions<DrawOptions>;
/** An item of `generateAll`: a prompt, optionally with its own options. */
export type GenerateItem = string | PromptItem;
/** An item of `editAll`. */
export type EditItem = { image: ImageInput; instruction: string } & ItemOptions<DrawOptions>;
/** An image with its own options. */
export type ImageItem = { image: ImageInput } & ItemOptions<WriteOptions>;
/** An item of `captionAll`: an image, optionally with its own options. */
export type CaptionItem = ImageInput | ImageItem;
/** An item of `answerAll`. */
export type AnswerItem = { image: ImageInput; question: string } & ItemOptions<WriteOptions>;

/**
 * Rejects unknown fields of a bulk item at compile time, as the run does, so that a misspelt option does not go
 * unnoticed. Plain prompts and images are left as they are.
 */
export type OnlyKnown<Item, Known> = Item extends { prompt: unknown } | { image: unknown }
  ? { [Name in Exclude<keyof Item, keyof Known>]: never }
  : unknown;

/** Which logits to compute: for a plain text, or for the text written about an image. */
export type LogitsOptions = CallOptions &
  (
    | {
        /** Token ids of a plain text, `<bos>` included: an array or typed array of numbers. */
        tokens: ArrayLike<number>;
      }
    | {
        image: ImageInput;
        task: "caption" | "answer";
        /** For "answer" only. */
        question?: string;
        /** Token ids that follow the prompt. */
        suffix?: ArrayLike<number>;
      }
  );

/** Options of `decodeLatents`. */
export interface DecodeLatentsOptions extends CallOptions {
  /** In pixels, together with `height`; default: the latents form a square. */
  width?: number;
  height?: number;
}

export const DRAW_OPTIONS = ["seed", "signal", "priority", ...IMAGE_SETTINGS] as const;
export const WRITE_OPTIONS = ["seed", "signal", "priority", ...TEXT_SETTINGS] as const;

/** An item that names its image, rather than being one. */
export function hasImage(item: CaptionItem): item is ImageItem {
  return typeof item === "object" && item !== null && "image" in item;
}

/**
 * An item's own options of those that there are; one that is undefined leaves the run's. `fields` are the others that
 * it may have beside `data`. Throws `INVALID_OPTION`.
 */
export function itemOptions<Options>(
  item: object,
  fields: readonly string[],
  options: readonly string[],
): Partial<Options> {
  const own: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(item)) {
    if (options.includes(name)) {
      if (value !== undefined) own[name] = value;
    } else if (name !== "data" && !fields.includes(name)) {
      throw new InvalidOptionError(
        `expected only ${[...fields, ...options].join(", ")} and data as fields of an item ` +
          `but received ${JSON.stringify(name)}: put your own values in \`data\``,
      );
    }
  }
  return own as Partial<Options>;
}

export function callOptions(options: CallOptions | undefined): CallOptions {
  const { signal, priority } = optionsObject(options, ["signal", "priority"]);
  return { signal: signalOption(signal), priority: priorityOption(priority) };
}

/** One text or a list of them, as a list. */
export function listOf(texts: string | readonly string[], name: string): readonly string[] {
  if (!Array.isArray(texts)) return [stringOption(name, texts)];
  // Not `map`, which passes over what an array lacks in its middle.
  return Array.from(texts, (text, i) => stringOption(`${name} ${i}`, text));
}

/** Images and texts that belong together; a single one goes with all of the other side. */
export function pairsOf(
  images: ImageInput | readonly ImageInput[],
  texts: string | readonly string[],
  name: string,
): (readonly [ImageInput, string])[] {
  const strings = listOf(texts, name);
  if (!Array.isArray(images)) return strings.map((text) => [images as ImageInput, text] as const);
  if (!Array.isArray(texts)) return Array.from(images, (image) => [image, strings[0]!] as const);
  if (images.length !== strings.length) {
    throw invalidOption(
      `as many ${name}s as images (${images.length})`,
      `${name}s`,
      strings.length,
    );
  }
  return Array.from(images, (image, i) => [image, strings[i]!] as const);
}

/** The image of an item that has one result: a list would have a list of them. */
export function oneImage(image: ImageInput): ImageInput {
  if (Array.isArray(image)) throw invalidOption("one image", "image", `${image.length} images`);
  return image;
}
