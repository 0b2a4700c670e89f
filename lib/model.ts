/** The model as people use it. */

import { follow, leavable, underEach } from "./abort.js";
import { findAddon } from "./addon.js";
import {
  type AnyIterable,
  type BulkOptions,
  type BulkResult,
  bulkSettings,
  runAll,
} from "./bulk.js";
import {
  type AnswerItem,
  type CallOptions,
  type CaptionItem,
  callOptions,
  type DecodeLatentsOptions,
  DRAW_OPTIONS,
  type DrawOptions,
  type EditItem,
  type GenerateItem,
  hasImage,
  type ImageItem,
  itemOptions,
  type LogitsOptions,
  listOf,
  type OnlyKnown,
  oneImage,
  type PromptItem,
  pairsOf,
  WRITE_OPTIONS,
  type WriteOptions,
} from "./call-options.js";
import { type Checkpoint, readCheckpoint } from "./checkpoint/checkpoint.js";
import { locateCheckpoint } from "./checkpoint/locate.js";
import { type DrawingProgress, drawingSteps } from "./drawing-stream.js";
import { InvalidOptionError } from "./errors.js";
import { imageSettings, mostSteps, textSettings } from "./generation-config.js";
import { Image } from "./image.js";
import { type ImageInput, withImage } from "./image-input.js";
import { encodedSize, latentGrid } from "./latent-grid.js";
import { loadModel } from "./load-model.js";
import { type LoadOptions, parseLoadOptions } from "./load-options.js";
import { describeModel, type ModelInfo } from "./model-info.js";
import type { NativeAddon, NativeDrawRequest, NativeStats, NativeTextRequest } from "./native.js";
import {
  choiceOption,
  floatsOption,
  invalidOption,
  optionsObject,
  priorityOption,
  signalOption,
  stringOption,
  tokensOption,
} from "./options.js";
import { type Prefix, PrefixBuilder } from "./prefixes.js";
import { toVaePixels, toVisionPixels } from "./preprocess.js";
import type { DoneEvent, Requests, WhenFull } from "./requests.js";
import { parseSeed, type Seed, seedOfItem } from "./seed.js";
import { requireAbility, type Task } from "./tasks.js";
import { strip, textPieces, type WrittenText } from "./text-stream.js";
import type { Tokenizer } from "./tokenizer.js";

/** What the items of a bulk run are: their fields beside options, the options' names, and a check of the run's. */
interface BulkKind<Options> {
  fields: readonly string[];
  options: readonly (keyof Options & string)[];
  check(options: Options): void;
}

/** Reads what a call is about, images above all. */
type MakePrefixes = (signal?: AbortSignal) => Promise<Prefix[]>;

/** A loaded model. Calls may run concurrently; the engine batches their work. */
export class UniFluid implements AsyncDisposable {
  private readonly prefixes: PrefixBuilder;

  private constructor(
    private readonly checkpoint: Checkpoint,
    private readonly addon: NativeAddon,
    private readonly requests: Requests,
    /** What was loaded, and what it can do. */
    readonly info: ModelInfo,
    /**
     * How many requests it takes at once: `maxSequences` running plus `maxQueue` waiting; `Infinity` without
     * `maxQueue`. A call with more prompts or images than that is refused with `INVALID_OPTION`.
     */
    readonly capacity: number,
    /** So many items of a bulk run keep the engine full: those that run, and the next ones, ready. */
    private readonly bulkConcurrency: number,
  ) {
    // TypeScript refuses it; a program in JavaScript would get a model that fails at its first call.
    if (addon === undefined) {
      throw new InvalidOptionError("use UniFluid.load: a model is loaded, not constructed");
    }
    this.prefixes = new PrefixBuilder(checkpoint, addon);
  }

