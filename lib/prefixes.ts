/** Builds what a sequence starts from (spec section 5), and keeps it within the model's length. */

import type { Checkpoint } from "./checkpoint/checkpoint.js";
import { visionRows } from "./checkpoint/vision-config.js";
import { PromptTooLongError } from "./errors.js";
import { type ImageInput, withImage } from "./image-input.js";
import type { NativeAddon, NativePrefix } from "./native.js";
import { toVaePixels, toVisionPixels } from "./preprocess.js";
import { fillTemplate, type TemplateTask } from "./prompts.js";

export interface Prefix {
  native: NativePrefix;
  /** The tokens of the same task with an empty text. */
  emptyTokens: Int32Array;
  /** Rows it takes in the decoder. */
  rows: number;
}

/** A task that looks at an image. */
type ReadingTask = Exclude<TemplateTask, "generate">;

/** The pixels of an image that a task looks at, and the rows that they take. */
interface PreparedImage {
  pixels: Omit<NativePrefix, "tokens">;
  rows: number;
}

/** Not as arguments of a call, which can have no hundred thousand: a text that is too long must reach its check. */
function behind(first: number, ids: readonly number[]): Int32Array {
  const tokens = new Int32Array(1 + ids.length);
  tokens[0] = first;
  tokens.set(ids, 1);
  return tokens;
}

function templateTokens(
  { config, tokenizer }: Checkpoint,
  task: TemplateTask,
  text: string,
): Int32Array {
  const filled = fillTemplate(config!.templates, task, text);
  return behind(config!.bosToken, tokenizer!.encode(filled, config!.text.maxPositions));
}

/** Rows that the image of a task takes: those of the vision tower, and its latents where an edit has them. */
export function imageRows(checkpoint: Checkpoint, task: TemplateTask): number {
  if (task === "generate") return 0;
  const { spec } = checkpoint;
  const source = task === "edit" && spec.image!.editSourceLatents;
  return visionRows(spec.vision!) + (source ? spec.image!.grid ** 2 : 0);
}

/** Rows that the prefix of a task takes, without a look at its image. */
export function prefixRows(checkpoint: Checkpoint, task: TemplateTask, text: string): number {
  return templateTokens(checkpoint, task, text).length + imageRows(checkpoint, task);
}

/** Throws `PROMPT_TOO_LONG` unless a sequence of a prefix of so many rows may have `suffix` more. */
export function checkLength(checkpoint: Checkpoint, prefixRows: number, suffix: number): void {
  const limit = checkpoint.config!.text.maxPositions;
  if (prefixRows + suffix > limit) {
    throw new PromptTooLongError(
      `the prompt takes ${prefixRows} rows and what follows it ${suffix}: ${prefixRows + suffix} ` +
        `together, but this model's sequences have at most ${limit} (max_position_embeddings)`,
    );
  }
}

export class PrefixBuilder {
  constructor(
    private readonly checkpoint: Checkpoint,
    private readonly addon: NativeAddon,
  ) {}

  /** The prefix of a drawing from a text alone. */
  generate(text: string): Prefix {
    return this.prefix("generate", text, { pixels: {}, rows: 0 });
  }

  /** The prefixes of images and the texts with them. An image that several have is read and prepared once. */
  read(
    task: ReadingTask,
    pairs: readonly (readonly [ImageInput, string])[],
    signal?: AbortSignal,
  ): Promise<Prefix[]> {
    const prepared = new Map<ImageInput, Promise<PreparedImage>>();
    const prepare = (image: ImageInput) => {
      const known = prepared.get(image) ?? this.prepare(task, image, signal);
      prepared.set(image, known);
      return known;
    };
    return Promise.all(
      pairs.map(async ([image, text]) => this.prefix(task, text, await prepare(image))),
    );
  }

  /** `<bos>` and the text, which has no prefix and is continued. */
  plain(text: string): Prefix {
    const { config, tokenizer } = this.checkpoint;
    return this.plainTokens(
      behind(config!.bosToken, tokenizer!.encode(text, config!.text.maxPositions)),
    );
  }

  /** The same of token ids, `<bos>` included. */
  plainTokens(tokens: Int32Array): Prefix {
    return { native: { tokens, plainText: true }, emptyTokens: tokens, rows: tokens.length };
  }

  private prefix(task: TemplateTask, text: string, { pixels, rows }: PreparedImage): Prefix {
    const tokens = templateTokens(this.checkpoint, task, text);
    const emptyTokens = templateTokens(this.checkpoint, task, "");
    return { native: { ...pixels, tokens }, emptyTokens, rows: tokens.length + rows };
  }

  private prepare(
    task: ReadingTask,
    input: ImageInput,
    signal?: AbortSignal,
  ): Promise<PreparedImage> {
    const { preprocessor, spec } = this.checkpoint;
    const vision = spec.vision!;
    return withImage(input, { signal }, async (image) => {
      const visionPixels = await toVisionPixels(image, preprocessor!, this.addon, vision.imageSize);
      const rows = imageRows(this.checkpoint, task);
      if (task !== "edit" || !spec.image!.editSourceLatents)
        return { pixels: { visionPixels }, rows };
      const side = this.checkpoint.config!.image!.imageSize;
      const sourcePixels = await toVaePixels(image, side, side, this.addon);
      return { pixels: { visionPixels, sourcePixels }, rows };
    });
  }

  /** Throws unless a sequence of this prefix may have `suffix` more rows. */
  checkLength(prefixRows: number, suffix: number): void {
    checkLength(this.checkpoint, prefixRows, suffix);
  }

  /** Rows left behind a prefix; at least one, or it is too long. */
  room(prefixRows: number): number {
    this.checkLength(prefixRows, 1);
    return this.checkpoint.config!.text.maxPositions - prefixRows;
  }
}
