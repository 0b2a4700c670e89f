/** A data set of scenes: pictures and records of each task, in the forms that `unifluid train` reads. */
import { rename, rm, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { InvalidOptionError, TrainingDataError } from "../errors.js";
import { makeFolder } from "../make-folder.js";
import type { UniFluid } from "../model.js";
import { Random } from "../philox.js";
import { TASKS, type TemplateTask } from "../prompts.js";
import {
  type DatasetRecord,
  type DatasetWriter,
  type DrawnScene,
  ManifestWriter,
  ShardWriter,
} from "./dataset-writer.js";
import { drawPng } from "./draw.js";
import { type CaptionWords, caption, edit, type Question, question } from "./language.js";
import { checkArtist, drawOwn } from "./own-drawings.js";
import {
  alike,
  type PairRule,
  randomScene,
  type Scene,
  type Shape,
  SIZE,
  SPLITS,
  type Split,
} from "./world.js";

/** Which scenes a data set has. */
export interface SceneRule {
  /** Whether the colour–shape pairs kept from training may occur; default "exclude". */
  pairs?: PairRule;
  /** The fewest objects of a scene, 1 to 3; default 1. */
  minObjects?: number;
  /** Only scenes that have an object of this shape. */
  withShape?: Shape;
}

export interface DatasetOptions extends SceneRule {
  count: number;
  seed: bigint;
  split?: Split;
  tasks?: readonly TemplateTask[];
  /** Only prompts that leave out sizes and background; default: those that say them too. */
  shortPrompts?: boolean;
  /** Pixels along each side. */
  size?: number;
  /** So many tar shards of each task, instead of pictures beside manifests. */
  shards?: number;
  /**
   * Whose drawings are written instead of true pictures, of the task "generate" alone; scenes that it does not get right
   * in `attempts` (default 3) are left out.
   */
  drawnBy?: UniFluid;
  attempts?: number;
  signal?: AbortSignal;
  /** Called after each scene. */
  onScene?: () => void;
}

/** Questions asked of each scene; more would repeat themselves. */
const QUESTIONS = 6;

/** A scene by its name: the same in every data set of this seed, split and rule. */
export function sceneOf(
  seed: bigint,
  split: Split,
  index: number,
  { pairs, minObjects = 1, withShape }: SceneRule = {},
): Scene {
  const random = streamOf(seed, split, "scene", index);
  for (;;) {
    const scene = randomScene(random, { pairs });
    const { objects } = scene;
    if (objects.length < minObjects) continue;
    if (withShape === undefined || objects.some(({ shape }) => shape === withShape)) return scene;
  }
}

/** The randomness of one part of a scene's record. */
export function streamOf(
  seed: bigint,
  split: Split,
  part: "scene" | "questions" | "edit",
  index: number,
): Random {
  const parts = ["scene", "questions", "edit"];
  return new Random(seed, SPLITS.indexOf(split) * parts.length + parts.indexOf(part), index);
}

/** Every way to prompt for the scene: sizes and background said or not (`short`: not), two objects either way about. */
function wordingsOf(scene: Scene, short: boolean): CaptionWords[] {
  const said = short ? [false] : [true, false];
  const flips = scene.objects.length === 2 && !alike(scene.objects) ? [false, true] : [false];
  return said.flatMap((size) =>
    said.flatMap((background) => flips.map((flip) => ({ size, background, flip }))),
  );
}

/** The prompts of all wordings. */
export function promptsOf(scene: Scene, short = false): string[] {
  return [...new Set(wordingsOf(scene, short).map((words) => caption(scene, words)))];
}

function questionsOf(scene: Scene, random: Random): Pick<Question, "question" | "answer">[] {
  const asked = new Map<string, string>();
  for (let i = 0; i < QUESTIONS; i++) {
    const q = question(scene, random);
    asked.set(q.question, q.answer);
  }
  return [...asked].map(([question, answer]) => ({ question, answer }));
}

/** Records and pictures of one scene. */
function recordsOf(
  scene: Scene,
  index: number,
  options: Required<Pick<DatasetOptions, "seed" | "split" | "pairs" | "tasks" | "shortPrompts">>,
) {
  const image = imageOf(index);
  const pictures = new Map<string, Scene>([[image, scene]]);
  const records: Partial<Record<TemplateTask, DatasetRecord>> = {};
  const { seed, split, pairs } = options;
  for (const task of options.tasks) {
    switch (task) {
      case "generate":
        records.generate = { task, image, prompt: promptsOf(scene, options.shortPrompts), scene };
        break;
      case "caption":
        records.caption = { task, image, text: caption(scene), scene };
        break;
      case "answer": {
        const questions = questionsOf(scene, streamOf(seed, split, "questions", index));
        records.answer = { task, image, questions, scene };
        break;
      }
      case "edit": {
        const change = edit(scene, streamOf(seed, split, "edit", index), pairs);
        const target = image.replace(/\.png$/, "-edited.png");
        pictures.set(target, change.target);
        records.edit = {
          task,
          image,
          target,
          instruction: change.instruction,
          kind: change.kind,
          scene,
          edited: change.target,
        };
        break;
      }
    }
  }
  return { pictures, records };
}

/** Scenes drawn at once: enough to keep sharp's threads at work, or a model through its later attempts. */
const TOGETHER = { rendered: 16, drawn: 128 } as const;

const imageOf = (index: number) => `images/${String(index).padStart(6, "0")}.png`;

/** The record and picture of a scene that the model drew; undefined where it did not get it right. */
async function ownScene(
  model: UniFluid,
  index: number,
  options: DatasetOptions & { split: Split; shortPrompts: boolean },
): Promise<DrawnScene | undefined> {
  const { seed, split, shortPrompts, attempts = 3, signal } = options;
  const scene = sceneOf(seed, split, index, options);
  const wordings = wordingsOf(scene, shortPrompts);
  const own = await drawOwn(model, scene, index, wordings, { seed, split, attempts, signal });
  if (!own) return undefined;
  const image = imageOf(index);
  const generate: DatasetRecord = { task: "generate", image, prompt: own.prompt, scene };
  return { index, records: { generate }, pictures: new Map([[image, await own.image.toBuffer()]]) };
}

/** Throws `INVALID_OPTION` for options that do not go together. */
function checkOptions({ count, shards, drawnBy, size = SIZE, tasks = [] }: DatasetOptions): void {
  if (shards !== undefined && shards > count)
    throw new InvalidOptionError(
      `expected at most ${count} shards, one a scene, but received ${shards}`,
    );
  if (!drawnBy) return;
  const other = tasks.find((task) => task !== "generate");
  if (other)
    throw new InvalidOptionError(
      `expected the task generate alone, of pictures that a model draws, but received ${other}`,
    );
  if (size !== SIZE)
    throw new InvalidOptionError(
      `expected pictures of ${SIZE} pixels, as a model draws them, but received ${size}`,
    );
  checkArtist(drawnBy);
}

/**
 * Writes a data set to `folder`, which must not exist; it appears when it is complete. Returns how many scenes it has.
 * Throws `INVALID_OPTION`, `TRAINING_DATA` where the model got no scene right, the signal's reason, or what the file system
 * says.
 */
export async function writeDataset(folder: string, options: DatasetOptions): Promise<number> {
  const { count, signal, onScene, size, shards, drawnBy } = options;
  const filled = {
    seed: options.seed,
    split: options.split ?? "train",
    pairs: options.pairs ?? "exclude",
    tasks: options.tasks ?? (drawnBy ? (["generate"] as const) : TASKS),
    shortPrompts: options.shortPrompts ?? false,
  };
  checkOptions(options);
  const target = resolve(folder);
  if (await stat(target).catch(() => undefined))
    throw new InvalidOptionError(`expected a folder that does not exist yet but ${folder} does`);
  const beside = `${target}.partial`;
  await rm(beside, { recursive: true, force: true });
  await makeFolder(beside);
  const draw = async (index: number): Promise<DrawnScene | undefined> => {
    if (drawnBy) {
      const own = await ownScene(drawnBy, index, { ...options, ...filled });
      onScene?.();
      return own;
    }
    const scene = sceneOf(filled.seed, filled.split, index, options);
    const { pictures, records } = recordsOf(scene, index, filled);
    const drawn = [...pictures].map(async ([name, of]) => [name, await drawPng(of, size)] as const);
    const files = new Map(await Promise.all(drawn));
    onScene?.();
    return { index, records, pictures: files };
  };
  const most = drawnBy ? TOGETHER.drawn : TOGETHER.rendered;
  let written = 0;
  try {
    const writer: DatasetWriter =
      shards === undefined
        ? await ManifestWriter.open(beside, filled.tasks)
        : new ShardWriter(beside, filled.tasks, shards, count);
    for (let first = 0; first < count; first += most) {
      signal?.throwIfAborted();
      const together = Math.min(most, count - first);
      const indices = Array.from({ length: together }, (_, i) => first + i);
      const scenes = (await Promise.all(indices.map(draw))).filter((scene) => scene !== undefined);
      await writer.write(scenes);
      written += scenes.length;
    }
    await writer.end();
    if (written === 0)
      throw new TrainingDataError(
        `expected drawings that show their prompts: of ${count} scenes none did`,
      );
    await makeFolder(dirname(target));
    await rename(beside, target);
    return written;
  } catch (error) {
    await rm(beside, { recursive: true, force: true });
    throw error;
  }
}