  /**
   * Loads a checkpoint directory by path or file URL, or a model included in this package by name. The weights are
   * memory-mapped, not copied.
   */
  static async load(model: string | URL, options?: LoadOptions): Promise<UniFluid> {
    const loaded = findAddon();
    const { addon } = loaded;
    const parsed = parseLoadOptions(options, addon);
    const { signal } = parsed;
    signal?.throwIfAborted();
    const checkpoint = await readCheckpoint(await locateCheckpoint(model), signal);
    signal?.throwIfAborted();
    const { native, requests, chosen } = await loadModel(checkpoint, loaded, parsed);
    const { maxSequences, maxQueue = Infinity } = parsed.native;
    if (signal?.aborted) {
      await requests.dispose();
      throw signal.reason;
    }
    return new UniFluid(
      checkpoint,
      addon,
      requests,
      describeModel(checkpoint, native.description(), chosen),
      maxSequences + maxQueue,
      maxSequences + Math.min(maxQueue, maxSequences),
    );
  }

  /** The tasks that the weights support. */
  get tasks(): readonly Task[] {
    return this.info.tasks;
  }

  // ---- images out ----

  /** Draws a prompt, or several at once. */
  generate(prompt: string, options?: DrawOptions): Promise<Image>;
  generate(prompts: readonly string[], options?: DrawOptions): Promise<Image[]>;
  generate(prompts: string | readonly string[], options?: DrawOptions): Promise<Image | Image[]>;
  async generate(
    prompts: string | readonly string[],
    options?: DrawOptions,
  ): Promise<Image | Image[]> {
    requireAbility(this.checkpoint, "generate");
    const list = this.fitting(listOf(prompts, "prompt"));
    const images = await this.draw(this.generatePrefixes(list), options, true, toImage);
    return Array.isArray(prompts) ? images : images[0]!;
  }

  /** Draws a prompt, yielding a step per image token; the last has the `image`. */
  generateStream(
    prompt: string,
    options?: DrawOptions,
  ): AsyncGenerator<DrawingProgress, void, undefined> {
    return this.drawStream(() => {
      requireAbility(this.checkpoint, "generate");
      return this.generatePrefixes([stringOption("prompt", prompt)]);
    }, options);
  }

  /** Like `generate`, but returns latents: [grid * grid, token channels], cells in raster order. */
  async generateLatents(prompt: string, options?: DrawOptions): Promise<Float32Array> {
    requireAbility(this.checkpoint, "generateLatents");
    const prefixes = this.generatePrefixes([stringOption("prompt", prompt)]);
    const [latents] = await this.draw(prefixes, options, false, (done) => done.latents!);
    return latents!;
  }

  /**
   * Redraws an image as instructed. With several images and one instruction, or one image and several instructions,
   * every pair is drawn; two lists are paired by index.
   */
  edit(image: ImageInput, instruction: string, options?: DrawOptions): Promise<Image>;
  edit(
    images: readonly ImageInput[],
    instructions: string | readonly string[],
    options?: DrawOptions,
  ): Promise<Image[]>;
  edit(image: ImageInput, instructions: readonly string[], options?: DrawOptions): Promise<Image[]>;
  edit(
    images: ImageInput | readonly ImageInput[],
    instructions: string | readonly string[],
    options?: DrawOptions,
  ): Promise<Image | Image[]>;
  async edit(
    images: ImageInput | readonly ImageInput[],
    instructions: string | readonly string[],
    options?: DrawOptions,
  ): Promise<Image | Image[]> {
    requireAbility(this.checkpoint, "edit");
    const pairs = this.fitting(pairsOf(images, instructions, "instruction"));
    const edited = await this.draw(this.editPrefixes(pairs), options, true, toImage);
    return Array.isArray(images) || Array.isArray(instructions) ? edited : edited[0]!;
  }

  /** Edits an image, yielding a step per image token; the last has the `image`. */
  editStream(
    image: ImageInput,
    instruction: string,
    options?: DrawOptions,
  ): AsyncGenerator<DrawingProgress, void, undefined> {
    return this.drawStream(() => {
      requireAbility(this.checkpoint, "edit");
      return this.editPrefixes([[image, stringOption("instruction", instruction)]]);
    }, options);
  }

  /** Like `edit`, but returns latents: [grid * grid, token channels], cells in raster order. */
  async editLatents(
    image: ImageInput,
    instruction: string,
    options?: DrawOptions,
  ): Promise<Float32Array> {
    requireAbility(this.checkpoint, "editLatents");
    const pair = [image, stringOption("instruction", instruction)] as const;
    const prefixes = this.editPrefixes([pair]);
    const [latents] = await this.draw(prefixes, options, false, (done) => done.latents!);
    return latents!;
  }

