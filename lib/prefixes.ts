/** Builds what a sequence starts from (spec section 5), and keeps it within the model's length. */

import type { Checkpoint } from "./checkpoint/checkpoint.js";
import { visionRows } from "./checkpoint/vision-config.js";
import { PromptTooLongError } from "./errors.js";
import { decodeImage, type ImageInput } from "./image-input.js";
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

/** Not as arguments of a call, which can have no hundred thousand: a text that is too long must reach its check. */
function behind(first: number, ids: readonly number[]): Int32Array {
  const tokens = new Int32Array(1 + ids.length);
  tokens[0] = first;
  tokens.set(ids, 1);
  return tokens;
}

export class PrefixBuilder {
  constructor(
    private readonly checkpoint: Checkpoint,
    private readonly addon: NativeAddon,
  ) {}

  /** The prefix of a task; all tasks but "generate" look at an image. */
  async build(
    task: TemplateTask,
    text: string,
    image?: ImageInput,
    signal?: AbortSignal,
  ): Promise<Prefix> {
    const native: NativePrefix = { tokens: this.templateTokens(task, text) };
    const emptyTokens = this.templateTokens(task, "");
    let rows = native.tokens.length;
    if (task !== "generate") rows += await this.addImage(native, task, image, signal);
    return { native, emptyTokens, rows };
  }

  /** `<bos>` and the text, as a plain Gemma continues it. */
  plain(text: string): Prefix {
    const { config, tokenizer } = this.checkpoint;
    const tokens = behind(config!.bosToken, tokenizer!.encode(text));
    return { native: { tokens }, emptyTokens: tokens, rows: tokens.length };
  }

  private templateTokens(task: TemplateTask, text: string): Int32Array {
    const { config, tokenizer } = this.checkpoint;
    const ids = tokenizer!.encode(fillTemplate(config!.templates, task, text));
    return behind(config!.bosToken, ids);
  }

  /** Adds the pixels that a task looks at; the rows that they take. */
  private async addImage(
    native: NativePrefix,
    task: TemplateTask,
    input: ImageInput | undefined,
    signal?: AbortSignal,
  ): Promise<number> {
    const { preprocessor, spec } = this.checkpoint;
    const vision = spec.vision!;
    const image = await decodeImage(input as ImageInput, { signal });
    native.visionPixels = await toVisionPixels(image, preprocessor!, this.addon, vision.imageSize);
    let rows = visionRows(vision);
    if (task === "edit" && spec.image!.editSourceLatents) {
      const side = this.checkpoint.config!.image!.imageSize;
      native.sourcePixels = await toVaePixels(image, side, side, this.addon);
      rows += spec.image!.grid ** 2;
    }
    return rows;
  }

  /** Throws unless a sequence of this prefix may have `suffix` more rows. */
  checkLength(prefixRows: number, suffix: number): void {
    const limit = this.checkpoint.config!.text.maxPositions;
    if (prefixRows + suffix > limit) {
      throw new PromptTooLongError(
        `the prompt takes ${prefixRows} rows and what follows it ${suffix}: ${prefixRows + suffix} ` +
          `together, but this model's sequences have at most ${limit} (max_position_embeddings)`,
      );
    }
  }

  /** Rows left behind a prefix; at least one, or it is too long. */
  room(prefixRows: number): number {
    this.checkLength(prefixRows, 1);
    return this.checkpoint.config!.text.maxPositions - prefixRows;
  }
}
