/** A data set of scenes: pictures and records of each task, in the forms that `unifluid train` reads. */
import { InvalidOptionError } from "../errors.js";
import { expectNoFolder, fillNewFolder } from "../new-folder.js";
import { Random } from "../philox.js";
import { TEMPLATE_TASKS, type TemplateTask } from "../prompts.js";
import {
  type DatasetRecord,
  type DatasetWriter,
  type DrawnScene,
  ManifestWriter,
  ShardWriter,
} from "./dataset-writer.js";
import { drawPng } from "./draw.js";
import { caption, edit, type Question, question } from "./language.js";
import {
  alike,
  type PairRule,
  randomScene,
  type Scene,
  type Shape,
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
export function promptsOf(scene: Scene, short = false): string[] {
  const said = short ? [false] : [true, false];
  const flips = scene.objects.length === 2 && !alike(scene.objects) ? [false, true] : [false];
  const prompts = said.flatMap((size) =>
    said.flatMap((background) => flips.map((flip) => caption(scene, { size, background, flip }))),
  );
  return [...new Set(prompts)];
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
  const name = String(index).padStart(6, "0");
  const image = `images/${name}.png`;
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
        const target = `images/${name}-edited.png`;
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

/** Scenes drawn at once: enough to keep sharp's threads at work. */
const TOGETHER = 16;

/**
 * Writes a data set to `folder`, which must not exist; it appears when it is complete. Throws `INVALID_OPTION`,
 * the signal's reason, or what the file system says.
 */
export async function writeDataset(folder: string, options: DatasetOptions): Promise<void> {
  const { count, signal, onScene, size, shards } = options;
  const filled = {
    seed: options.seed,
    split: options.split ?? "train",
    pairs: options.pairs ?? "exclude",
    tasks: options.tasks ?? TEMPLATE_TASKS,
    shortPrompts: options.shortPrompts ?? false,
  };
  if (shards !== undefined && shards > count)
    throw new InvalidOptionError(
      `expected at most ${count} shards, one a scene, but received ${shards}`,
    );
  const target = await expectNoFolder(folder);
  const draw = async (index: number): Promise<DrawnScene> => {
    const scene = sceneOf(filled.seed, filled.split, index, options);
    const { pictures, records } = recordsOf(scene, index, filled);
    const drawn = [...pictures].map(async ([name, of]) => [name, await drawPng(of, size)] as const);
    return { index, records, pictures: new Map(await Promise.all(drawn)) };
  };
  await fillNewFolder(target, async (beside) => {
    const writer: DatasetWriter =
      shards === undefined
        ? await ManifestWriter.open(beside, filled.tasks)
        : new ShardWriter(beside, filled.tasks, shards, count);
    try {
      for (let first = 0; first < count; first += TOGETHER) {
        signal?.throwIfAborted();
        const together = Math.min(TOGETHER, count - first);
        const indices = Array.from({ length: together }, (_, i) => first + i);
        await writer.write(await Promise.all(indices.map(draw)));
        for (const _ of indices) onScene?.();
      }
      await writer.end();
    } catch (error) {
      await writer.discard();
      throw error;
    }
  });
}