  // ---- text out ----

  /** Describes an image, or several at once. */
  caption(image: ImageInput, options?: WriteOptions): Promise<string>;
  caption(images: readonly ImageInput[], options?: WriteOptions): Promise<string[]>;
  caption(
    images: ImageInput | readonly ImageInput[],
    options?: WriteOptions,
  ): Promise<string | string[]>;
  async caption(
    images: ImageInput | readonly ImageInput[],
    options?: WriteOptions,
  ): Promise<string | string[]> {
    requireAbility(this.checkpoint, "caption");
    const pairs = this.fitting(pairsOf(images, "", "caption"));
    const texts = await this.write(
      (signal) => this.prefixes.read("caption", pairs, signal),
      options,
    );
    return Array.isArray(images) ? texts.map(strip) : strip(texts[0]!);
  }

  /** Yields a caption in pieces as it is written; returns token counts and how it ended. */
  captionStream(
    image: ImageInput,
    options?: WriteOptions,
  ): AsyncGenerator<string, WrittenText, undefined> {
    const begin = () => {
      requireAbility(this.checkpoint, "caption");
      return (signal?: AbortSignal) => this.prefixes.read("caption", [[image, ""]], signal);
    };
    return this.writeStream(begin, options, true);
  }

  /**
   * Answers a question about an image. With several images and one question, or one image and several questions, every
   * pair is answered; two lists are paired by index.
   */
  answer(image: ImageInput, question: string, options?: WriteOptions): Promise<string>;
  answer(
    images: readonly ImageInput[],
    questions: string | readonly string[],
    options?: WriteOptions,
  ): Promise<string[]>;
  answer(
    image: ImageInput,
    questions: readonly string[],
    options?: WriteOptions,
  ): Promise<string[]>;
  answer(
    images: ImageInput | readonly ImageInput[],
    questions: string | readonly string[],
    options?: WriteOptions,
  ): Promise<string | string[]>;
  async answer(
    images: ImageInput | readonly ImageInput[],
    questions: string | readonly string[],
    options?: WriteOptions,
  ): Promise<string | string[]> {
    requireAbility(this.checkpoint, "answer");
    const pairs = this.fitting(pairsOf(images, questions, "question"));
    const texts = await this.write(
      (signal) => this.prefixes.read("answer", pairs, signal),
      options,
    );
    const many = Array.isArray(images) || Array.isArray(questions);
    return many ? texts.map(strip) : strip(texts[0]!);
  }

  /** Yields an answer in pieces as it is written; returns token counts and how it ended. */
  answerStream(
    image: ImageInput,
    question: string,
    options?: WriteOptions,
  ): AsyncGenerator<string, WrittenText, undefined> {
    const begin = () => {
      requireAbility(this.checkpoint, "answer");
      const pair = [image, stringOption("question", question)] as const;
      return (signal?: AbortSignal) => this.prefixes.read("answer", [pair], signal);
    };
    return this.writeStream(begin, options, true);
  }

  /** Continues a text, or several at once; returns only the continuation. */
  complete(text: string, options?: WriteOptions): Promise<string>;
  complete(texts: readonly string[], options?: WriteOptions): Promise<string[]>;
  complete(texts: string | readonly string[], options?: WriteOptions): Promise<string | string[]>;
  async complete(
    texts: string | readonly string[],
    options?: WriteOptions,
  ): Promise<string | string[]> {
    requireAbility(this.checkpoint, "complete");
    const list = this.fitting(listOf(texts, "text"));
    const written = await this.write(async () => list.map((t) => this.prefixes.plain(t)), options);
    return Array.isArray(texts) ? written : written[0]!;
  }

  /** Yields a continuation in pieces as it is written; returns token counts and how it ended. */
  completeStream(
    text: string,
    options?: WriteOptions,
  ): AsyncGenerator<string, WrittenText, undefined> {
    const begin = () => {
      requireAbility(this.checkpoint, "complete");
      const prefix = this.prefixes.plain(stringOption("text", text));
      return async () => [prefix];
    };
    return this.writeStream(begin, options, false);
  }

  // ---- many items ----

