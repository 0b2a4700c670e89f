/** What can be said of a scene: captions, prompts, questions with answers, edits. */
import type { Random } from "../philox.js";
import {
  alike,
  allowed,
  BACKGROUND_NAMES,
  COLOR_NAMES,
  type PairRule,
  type Scene,
  type SceneObject,
  SHAPES,
} from "./world.js";

export const NUMBERS = ["zero", "one", "two", "three"] as const;

export type Relation = "left of" | "right of" | "above" | "below";

/** How `a` lies to `b`, along the axis on which they are farther apart. */
export function relation(a: SceneObject, b: SceneObject): Relation {
  const dx = a.x - b.x;
  const dy = a.y - b.y;
  if (Math.abs(dx) > Math.abs(dy)) return dx < 0 ? "left of" : "right of";
  return dy < 0 ? "above" : "below";
}

function noun(o: SceneObject, size: boolean, article = true): string {
  const words = `${size ? `${o.size} ` : ""}${o.color} ${o.shape}`;
  if (!article) return words;
  return `${/^[aeiou]/.test(words) ? "an" : "a"} ${words}`;
}

export interface CaptionWords {
  /** Say sizes. */
  size?: boolean;
  /** Say the background. */
  background?: boolean;
  /** Name the second of two objects first. */
  flip?: boolean;
}

/** The canonical caption of a scene, or one with words left out or two objects turned about. */
export function caption(
  scene: Scene,
  { size = true, background = true, flip = false }: CaptionWords = {},
): string {
  const tail = background ? ` on a ${scene.background} background` : "";
  return listed(inOrder(scene), size, flip) + tail;
}

/**
 * The objects as the canonical caption names them: from the left, but of two that lie above each other the upper one
 * first.
 */
export function inOrder(scene: Scene): SceneObject[] {
  const objects = [...scene.objects].sort((a, b) => a.x - b.x);
  const [a, b] = objects;
  const turned = objects.length === 2 && relation(a as SceneObject, b as SceneObject) === "below";
  return turned ? objects.reverse() : objects;
}

function listed(objects: SceneObject[], size: boolean, flip: boolean): string {
  const [first, second, third] = objects;
  if (!first) return "nothing";
  if (!second) return noun(first, size);
  if (alike(objects)) return `${NUMBERS[objects.length]} ${noun(first, size, false)}s`;
  if (third) return `${noun(first, size)}, ${noun(second, size)} and ${noun(third, size)}`;
  const pair = flip ? ([second, first] as const) : ([first, second] as const);
  return `${noun(pair[0], size)} ${relation(...pair)} ${noun(pair[1], size)}`;
}

export interface Question {
  question: string;
  answer: string;
  kind: QuestionKind;
}
export const QUESTION_KINDS = [
  "color of a shape",
  "shape of a color",
  "how many of a shape",
  "how many objects",
  "color of the background",
  "is there",
] as const;
export type QuestionKind = (typeof QUESTION_KINDS)[number];

/** A question about the scene. Where a kind has no clear answer, another is asked. */
export function question(scene: Scene, random: Random): Question {
  const { objects } = scene;
  const withShape = (s: string) => objects.filter((o) => o.shape === s).length;
  const o = random.pick(objects);
  const kind = random.pick(QUESTION_KINDS);
  switch (kind) {
    case "color of a shape":
      if (withShape(o.shape) !== 1) break;
      return { kind, question: `what color is the ${o.shape}?`, answer: o.color };
    case "shape of a color":
      if (objects.filter((p) => p.color === o.color).length !== 1) break;
      return { kind, question: `what shape is the ${o.color} object?`, answer: o.shape };
    case "how many of a shape": {
      const shape = random.chance(0.7) ? o.shape : random.pick(SHAPES);
      const answer = NUMBERS[withShape(shape)] as string;
      return { kind, question: `how many ${shape}s are there?`, answer };
    }
    case "how many objects": {
      const answer = NUMBERS[objects.length] as string;
      return { kind, question: "how many objects are there?", answer };
    }
    case "color of the background":
      return { kind, question: "what color is the background?", answer: scene.background };
    case "is there":
      break;
  }
  const absent = SHAPES.filter((s) => withShape(s) === 0);
  const shape = random.chance(0.5) ? o.shape : random.pick(absent);
  const answer = withShape(shape) ? "yes" : "no";
  return { kind: "is there", question: `is there a ${shape}?`, answer };
}

export const EDIT_KINDS = ["recolor", "remove", "background"] as const;
export type EditKind = (typeof EDIT_KINDS)[number];

export interface Edit {
  kind: EditKind;
  instruction: string;
  target: Scene;
}

/** A change to the scene, and the scene after it. */
export function edit(scene: Scene, random: Random, pairs: PairRule = "exclude"): Edit {
  const { objects } = scene;
  // Things that can be named by their shape.
  const unique = objects.filter((o) => objects.filter((p) => p.shape === o.shape).length === 1);
  const kind = random.pick(EDIT_KINDS);
  if (kind !== "background" && unique.length > 0) {
    const o = random.pick(unique);
    const colors = COLOR_NAMES.filter((c) => c !== o.color && allowed(c, o.shape, pairs));
    if (kind === "remove")
      return {
        kind,
        instruction: `remove the ${o.shape}`,
        target: { ...scene, objects: objects.filter((p) => p !== o) },
      };
    // Of pairs that are kept from training each shape has but one colour: nothing to change it to.
    if (colors.length > 0) {
      const color = random.pick(colors);
      return {
        kind,
        instruction: `make the ${o.shape} ${color}`,
        target: { ...scene, objects: objects.map((p) => (p === o ? { ...o, color } : p)) },
      };
    }
  }
  const background = random.pick(BACKGROUND_NAMES.filter((b) => b !== scene.background));
  return {
    kind: "background",
    instruction: `change the background to ${background}`,
    target: { ...scene, background },
  };
}
