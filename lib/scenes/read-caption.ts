/** What a caption in the language of scenes says (`language.ts`), in parts: the inverse of `caption`. */
import { NUMBERS, type Relation } from "./language.js";
import {
  BACKGROUND_NAMES,
  type Background,
  COLOR_NAMES,
  type Color,
  RADIUS,
  SHAPES,
  type Shape,
  type Size,
} from "./world.js";

/** An object as a caption names it; what it does not say, or in no word of the language, is absent. */
export interface SaidObject {
  size?: Size;
  color?: Color;
  shape?: Shape;
}

export interface SaidScene {
  /** In the order in which they are named; each of several alike. */
  objects: SaidObject[];
  /** How the first lies to the second, where just two are named one by one. */
  relation?: Relation;
  background?: Background;
}

const SIZES = Object.keys(RADIUS) as Size[];
const BACKGROUND = /(?:^|\s+)on an? (\w+) background$/;
const RELATION = /\s+(left of|right of|above|below)\s+/;
const BETWEEN = /\s*,\s*|\s+and\s+/;

/**
 * Reads what it can: a text with a wrong word still says the rest, and objects are told apart by the words between
 * them. Anything else is an object of which nothing is said; an empty text names none.
 */
export function readCaption(text: string): SaidScene {
  const whole = text.trim();
  const named = BACKGROUND.exec(whole)?.[1];
  const listed = whole.replace(BACKGROUND, "");
  const background = BACKGROUND_NAMES.find((name) => name === named);
  const [first = "", relation, second] = listed.split(RELATION);
  const phrases = (second === undefined ? listed.split(BETWEEN) : [first, second]).filter(
    (phrase) => phrase !== "" && phrase !== "nothing",
  );
  const objects = phrases.flatMap(several);
  return {
    objects,
    ...(second !== undefined && objects.length === 2 && { relation: relation as Relation }),
    ...(background && { background }),
  };
}

/** "two small red circles" is two objects; "a small red circle" one. */
function several(phrase: string): SaidObject[] {
  const words = phrase.split(/\s+/);
  const count = Math.max(1, NUMBERS.indexOf(words[0] as (typeof NUMBERS)[number]));
  const size = SIZES.find((name) => words.includes(name));
  const color = COLOR_NAMES.find((name) => words.includes(name));
  const shape = SHAPES.find((name) => words.includes(name) || words.includes(`${name}s`));
  const object = { ...(size && { size }), ...(color && { color }), ...(shape && { shape }) };
  return Array.from({ length: count }, () => ({ ...object }));
}