  /**
   * Draws every prompt of an iterable, keeping the engine full, and yields results as they finish:
   * `{ index, item, value }`, or `{ index, item, error }` for a failure. Options apply to all items, but an item's
   * own take precedence; with a `seed`, item `i` gets `seed + i`. Memory is bounded however long the source is: items
   * are read only as results are taken.
   */
  generateAll<Item extends GenerateItem>(
    prompts: AnyIterable<Item & OnlyKnown<Item, PromptItem>>,
    options?: DrawOptions & BulkOptions,
  ): AsyncGenerator<BulkResult<Item, Image>, void, undefined> {
    requireAbility(this.checkpoint, "generate");
    const draw = (item: Item, given: DrawOptions) => {
      const { prompt } = typeof item === "string" ? { prompt: item } : (item as PromptItem);
      return this.drawItem(this.generatePrefixes([stringOption("prompt", prompt)]), given);
    };
    return this.all<Item, Image, DrawOptions>(prompts, options, this.drawn(["prompt"]), draw);
  }

  /** Like `generateAll`, but edits the image of each item. */
  editAll<Item extends EditItem>(
    items: AnyIterable<Item & OnlyKnown<Item, EditItem>>,
    options?: DrawOptions & BulkOptions,
  ): AsyncGenerator<BulkResult<Item, Image>, void, undefined> {
    requireAbility(this.checkpoint, "edit");
    const edit = ({ image, instruction }: Item, given: DrawOptions) =>
      this.drawItem(
        this.editPrefixes([[oneImage(image), stringOption("instruction", instruction)]]),
        given,
      );
    const kind = this.drawn(["image", "instruction"]);
    return this.all<Item, Image, DrawOptions>(items, options, kind, edit);
  }

  /** Like `generateAll`, but describes each image. */
  captionAll<Item extends CaptionItem>(
    images: AnyIterable<Item & OnlyKnown<Item, ImageItem>>,
    options?: WriteOptions & BulkOptions,
  ): AsyncGenerator<BulkResult<Item, string>, void, undefined> {
    requireAbility(this.checkpoint, "caption");
    const caption = (item: CaptionItem, given: WriteOptions) =>
      this.writeItem("caption", oneImage(hasImage(item) ? item.image : item), "", given);
    return this.all<Item, string, WriteOptions>(images, options, this.written(["image"]), caption);
  }

  /** Like `generateAll`, but answers each item's question about its image. */
  answerAll<Item extends AnswerItem>(
    items: AnyIterable<Item & OnlyKnown<Item, AnswerItem>>,
    options?: WriteOptions & BulkOptions,
  ): AsyncGenerator<BulkResult<Item, string>, void, undefined> {
    requireAbility(this.checkpoint, "answer");
    const answer = ({ image, question }: Item, given: WriteOptions) =>
      this.writeItem("answer", oneImage(image), stringOption("question", question), given);
    const kind = this.written(["image", "question"]);
    return this.all<Item, string, WriteOptions>(items, options, kind, answer);
  }

  /** Of a bulk run: its items wait for room in the queue. */
  private async drawItem(prefixes: MakePrefixes, options: DrawOptions): Promise<Image> {
    const [image] = await this.draw(prefixes, options, true, toImage, "wait");
    return image!;
  }

  private async writeItem(
    task: "caption" | "answer",
    image: ImageInput,
    question: string,
    options: WriteOptions,
  ): Promise<string> {
    const read: MakePrefixes = (signal) => this.prefixes.read(task, [[image, question]], signal);
    const [text] = await this.write(read, options, "wait");
    return strip(text!);
  }

  private drawn(fields: string[]): BulkKind<DrawOptions> {
    return { fields, options: DRAW_OPTIONS, check: (options) => this.drawing(options) };
  }

  private written(fields: string[]): BulkKind<WriteOptions> {
    return { fields, options: WRITE_OPTIONS, check: (options) => this.writing(options) };
  }

