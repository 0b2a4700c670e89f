/**
 * The suite "scenes": how well a model draws, reads and edits the toy world. Its scenes have random
 * streams of their own, which no data set has.
 */
import { setImmediate } from "node:timers/promises";
import { runAll } from "../bulk.js";
import { UnsupportedTaskError } from "../errors.js";
import type { CellOrder } from "../generation-config.js";
import { Image } from "../image.js";
import type { UniFluid } from "../model.js";
import { Random } from "../philox.js";
import { psnr } from "../psnr.js";
import { streamOf } from "../scenes/dataset.js";
import { drawPixels } from "../scenes/draw.js";
import { caption, edit, type Question, question } from "../scenes/language.js";
import { parsePicture, type SeenScene } from "../scenes/parse.js";
import { readCaption } from "../scenes/read-caption.js";
import { alike, randomScene, type Scene, SIZE } from "../scenes/world.js";
import { SLOTS, type SlotsRight, slotsRight } from "./caption-slots.js";
import { asReference, frechetDistance, pooled, statisticsOf } from "./frechet.js";
import {
  type Checks,
  check,
  GENEVAL_TASKS,
  type GenEvalTask,
  kept,
  objectsThere,
  passes,
} from "./judge.js";
import { SUITE_PARTS, type SuitePart } from "./parts.js";

export interface SuiteOptions {
  /** Scenes of each part; of each of the six tasks in generation. */
  scenes: number;
  seed: bigint;
  /** Settings of drawing; absent: the model's. */
  steps?: number;
  guidance?: number;
  order?: CellOrder;
  only?: readonly SuitePart[];
  /** The model whose vision tower gives the features of the Fréchet distance; default: the model itself. */
  features?: UniFluid;
  signal?: AbortSignal;
  /** Called after each picture or text. */
  onItem?: () => void;
}

/** A share of `n` cases. */
export interface Rate {
  rate: number;
  n: number;
}

/** Rates by shape, kind of question and so on have the keys that some case had, and no others. */
export interface SuiteReport {
  suite: "scenes";
  seed: bigint;
  /** Settings of drawing, where a part draws. */
  steps?: number;
  guidance?: number;
  order?: CellOrder;
  /**
   * `score` is the mean of the six tasks. Of full captions: `attributes` that are right, everything right by number
   * of objects, and objects that are there in their colour by shape.
   */
  generation?: {
    score: number;
    tasks: Record<string, Rate>;
    attributes: Record<string, Rate>;
    byObjects: Record<string, Rate>;
    byShape: Record<string, Rate>;
  };
  /** Everything right of one object whose colour and shape were never seen together; and of pairs that were. */
  heldOut?: { heldOut: Rate; seen: Rate };
  /** Also by slot, of those whose scene has it (`lib/evaluate/caption-slots.ts`). */
  captions?: {
    exact: Rate;
    byObjects: Record<string, Rate>;
    bySlot: Record<string, Rate>;
    wordsInPlace: number;
  };
  /** Beside the most common answer of a kind, and the most common answer to the question without a picture. */
  answers?: { all: Rate; majority: number; blind: number; byKind: Record<string, Rate> };
  /** The change made and the rest in place; beside the source picture handed back unchanged. */
  edits?: { all: Rate; contents: Rate; copied: Rate; byKind: Record<string, Rate> };
  /** What a perfect model would reach: true pictures, and those that went through the autoencoder. */
  vae?: { psnr: number; parsed: Rate; parsedAfter: Rate };
  frechet?: FrechetReport;
}

/** Fréchet distances to true pictures of other scenes, by the pooled features of a vision tower. */
export interface FrechetReport {
  /** Of pictures drawn from full captions of scenes. */
  drawn: number;
  /** Of true pictures of the scenes drawn: what a perfect model would have. */
  floor: number;
  /** Of the same true pictures after the autoencoder: what its drawings could have at best. */
  autoencoder: number;
  /** Pictures drawn, and true ones that they are compared with. */
  n: number;
  references: number;
  /** Of the features; of no more pictures than that the covariance is singular, and distances are too large. */
  width: number;
  /** The model whose tower it was, where it was not the model's own. */
  features?: string;
}

const rateOf = (hits: readonly boolean[]): Rate => ({
  rate: hits.filter(Boolean).length / Math.max(1, hits.length),
  n: hits.length,
});

