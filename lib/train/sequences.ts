/** Examples as the sequences that the native trainer takes (spec section 5). */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { EOS } from "../checkpoint/config.js";
import { InvalidRecordError, PromptTooLongError, UnsupportedTaskError } from "../errors.js";
import type { NativeTrainingSequence } from "../native.js";
import type { Random } from "../philox.js";
import { imageRows } from "../prefixes.js";
import { normalizedPlanes } from "../preprocess.js";
import { fillTemplate, type TemplateTask } from "../prompts.js";
import type { Pictures } from "./pictures.js";
import type { Said } from "./record.js";
import type { Texts, TrainingExample } from "./source.js";

/**
 * What ends a text that is learned: `<eos>`, which a list of stop tokens may name after others, such as
 * `<end_of_turn>` of instruction-tuned Gemma.
 */
export function endOfText(eosTokens: readonly number[]): number {
  return eosTokens.includes(EOS) ? EOS : eosTokens[0]!;
}

const draws = (task: TemplateTask) => task === "generate" || task === "edit";

/** Throws `UNSUPPORTED_TASK` where a model has no task that could be trained. */
export function expectLearner(checkpoint: Checkpoint): void {
  const { directory, config, spec } = checkpoint;
  if (config === undefined)
    throw new UnsupportedTaskError(
      `${directory} is an autoencoder alone: a run with \`autoencoder\` in place of \`model\` trains it`,
    );
  if (!spec.image && !spec.vision)
    throw new UnsupportedTaskError(
      `${directory} neither draws nor reads images: \`unifluid init --text ${directory}\` makes a model of it that does`,
    );
}

/** Tokens that are remembered of texts at most, each text with what it takes beside its tokens, counted as some. */
const MOST_TOKENS = 4_000_000;
const TOKENS_BESIDE = 40;

export class Sequences {
  /** Prompts repeat; what does not should not fill the memory. */
  private readonly encoded = new Map<string, Int32Array>();
  private remembered = 0;

  /** @param settings.promptDropout How often the prompt of a drawing is emptied. */
  constructor(
    private readonly checkpoint: Checkpoint,
    private readonly settings: { promptDropout: number },
  ) {}

  /** Throws `INVALID_RECORD` where the model lacks a part that a task needs. */
  private expectTask(task: TemplateTask): void {
    const { spec } = this.checkpoint;
    if (draws(task) && !spec.image)
      throw new InvalidRecordError(`the model draws no images, which ${task} needs`);
    if (draws(task) && !spec.vae)
      throw new InvalidRecordError(`the model has no autoencoder, which ${task} needs`);
    if (task !== "generate" && !spec.vision)
      throw new InvalidRecordError(`the model reads no images, which ${task} needs`);
  }

  /** Throws `INVALID_RECORD`, also where the model has no room for it, and what decoding a picture throws. */
  async of(
    example: TrainingExample,
    pictures: Pictures,
    random: Random,
  ): Promise<NativeTrainingSequence> {
    const { task } = example;
    const { config, spec } = this.checkpoint;
    const empty = draws(task) && random.chance(this.settings.promptDropout);
    const { template, learned } = this.tokensOf(empty ? { ...example, prompt: "" } : example);
    const sequence: NativeTrainingSequence = {
      task,
      tokens: Int32Array.from([config!.bosToken, ...template]),
    };
    const picture = await pictures.get(example.image);
    if (task === "generate") sequence.targetLatents = picture.latents;
    else
      sequence.visionPixels = await normalizedPlanes(picture.pixels, this.checkpoint.preprocessor!);
    if (task === "edit") {
      if (spec.image?.editSourceLatents) sequence.sourceLatents = picture.latents;
      sequence.targetLatents = (await pictures.get(example.target!)).latents;
    }
    if (learned)
      sequence.targetTokens = Int32Array.from([...learned, endOfText(config!.eosTokens)]);
    return sequence;
  }

  /**
   * What is read and what is written, without the tokens at their ends. Throws `INVALID_RECORD` where the model lacks a
   * part or has no room.
   */
  tokensOf({ task, prompt, text }: Said & { task: TemplateTask }): {
    template: Int32Array;
    learned?: Int32Array;
  } {
    this.expectTask(task);
    const template = this.ids(fillTemplate(this.checkpoint.config!.templates, task, prompt));
    const learned = text === undefined ? undefined : this.ids(text);
    this.expectLength(task, 1 + template.length, learned && learned.length + 1);
    return { template, learned };
  }

  /** Throws `INVALID_RECORD` unless the model can learn all that may be said. */
  expectAll({ task, said }: Texts): void {
    for (const one of said) this.tokensOf({ task, ...one });
  }

  /** Rows that a sequence of the model may have. */
  private get limit(): number {
    return this.checkpoint.config!.text.maxPositions;
  }

  /** The rule of prompts in inference: what is read and what is made of it share the model's length. */
  private expectLength(task: TemplateTask, tokens: number, learned?: number): void {
    const prompt = tokens + imageRows(this.checkpoint, task);
    const made = learned ?? this.checkpoint.spec.image!.grid ** 2;
    if (prompt + made <= this.limit) return;
    const what = draws(task) ? "image" : "text";
    throw new InvalidRecordError(
      `its prompt takes ${prompt} rows and its ${what} ${made}: ${prompt + made} together, but this model's ` +
        `sequences have at most ${this.limit} (max_position_embeddings)`,
    );
  }

  private ids(text: string): Int32Array {
    const known = this.encoded.get(text);
    if (known) return known;
    const ids = this.encode(text);
    this.remembered += ids.length + TOKENS_BESIDE;
    if (this.remembered > MOST_TOKENS) {
      this.encoded.clear();
      this.remembered = ids.length + TOKENS_BESIDE;
    }
    this.encoded.set(text, ids);
    return ids;
  }

  private encode(text: string): Int32Array {
    try {
      return Int32Array.from(this.checkpoint.tokenizer!.encode(text, this.limit));
    } catch (error) {
      if (!(error instanceof PromptTooLongError)) throw error;
      throw new InvalidRecordError(error.message);
    }
  }
}