  private all<Item, Value, Options extends CallOptions & { seed?: Seed }>(
    items: AnyIterable<Item>,
    options: (Options & BulkOptions) | undefined,
    kind: BulkKind<Options>,
    call: (item: Item, options: Options) => Promise<Value>,
  ): AsyncGenerator<BulkResult<Item, Value>, void, undefined> {
    this.requests.model();
    const { settings, rest } = bulkSettings(options, this.bulkConcurrency, kind.options);
    // What is wrong for all of them is thrown once, and before the first is taken.
    kind.check(rest as unknown as Options);
    const seed = rest.seed === undefined ? undefined : parseSeed(rest.seed);
    return runAll(
      items,
      async (item, index, signal) => {
        if (typeof item !== "string" && (typeof item !== "object" || item === null)) {
          throw invalidOption("a string or an object", `item ${index}`, item);
        }
        const named = typeof item === "object" && kind.fields.some((field) => field in item);
        const own: Partial<Options> = named ? itemOptions(item, kind.fields, kind.options) : {};
        const seeded = seed === undefined ? {} : { seed: seedOfItem(seed, index) };
        const given = { ...rest, ...seeded, ...own } as unknown as Options;
        return underEach([signal, signalOption(own.signal)], (ends) =>
          call(item, { ...given, signal: ends }),
        );
      },
      settings,
    );
  }

  // ---- numbers ----

  /**
   * Computes logits, row-major. Plain text: [tokens, vocabulary]. With an image: [suffix + 1, vocabulary], where row 0
   * predicts the suffix's first token.
   */
  async logits(options: LogitsOptions): Promise<Float32Array> {
    const o = optionsObject(options as object as Record<string, unknown>, [
      "tokens",
      "image",
      "task",
      "question",
      "suffix",
      "signal",
      "priority",
    ]);
    const signal = signalOption(o.signal);
    const priority = priorityOption(o.priority);
    const plain = o.tokens !== undefined;
    requireAbility(this.checkpoint, plain ? "complete" : "answer");
    this.requests.model();
    const { vocabSize } = this.checkpoint.spec.text!;
    const suffix = tokensOption("suffix", o.suffix ?? [], vocabSize, { empty: true });
    let prefix: Prefix;
    if (plain) {
      for (const name of ["image", "task", "question"] as const)
        if (o[name] !== undefined) throw invalidOption("no value beside tokens", name, o[name]);
      prefix = this.prefixes.plainTokens(tokensOption("tokens", o.tokens, vocabSize));
    } else {
      const task = choiceOption("task", o.task, ["caption", "answer"]);
      const question = task === "answer" ? stringOption("question", o.question) : "";
      const pair = [o.image as ImageInput, question] as const;
      const read = (ends: AbortSignal) => this.prefixes.read(task, [pair], ends);
      [prefix] = (await this.requests.prepare(read, signal)) as [Prefix];
    }
    this.prefixes.checkLength(prefix.rows, suffix.length);
    const request = { kind: "score", prefix: prefix.native, suffix, priority } as const;
    return (await this.requests.run(request, signal)).logits!;
  }

  /**
   * Computes the vision tower's last hidden states for an image, before the projector: [rows, width], one row per
   * patch; the width is SigLIP's `hidden_size`.
   */
  async imageFeatures(image: ImageInput, options?: CallOptions): Promise<Float32Array> {
    requireAbility(this.checkpoint, "imageFeatures");
    const { signal, priority } = callOptions(options);
    this.requests.model();
    const { preprocessor, spec } = this.checkpoint;
    const { imageSize } = spec.vision!;
    const pixels = await this.requests.prepare(
      (ends) =>
        withImage(image, { signal: ends }, (decoded) =>
          toVisionPixels(decoded, preprocessor!, this.addon, imageSize),
        ),
      signal,
    );
    const done = await this.requests.run({ kind: "features", pixels, priority }, signal);
    return done.features!;
  }

  /**
   * Encodes an image to latents, [grid * grid, token channels]: the mean of their distribution, shifted and scaled as
   * the model draws them and `decodeLatents` expects them. The image is resized to the model's size; an autoencoder
   * alone accepts any image whose sides are multiples of its factor, and returns a row per latent cell.
   */
  async encodeImage(image: ImageInput, options?: CallOptions): Promise<Float32Array> {
    requireAbility(this.checkpoint, "encode");
    const { signal, priority } = callOptions(options);
    this.requests.model();
    const prepared = await this.requests.prepare(
      (ends) =>
        withImage(image, { signal: ends }, async (decoded) => {
          const [width, height] = encodedSize(this.checkpoint, decoded);
          return { width, height, pixels: await toVaePixels(decoded, width, height, this.addon) };
        }),
      signal,
    );
    const done = await this.requests.run({ kind: "encode", ...prepared, priority }, signal);
    return done.latents!;
  }

