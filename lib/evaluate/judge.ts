/** Whether a picture shows what was asked for. Pictures are parsed by rule (`lib/scenes/parse.ts`). */
import { type Relation, relation } from "../scenes/language.js";
import type { SeenObject, SeenScene } from "../scenes/parse.js";
import { alike, type Scene, type SceneObject } from "../scenes/world.js";

type Likeness = "shape" | "color" | "size";
type Thing = Pick<SeenObject, Likeness>;

/** The objects' attributes, whatever their order. */
function bag(objects: readonly Thing[], ...keys: Likeness[]): string {
  return JSON.stringify(objects.map((o) => keys.map((k) => o[k]).join(" ")).sort());
}

const same = (a: readonly Thing[], b: readonly Thing[], ...keys: Likeness[]) =>
  bag(a, ...keys) === bag(b, ...keys);

/** What of a scene a picture shows; `relation` where two different objects stand in one. */
export interface Checks {
  count: boolean;
  color: boolean;
  shape: boolean;
  /** Every colour on its shape. */
  objects: boolean;
  size: boolean;
  background: boolean;
  relation?: boolean;
  /** All of these. */
  all: boolean;
}

export function check(seen: SeenScene, scene: Scene, { relations = true } = {}): Checks {
  const [got, want] = [seen.objects, scene.objects];
  const objects = same(got, want, "color", "shape");
  const checks: Omit<Checks, "all"> = {
    count: got.length === want.length,
    color: same(got, want, "color"),
    shape: same(got, want, "shape"),
    objects,
    size: same(got, want, "color", "shape", "size"),
    background: seen.background === scene.background,
  };
  const [a, b] = want;
  if (relations && a && b && want.length === 2 && !alike(want)) {
    const twins = same([a], [b], "color", "shape");
    // Sizes count by themselves, except where nothing else says which object is which.
    const keys: Likeness[] = twins ? ["color", "shape", "size"] : ["color", "shape"];
    const holds = (p: SeenObject, q: SeenObject) =>
      same([p], [a], ...keys) &&
      same([q], [b], ...keys) &&
      relation(p as SceneObject, q as SceneObject) === relation(a, b);
    const [p, q] = got;
    checks.relation = objects && !!p && !!q && (holds(p, q) || holds(q, p));
  }
  return { ...checks, all: Object.values(checks).every(Boolean) };
}

/** Which of the scene's objects, in their order, are there in their colour; none seen counts for two. */
export function objectsThere(seen: SeenScene, scene: Scene): boolean[] {
  const left = [...seen.objects];
  return scene.objects.map((o) => {
    const index = left.findIndex((p) => p.shape === o.shape && p.color === o.color);
    if (index >= 0) left.splice(index, 1);
    return index >= 0;
  });
}

/** Pixels within which an object that was not to change must still lie. */
const STILL = 4;

/** Whether the target's objects lie where the source had them. */
export function kept(seen: SeenScene, target: Scene): boolean {
  return target.objects.every((o) =>
    seen.objects.some(
      (p) =>
        p.shape === o.shape &&
        p.color === o.color &&
        p.size === o.size &&
        Math.abs(p.x - o.x) < STILL &&
        Math.abs(p.y - o.y) < STILL,
    ),
  );
}

/**
 * How box `a` lies to box `b`, by GenEval's rule (2310.11513): the centres' offset, less a tenth of the boxes'
 * sizes, decides; more than half of it along an axis makes a relation.
 */
export function positionOf(a: SeenObject, b: SeenObject): Set<Relation> {
  const offset = [a.x - b.x, a.y - b.y] as const;
  const margin = [0.1 * (a.width + b.width), 0.1 * (a.height + b.height)] as const;
  const length = Math.hypot(...offset) || 1;
  const [dx, dy] = [0, 1].map((i) => {
    const far = Math.max(0, Math.abs(offset[i] as number) - (margin[i] as number));
    return (Math.sign(offset[i] as number) * far) / length;
  }) as [number, number];
  const found = new Set<Relation>();
  if (dx < -0.5) found.add("left of");
  if (dx > 0.5) found.add("right of");
  if (dy < -0.5) found.add("above");
  if (dy > 0.5) found.add("below");
  return found;
}

export const GENEVAL_TASKS = [
  "single object",
  "two objects",
  "counting",
  "colors",
  "position",
  "color attribution",
] as const;
export type GenEvalTask = (typeof GENEVAL_TASKS)[number];

/** GenEval's question for each task; `scene` is what the prompt says. */
export function passes(task: GenEvalTask, seen: SeenScene, scene: Scene): boolean {
  const [a, b] = scene.objects as [SceneObject, SceneObject];
  const some = (o: SceneObject, ...keys: Likeness[]) =>
    seen.objects.filter((p) => keys.every((k) => p[k] === o[k]));
  switch (task) {
    case "single object":
      return some(a, "shape").length > 0;
    case "two objects":
      return some(a, "shape").length > 0 && some(b, "shape").length > 0;
    case "counting":
      return some(a, "shape").length === scene.objects.length;
    case "colors":
      return some(a, "shape", "color").length > 0;
    case "position":
      return some(a, "shape").some((p) =>
        some(b, "shape").some((q) => p !== q && positionOf(p, q).has(relation(a, b))),
      );
    case "color attribution":
      return some(a, "shape", "color").length > 0 && some(b, "shape", "color").length > 0;
  }
}