function ratesBy<K extends string>(hits: readonly (readonly [K, boolean])[]): Record<string, Rate> {
  const keys = [...new Set(hits.map(([key]) => key))].sort();
  return Object.fromEntries(
    keys.map((k) => [k, rateOf(hits.filter(([key]) => key === k).map(([, hit]) => hit))]),
  );
}

/** Of the slots' rates, those that some scene has, in the order of `SLOTS`. */
function bySlot(captions: readonly SlotsRight[]): Record<string, Rate> {
  const hits = SLOTS.map(
    (slot) =>
      [slot, captions.map((right) => right[slot]).filter((hit) => hit !== undefined)] as const,
  );
  return Object.fromEntries(
    hits.filter(([, of]) => of.length > 0).map(([slot, of]) => [slot, rateOf(of)]),
  );
}

/** Scenes of a part up to which its drawings have the numbers that follow the first one's. */
const FEW = 10_000;

/**
 * The number of a drawing, which decides its noise. `first` is that of its part's first drawing, a multiple of `FEW`
 * below 1,000,000; those beyond `FEW` have places of their own, for they would be the next part's.
 */
export const drawingNumber = (first: number, index: number): number =>
  index < FEW ? first + index : 1000 * first + index;

/** Pictures that are rendered at once: enough to keep sharp's threads at work. */
const TOGETHER = 16;

/** Pictures that the model works on at once: enough for a GPU, each of them held as float32 until its turn. */
const IN_PROGRESS = 128;

/** Streams of randomness of the suite's parts, apart from those of data sets (`lib/scenes/dataset.ts`). */
const STREAM = 1000;

class Suite {
  constructor(
    private readonly model: UniFluid,
    private readonly options: SuiteOptions,
  ) {}

  private random(part: number, index: number): Random {
    return new Random(this.options.seed, STREAM + part, index);
  }

  private count<T>(make: (index: number) => T): T[] {
    return Array.from({ length: this.options.scenes }, (_, i) => make(i));
  }

  /** Random scenes until one fits. */
  private scene(
    part: number,
    index: number,
    fits: (scene: Scene) => boolean,
    count?: number,
  ): Scene {
    const random = this.random(part, index);
    for (;;) {
      const scene = randomScene(random, { count });
      if (fits(scene)) return scene;
    }
  }

  /** Settings of drawing. */
  get drawing() {
    const { steps, guidance, order } = this.model.info.generation.image;
    return {
      steps: this.options.steps ?? steps,
      guidance: this.options.guidance ?? guidance,
      order: this.options.order ?? order,
    };
  }

  /** One result for each item, in their order. The first error ends all. */
  private async all<Item, Value>(
    items: readonly Item[],
    run: (item: Item, index: number, signal: AbortSignal) => Promise<Value>,
    onItem = this.options.onItem,
  ): Promise<Value[]> {
    const { signal } = this.options;
    const settings = { concurrency: IN_PROGRESS, ordered: true, stopOnError: true, signal };
    const values: Value[] = [];
    for await (const { value } of runAll(items, run, settings)) {
      values.push(value as Value);
      onItem?.();
    }
    return values;
  }

  /** Of a part's drawing: the suite's seeds have no noise in common. */
  private drawingSeed(first: number, index: number): bigint {
    const number = drawingNumber(first, index);
    return BigInt.asUintN(64, (this.options.seed << 32n) + BigInt(number));
  }

  /** `first`: the number of the first drawing among those of the suite. */
  private draw(prompts: readonly string[], first: number): Promise<Image[]> {
    return this.all(prompts, (prompt, i, signal) =>
      this.model.generate(prompt, { ...this.drawing, seed: this.drawingSeed(first, i), signal }),
    );
  }