  /** Decodes latents, [cells, token channels], cells in raster order, to an image. */
  async decodeLatents(latents: Float32Array, options?: DecodeLatentsOptions): Promise<Image> {
    requireAbility(this.checkpoint, "decode");
    const o = optionsObject(options, ["width", "height", "signal", "priority"]);
    const { signal, priority } = callOptions({ signal: o.signal, priority: o.priority });
    const values = floatsOption("latents", latents);
    const [columns, rows] = latentGrid(this.checkpoint, values.length, o.width, o.height);
    const request = { kind: "decode", latents: values, columns, rows, priority } as const;
    return toImage(await this.requests.run(request, signal));
  }

  /** Encodes a text to token ids; adds no special tokens. */
  tokenize(text: string): number[] {
    return this.tokenizer().encode(stringOption("text", text));
  }

  /** Decodes token ids to text; omits special tokens. */
  detokenize(tokens: ArrayLike<number>): string {
    const tokenizer = this.tokenizer();
    const { vocabSize } = this.checkpoint.spec.text!;
    return tokenizer.decode(tokensOption("tokens", tokens, vocabSize, { empty: true }));
  }

  private tokenizer(): Tokenizer {
    this.requests.model();
    requireAbility(this.checkpoint, "tokenize");
    return this.checkpoint.tokenizer!;
  }

  /** The engine's load, counters and memory use. */
  stats(): NativeStats {
    return this.requests.model().stats();
  }

  // ---- the end ----

