/**
 * The toy world of the shipped model: pictures of one to three coloured shapes on a plain background,
 * where everything that can be said is known.
 */
import type { Random } from "../philox.js";

export const SHAPES = ["circle", "square", "triangle", "star", "heart"] as const;
export const COLORS = {
  red: [220, 30, 40],
  orange: [245, 130, 20],
  yellow: [245, 205, 0],
  green: [30, 150, 60],
  cyan: [0, 190, 210],
  blue: [30, 70, 215],
  purple: [135, 45, 175],
  black: [25, 25, 25],
} as const;
export const BACKGROUNDS = {
  white: [252, 252, 252],
  gray: [215, 215, 215],
  pink: [255, 212, 222],
  yellow: [255, 247, 195],
  blue: [205, 226, 255],
  green: [210, 242, 210],
} as const;
/** Half the longer side of a shape, in pixels of a 64-pixel picture. */
export const RADIUS = { small: 9, large: 15 } as const;
/** Pixels along each side of a picture. */
export const SIZE = 64;

export type Shape = (typeof SHAPES)[number];
export type Color = keyof typeof COLORS;
export type Background = keyof typeof BACKGROUNDS;
export type Size = keyof typeof RADIUS;

export const COLOR_NAMES = Object.keys(COLORS) as Color[];
export const BACKGROUND_NAMES = Object.keys(BACKGROUNDS) as Background[];

/** Pairs that no training picture shows, so that composition can be measured. */
const HELD_OUT: readonly (readonly [Color, Shape])[] = [
  ["red", "star"],
  ["blue", "heart"],
  ["green", "square"],
  ["purple", "circle"],
  ["yellow", "triangle"],
];

export const PAIR_RULES = ["exclude", "include", "only"] as const;
export type PairRule = (typeof PAIR_RULES)[number];

/** Scenes of different splits never share their randomness. */
export const SPLITS = ["train", "test"] as const;
export type Split = (typeof SPLITS)[number];

export function isHeldOut(color: Color, shape: Shape): boolean {
  return HELD_OUT.some(([c, s]) => c === color && s === shape);
}

export interface SceneObject {
  shape: Shape;
  color: Color;
  size: Size;
  /** Centre of the bounding box, in pixels from the left and from the top. */
  x: number;
  y: number;
}

export interface Scene {
  background: Background;
  objects: SceneObject[];
}

export function allowed(color: Color, shape: Shape, rule: PairRule): boolean {
  return rule === "include" || isHeldOut(color, shape) === (rule === "only");
}

/** Whether the objects are alike but for their places. */
export function alike(objects: readonly SceneObject[]): boolean {
  const [first] = objects;
  return objects.every(
    (o) => o.shape === first?.shape && o.color === first.color && o.size === first.size,
  );
}

/** Rounded to tenths of a pixel, as a manifest shows it. */
const tenth = (v: number) => Math.round(v * 10) / 10;

/** Far enough apart, and clearly beside or above each other, so that every relation can be told. */
function apart(a: SceneObject, b: SceneObject, objects: number): boolean {
  const dx = Math.abs(a.x - b.x);
  const dy = Math.abs(a.y - b.y);
  const gap = RADIUS[a.size] + RADIUS[b.size] + 3;
  return Math.max(dx, dy) > gap && Math.abs(dx - dy) > 5 && (objects < 3 || dx > 4);
}

/** Gives the objects places; false where none was found soon. */
function place(random: Random, objects: SceneObject[]): boolean {
  for (let attempt = 0; attempt < 60; attempt++) {
    for (const o of objects) {
      const margin = RADIUS[o.size] + 1;
      o.x = tenth(random.between(margin, SIZE - margin));
      o.y = tenth(random.between(margin, SIZE - margin));
    }
    if (objects.every((a, i) => objects.slice(0, i).every((b) => apart(a, b, objects.length))))
      return true;
  }
  return false;
}

/** How often a scene has one, two and three objects. */
const COUNTS = [0.4, 0.4, 0.2] as const;

function drawCount(random: Random): number {
  const u = random.next();
  return u < COUNTS[0] ? 1 : u < COUNTS[0] + COUNTS[1] ? 2 : 3;
}

/** A random scene; `count` fixes the number of objects, 1 to 3. */
export function randomScene(
  random: Random,
  { pairs = "exclude", count }: { pairs?: PairRule; count?: number } = {},
): Scene {
  const thing = (size: Size): SceneObject => {
    for (;;) {
      const color = random.pick(COLOR_NAMES);
      const shape = random.pick(SHAPES);
      if (allowed(color, shape, pairs)) return { shape, color, size, x: 0, y: 0 };
    }
  };
  for (;;) {
    const n = count ?? drawCount(random);
    // Three large shapes would not fit beside each other.
    const most = n === 3 ? 1 : 2;
    const sizes: Size[] = [];
    for (let i = 0; i < n; i++) {
      const room = sizes.filter((s) => s === "large").length < most;
      sizes.push(random.chance(0.5) && room ? "large" : "small");
    }
    let objects = sizes.map(thing);
    // Several of a kind, for counting.
    if (n > 1 && random.chance(n === 2 ? 0.25 : 0.5)) {
      const size = n === 2 ? (sizes[0] as Size) : "small";
      objects = objects.map(() => ({ ...(objects[0] as SceneObject), size }));
    }
    if (place(random, objects)) return { background: random.pick(BACKGROUND_NAMES), objects };
  }
}