  async generation(): Promise<SuiteReport["generation"]> {
    const different = (s: Scene) =>
      new Set(s.objects.map((o) => o.shape)).size === s.objects.length;
    const colors = (s: Scene) => new Set(s.objects.map((o) => o.color)).size === s.objects.length;
    const cases: Record<GenEvalTask, (i: number) => Scene> = {
      "single object": (i) => this.scene(0, i, () => true, 1),
      "two objects": (i) => this.scene(1, i, different, 2),
      counting: (i) => this.scene(2, i, (s) => alike(s.objects), 2 + (i % 2)),
      colors: (i) => this.scene(3, i, () => true, 1),
      position: (i) => this.scene(4, i, different, 2),
      "color attribution": (i) => this.scene(5, i, (s) => different(s) && colors(s), 2),
    };
    const plain = { size: false, background: false };
    const tasks: Record<string, Rate> = {};
    for (const [t, task] of GENEVAL_TASKS.entries()) {
      const scenes = this.count(cases[task]);
      const images = await this.draw(
        scenes.map((s) => caption(s, plain)),
        10_000 * (t + 1),
      );
      const seen = await this.seenIn(images);
      tasks[task] = rateOf(seen.map((s, i) => passes(task, s, scenes[i]!)));
    }
    // All that a full caption says.
    const scenes = this.count((i) => this.scene(6, i, () => true));
    const images = await this.draw(
      scenes.map((s) => caption(s)),
      80_000,
    );
    const seen = await this.seenIn(images);
    const checks = seen.map((s, i) => check(s, scenes[i]!));
    const found = checks.flatMap((c) =>
      (Object.entries(c) as [keyof Checks, boolean][]).map(([k, v]) => [k, v] as const),
    );
    const score = GENEVAL_TASKS.reduce((sum, t) => sum + tasks[t]!.rate, 0) / GENEVAL_TASKS.length;
    const there = scenes.flatMap((scene, i) => {
      const hits = objectsThere(seen[i]!, scene);
      return scene.objects.map(({ shape }, k) => [shape, hits[k]!] as const);
    });
    return {
      score,
      tasks,
      attributes: ratesBy(found),
      byObjects: ratesBy(checks.map(({ all }, i) => [String(scenes[i]!.objects.length), all])),
      byShape: ratesBy(there),
    };
  }

  async heldOut(): Promise<SuiteReport["heldOut"]> {
    const rate = async (pairs: "only" | "exclude", part: number): Promise<Rate> => {
      const scenes = this.count((i) => randomScene(this.random(part, i), { pairs, count: 1 }));
      const images = await this.draw(
        scenes.map((s) => caption(s)),
        10_000 * part,
      );
      return this.rightIn(images, scenes);
    };
    return { heldOut: await rate("only", 10), seen: await rate("exclude", 11) };
  }

  /** Pixels along a side of what the model draws. */
  private get side(): number {
    return this.model.info.image?.size ?? SIZE;
  }

  /** True pictures, as large as the model's own. */
  private async pictures(scenes: readonly Scene[], side = this.side): Promise<Image[]> {
    const render = async (scene: Scene) =>
      Image.fromPixels(await drawPixels(scene, side), side, side);
    const images: Image[] = [];
    for (let first = 0; first < scenes.length; first += TOGETHER) {
      this.options.signal?.throwIfAborted();
      images.push(...(await Promise.all(scenes.slice(first, first + TOGETHER).map(render))));
    }
    return images;
  }

  private async seenIn(images: readonly Image[]): Promise<SeenScene[]> {
    const seen: SeenScene[] = [];
    for (const image of images) {
      // The parser computes on this thread: signals are heard in between.
      await setImmediate();
      this.options.signal?.throwIfAborted();
      seen.push(await parsePicture(image));
    }
    return seen;
  }

  /** In how many pictures all of their scenes is right. */
  private async rightIn(images: readonly Image[], scenes: readonly Scene[]): Promise<Rate> {
    const seen = await this.seenIn(images);
    return rateOf(seen.map((s, i) => check(s, scenes[i]!).all));
  }

  /** Pictures as the autoencoder gives them back. */
  private rebuilt(images: readonly Image[]): Promise<Image[]> {
    return this.all(images, async (image, _, signal) =>
      this.model.decodeLatents(await this.model.encodeImage(image, { signal }), { signal }),
    );
  }

  async captions(): Promise<SuiteReport["captions"]> {
    const scenes = this.count((i) => this.scene(20, i, () => true));
    const images = await this.pictures(scenes);
    const texts = await this.all(images, (image, _, signal) =>
      this.model.caption(image, { signal, temperature: 0 }),
    );
    const exact = texts.map((text, i) => text.trim() === caption(scenes[i]!));
    const words = texts.map((text, i) => {
      const want = caption(scenes[i]!).split(" ");
      const got = text.trim().split(" ");
      return want.filter((w, k) => got[k] === w).length / want.length;
    });
    return {
      exact: rateOf(exact),
      byObjects: ratesBy(exact.map((hit, i) => [String(scenes[i]!.objects.length), hit] as const)),
      bySlot: bySlot(texts.map((text, i) => slotsRight(readCaption(text), scenes[i]!))),
      wordsInPlace: words.reduce((sum, w) => sum + w, 0) / words.length,
    };
  }