  /** Frees the model. Calls still running, and all later ones, reject with code `DISPOSED`. */
  dispose(): Promise<void> {
    return this.requests.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  // ---- how ----

  /** Before anything is read or queued: more than the queue can ever take would be refused as if it might later. */
  private fitting<T>(items: readonly T[]): readonly T[] {
    if (items.length <= this.capacity) return items;
    const limit = `at most ${this.capacity} requests (maxSequences and maxQueue)`;
    throw invalidOption(limit, "one call", items.length);
  }

  private generatePrefixes(prompts: readonly string[]) {
    return async () => prompts.map((prompt) => this.prefixes.generate(prompt));
  }

  private editPrefixes(pairs: readonly (readonly [ImageInput, string])[]) {
    return (signal?: AbortSignal) => this.prefixes.read("edit", pairs, signal);
  }

  private async draw<T>(
    makePrefixes: MakePrefixes,
    options: DrawOptions | undefined,
    decode: boolean,
    result: (done: DoneEvent, seed: bigint) => T,
    whenFull: WhenFull = "refuse",
  ): Promise<T[]> {
    const { request, signal, seed } = this.drawing(options);
    const prefixes = await this.requests.prepare(makePrefixes, signal);
    const requests = prefixes.map((prefix, i) => request(prefix, seedOfItem(seed, i), decode));
    const done = await this.requests.runAll(requests, signal, whenFull);
    return done.map((event, i) => result(event, seedOfItem(seed, i)));
  }

  /** `begin` checks the call, once the stream is read, and gives what makes its prefix. */
  private drawStream(
    begin: () => MakePrefixes,
    options: DrawOptions | undefined,
  ): AsyncGenerator<DrawingProgress, void, undefined> {
    return leavable((work) => this.drawSteps(begin, options, work));
  }

  private async *drawSteps(
    begin: () => MakePrefixes,
    options: DrawOptions | undefined,
    work: AbortController,
  ): AsyncGenerator<DrawingProgress, void, undefined> {
    const makePrefixes = begin();
    const { request, signal, seed } = this.drawing(options);
    // A step may be asked for its preview also when the stream was left.
    const decode = async (latents: Float32Array, given: CallOptions | undefined) => {
      const { signal: own, priority = options?.priority } = callOptions(given);
      return underEach([signal, own], (ends) =>
        this.decodeLatents(latents, { signal: ends, priority }),
      );
    };
    const unhook = signal && follow(work, signal);
    try {
      const [prefix] = await this.requests.prepare(makePrefixes, work.signal);
      const drawing = { ...request(prefix!, seed, true), stream: true };
      yield* drawingSteps(
        this.requests.stream(drawing, work.signal),
        this.checkpoint.spec.image!.grid ** 2,
        (done) => toImage(done, seed),
        decode,
      );
    } finally {
      unhook?.();
    }
  }

  /** The settings of a drawing, as a maker of requests. */
  private drawing(given: DrawOptions | undefined) {
    const { seed, signal, priority: level, ...settings } = optionsObject(given, DRAW_OPTIONS);
    const priority = priorityOption(level);
    const image = this.checkpoint.spec.image!;
    const s = imageSettings(this.checkpoint.generation.image, settings, mostSteps(image));
    this.requests.model();
    const request = (prefix: Prefix, itemSeed: bigint, decode: boolean): NativeDrawRequest => {
      this.prefixes.checkLength(prefix.rows, image.grid ** 2);
      return {
        kind: "draw",
        prefix: prefix.native,
        ...(s.guidance === 1 ? {} : { emptyTokens: prefix.emptyTokens }),
        steps: s.steps,
        guidance: s.guidance,
        linearGuidance: s.guidanceSchedule === "linear",
        temperature: s.temperature,
        x0Limit: s.x0Limit,
        randomOrder: s.order === "random",
        seed: itemSeed,
        stream: false,
        decode,
        priority,
      };
    };
    return { request, signal: signalOption(signal), seed: parseSeed(seed) };
  }

  private async write(
    makePrefixes: MakePrefixes,
    options: WriteOptions | undefined,
    whenFull: WhenFull = "refuse",
  ): Promise<string[]> {
    const { request, signal, seed } = this.writing(options);
    const prefixes = await this.requests.prepare(makePrefixes, signal);
    const requests = prefixes.map((prefix, i) => request(prefix, seedOfItem(seed, i)));
    const done = await this.requests.runAll(requests, signal, whenFull);
    return done.map(({ tokens }) => this.checkpoint.tokenizer!.decode(tokens!));
  }

  private writeStream(
    begin: () => MakePrefixes,
    options: WriteOptions | undefined,
    stripped: boolean,
  ): AsyncGenerator<string, WrittenText, undefined> {
    return leavable((work) => this.writtenPieces(begin, options, stripped, work));
  }

  private async *writtenPieces(
    begin: () => MakePrefixes,
    options: WriteOptions | undefined,
    stripped: boolean,
    work: AbortController,
  ): AsyncGenerator<string, WrittenText, undefined> {
    const makePrefixes = begin();
    const { request, signal, seed } = this.writing(options);
    const unhook = signal && follow(work, signal);
    try {
      const [prefix] = await this.requests.prepare(makePrefixes, work.signal);
      const text = { ...request(prefix!, seed), stream: true };
      const events = this.requests.stream(text, work.signal);
      const end = yield* textPieces(events, this.checkpoint.tokenizer!, stripped);
      return { promptTokens: prefix!.rows, ...end };
    } finally {
      unhook?.();
    }
  }

  /** The settings of a text, as a maker of requests. */
  private writing(given: WriteOptions | undefined) {
    const { seed, signal, priority: level, ...settings } = optionsObject(given, WRITE_OPTIONS);
    const priority = priorityOption(level);
    const s = textSettings(this.checkpoint.generation.text, settings);
    this.requests.model();
    const request = (prefix: Prefix, itemSeed: bigint): NativeTextRequest => {
      // A limit that was asked for must fit; the default one gives way to the prompt.
      if (settings.maxNewTokens !== undefined) {
        this.prefixes.checkLength(prefix.rows, s.maxNewTokens);
      }
      return {
        kind: "text",
        prefix: prefix.native,
        maxNewTokens: Math.min(s.maxNewTokens, this.prefixes.room(prefix.rows)),
        temperature: s.temperature,
        seed: itemSeed,
        stopTokens: Int32Array.from(this.checkpoint.config!.eosTokens),
        stream: false,
        priority,
      };
    };
    return { request, signal: signalOption(signal), seed: parseSeed(seed) };
  }
}

function toImage({ pixels, width, height }: DoneEvent, seed?: bigint): Image {
  return Image.fromPixels(pixels!, width!, height!, seed === undefined ? {} : { seed });
}