  async answers(): Promise<SuiteReport["answers"]> {
    const asked = this.count((i) => {
      const scene = this.scene(30, i, () => true);
      return { scene, ...question(scene, this.random(31, i)) };
    });
    const images = await this.pictures(asked.map((a) => a.scene));
    const texts = await this.all(images, (image, i, signal) =>
      this.model.answer(image, asked[i]!.question, { signal, temperature: 0 }),
    );
    const hits = texts.map((text, i) => text.trim() === asked[i]!.answer);
    const usual = usualAnswers(this.options.seed);
    return {
      all: rateOf(hits),
      majority: rateOf(asked.map((a) => usual.byKind.get(a.kind) === a.answer)).rate,
      blind: rateOf(asked.map((a) => usual.byQuestion.get(a.question) === a.answer)).rate,
      byKind: ratesBy(hits.map((hit, i) => [asked[i]!.kind, hit] as const)),
    };
  }

  async edits(): Promise<SuiteReport["edits"]> {
    const cases = this.count((i) => {
      const scene = this.scene(40, i, () => true);
      return { scene, ...edit(scene, this.random(41, i)) };
    });
    const sources = await this.pictures(cases.map((c) => c.scene));
    const images = await this.all(sources, (image, i, signal) =>
      this.model.edit(image, cases[i]!.instruction, {
        ...this.drawing,
        seed: this.drawingSeed(500_000, i),
        signal,
      }),
    );
    const judge = (seen: SeenScene, i: number) => {
      const { target } = cases[i]!;
      const contents = check(seen, target, { relations: false }).all;
      return { contents, all: contents && kept(seen, target) };
    };
    const results = (await this.seenIn(images)).map(judge);
    const copies = (await this.seenIn(sources)).map(judge);
    return {
      all: rateOf(results.map((r) => r.all)),
      contents: rateOf(results.map((r) => r.contents)),
      copied: rateOf(copies.map((r) => r.all)),
      byKind: ratesBy(results.map((r, i) => [cases[i]!.kind, r.all] as const)),
    };
  }

  async vae(): Promise<SuiteReport["vae"]> {
    const scenes = this.count((i) => randomScene(this.random(50, i), { pairs: "include" }));
    const images = await this.pictures(scenes);
    const rebuilt = await this.rebuilt(images);
    const ratios = images.map((image, i) => psnr(image, rebuilt[i]!));
    return {
      psnr: ratios.reduce((sum, v) => sum + v, 0) / ratios.length,
      parsed: await this.rightIn(images, scenes),
      parsedAfter: await this.rightIn(rebuilt, scenes),
    };
  }

  async frechet(): Promise<FrechetReport> {
    const { scenes: n, features: other, signal } = this.options;
    const tower = other ?? this.model;
    const width = widthOf(tower);
    const scenesOf = (part: number, count: number) =>
      Array.from({ length: count }, (_, i) => this.scene(part, i, () => true));
    const featuresOf = (images: readonly Image[]) => {
      const run = async (image: Image, _: number, signal: AbortSignal) =>
        pooled(await tower.imageFeatures(image, { signal }), width);
      return this.all(images, run, () => {});
    };
    // Models that draw less than the toy world has are held against the same pictures as others.
    const side = Math.max(SIZE, this.side);
    const references = scenesOf(60, REFERENCES * n);
    // They are many, and nothing else needs their pictures.
    const features: number[][] = [];
    for (let first = 0; first < references.length; first += IN_PROGRESS) {
      const some = references.slice(first, first + IN_PROGRESS);
      features.push(...(await featuresOf(await this.pictures(some, side))));
    }
    const reference = await asReference(statisticsOf(features), signal);
    const distance = async (images: readonly Image[]) =>
      frechetDistance(statisticsOf(await featuresOf(images)), reference, signal);

    // The floor is of the same scenes: which ones were picked can matter more than how well they are drawn.
    const scenes = scenesOf(61, n);
    const rendered = await this.pictures(scenes, side);
    const rebuilt = await this.rebuilt(rendered);
    const captions = scenes.map((s) => caption(s));
    return {
      drawn: await distance(await this.draw(captions, 600_000)),
      floor: await distance(rendered),
      autoencoder: await distance(rebuilt),
      n,
      references: references.length,
      width,
      ...(other && { features: other.info.directory }),
    };
  }
}

/** True pictures to each drawn one: those that all distances are measured from. */
const REFERENCES = 4;

/** Of the features of a model's vision tower. */
function widthOf({ info }: UniFluid): number {
  if (info.vision) return info.vision.width;
  throw new UnsupportedTaskError(
    `${info.directory} has no vision tower whose features could be compared`,
  );
}

/** Scenes of training whose answers the baselines know. */
const KNOWN = 4000;

/** The most common answer of each kind of question, and to each question, in training data. */
function usualAnswers(seed: bigint) {
  const counts = {
    byKind: new Map<string, Map<string, number>>(),
    byQuestion: new Map<string, Map<string, number>>(),
  };
  const count = (map: Map<string, Map<string, number>>, key: string, answer: string) => {
    const answers = map.get(key) ?? new Map<string, number>();
    map.set(key, answers.set(answer, (answers.get(answer) ?? 0) + 1));
  };
  for (let i = 0; i < KNOWN; i++) {
    const scene = randomScene(streamOf(seed, "train", "scene", i));
    const q: Question = question(scene, streamOf(seed, "train", "questions", i));
    count(counts.byKind, q.kind, q.answer);
    count(counts.byQuestion, q.question, q.answer);
  }
  const most = (map: Map<string, Map<string, number>>) =>
    new Map(
      [...map].map(([key, answers]) => [key, [...answers].sort((a, b) => b[1] - a[1])[0]![0]]),
    );
  return { byKind: most(counts.byKind), byQuestion: most(counts.byQuestion) };
}

/** Pictures and texts that the suite will make, for progress. */
export function itemsOf({ scenes, only = SUITE_PARTS }: SuiteOptions): number {
  const weights: Record<SuitePart, number> = {
    generation: GENEVAL_TASKS.length + 1,
    "held-out": 2,
    captions: 1,
    answers: 1,
    edits: 1,
    vae: 1,
    frechet: 2,
  };
  return only.reduce((sum, part) => sum + weights[part] * scenes, 0);
}

/** Parts that draw. */
const DRAWING: readonly SuitePart[] = ["edits", "held-out", "generation", "frechet"];

/** Runs the suite. Throws the signal's reason, or what the model throws. */
export async function evaluateScenes(model: UniFluid, options: SuiteOptions): Promise<SuiteReport> {
  const suite = new Suite(model, options);
  const { only = SUITE_PARTS, features = model } = options;
  const draws = only.some((part) => DRAWING.includes(part));
  // Parts before the one that fails may take hours. Calls without items compute nothing, and refuse what the later ones
  // would: abilities that the model lacks, and settings of drawing. The autoencoder's part needs none, as the first.
  if (only.includes("captions")) await model.caption([]);
  if (only.includes("answers")) await model.answer([], []);
  if (only.includes("edits")) await model.edit([], [], suite.drawing);
  if (draws) await model.generate([], suite.drawing);
  if (only.includes("frechet")) widthOf(features);
  // Quick parts first.
  const parts: Record<SuitePart, () => Promise<Partial<SuiteReport>>> = {
    vae: async () => ({ vae: await suite.vae() }),
    captions: async () => ({ captions: await suite.captions() }),
    answers: async () => ({ answers: await suite.answers() }),
    edits: async () => ({ edits: await suite.edits() }),
    "held-out": async () => ({ heldOut: await suite.heldOut() }),
    generation: async () => ({ generation: await suite.generation() }),
    frechet: async () => ({ frechet: await suite.frechet() }),
  };
  let report: SuiteReport = {
    suite: "scenes",
    seed: options.seed,
    ...(draws && suite.drawing),
  };
  for (const part of Object.keys(parts) as SuitePart[]) {
    if (!only.includes(part)) continue;
    options.signal?.throwIfAborted();
    report = { ...report, ...(await parts[part]()) };
  }
  return report;
}
