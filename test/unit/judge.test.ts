/** The rules that pictures are judged by, on pictures drawn right and with one defect each. */
import {
  check,
  GENEVAL_TASKS,
  kept,
  objectsThere,
  passes,
  positionOf,
} from "../../lib/evaluate/judge";
import { drawPixels } from "../../lib/scenes/draw";
import { parseScene, type SeenObject } from "../../lib/scenes/parse";
import type { Scene, SceneObject } from "../../lib/scenes/world";
import { thing } from "../support/scenes";

const wanted: Scene = {
  background: "white",
  objects: [thing("large red circle", 18, 20), thing("small blue square", 46, 44)],
};
const see = async (scene: Scene) => parseScene(await drawPixels(scene));
/** The wanted scene with its objects changed. */
const changed = (
  change: (objects: SceneObject[]) => SceneObject[],
  background = wanted.background,
) => see({ background, objects: change(wanted.objects.map((o) => ({ ...o }))) });

test("a picture that is right is right in everything", async () => {
  expect(check(await see(wanted), wanted)).toEqual({
    count: true,
    color: true,
    shape: true,
    objects: true,
    size: true,
    background: true,
    relation: true,
    all: true,
  });
});

test("each object is looked for by itself", async () => {
  const there = async (
    change: (objects: SceneObject[]) => SceneObject[],
    scene: Scene = wanted,
  ): Promise<boolean[]> => objectsThere(await changed(change), scene);
  expect(await there((o) => o)).toEqual([true, true]);
  expect(await there(([a]) => [a!])).toEqual([true, false]);
  expect(await there(([a, b]) => [{ ...a!, shape: "star" }, b!])).toEqual([false, true]);
  expect(await there(([a, b]) => [a!, { ...b!, color: "cyan" }])).toEqual([true, false]);
  const twice = { ...wanted, objects: [wanted.objects[0]!, wanted.objects[0]!] };
  expect(await there((o) => o, twice)).toEqual([true, false]);
});

test.each([
  ["another background", (o: SceneObject[]) => o, "pink" as const, ["background"]],
  [
    "another size",
    ([a, b]: SceneObject[]) => [a!, { ...b!, size: "large" as const }],
    "white" as const,
    ["size"],
  ],
  [
    "another colour",
    ([a, b]: SceneObject[]) => [a!, { ...b!, color: "cyan" as const }],
    "white" as const,
    ["color", "objects", "size", "relation"],
  ],
  [
    "another shape",
    ([a, b]: SceneObject[]) => [a!, { ...b!, shape: "heart" as const }],
    "white" as const,
    ["shape", "objects", "size", "relation"],
  ],
  [
    "places changed",
    ([a, b]: SceneObject[]) => [
      { ...a!, x: b!.x, y: b!.y },
      { ...b!, x: a!.x, y: a!.y },
    ],
    "white" as const,
    ["relation"],
  ],
  [
    "colours changed about",
    ([a, b]: SceneObject[]) => [
      { ...a!, color: b!.color },
      { ...b!, color: a!.color },
    ],
    "white" as const,
    ["objects", "size", "relation"],
  ],
  [
    "one missing",
    ([a]: SceneObject[]) => [a!],
    "white" as const,
    ["count", "color", "shape", "objects", "size", "relation"],
  ],
])("%s is wrong in that alone", async (_, change, background, wrong) => {
  const checks = check(await changed(change, background), wanted);
  const failed = Object.entries(checks)
    .filter(([, ok]) => !ok)
    .map(([name]) => name);
  expect(failed.sort()).toEqual([...wrong, "all"].sort());
});

describe("two objects that differ in size alone", () => {
  const large = thing("large red circle", 46, 32);
  const small = thing("small red circle", 17, 32);
  const target: Scene = { background: "pink", objects: [small, large] };
  const exchanged: Scene = {
    ...target,
    objects: [
      { ...small, x: large.x },
      { ...large, x: small.x },
    ],
  };

  test("stand in a relation that says which is which", async () => {
    expect(check(await see(target), target).all).toBe(true);
    const checks = check(await see(exchanged), target);
    const { relation, all, ...others } = checks;
    expect([relation, all]).toEqual([false, false]);
    expect(Object.values(others)).toEqual(Object.values(others).map(() => true));
  });

  test("do not lie where they lay when they changed places", async () => {
    expect(kept(await see(target), target)).toBe(true);
    expect(kept(await see(exchanged), target)).toBe(false);
  });
});

test("edits: what was not to change must lie where it lay", async () => {
  const target = {
    ...wanted,
    objects: [{ ...wanted.objects[0]!, color: "green" as const }, wanted.objects[1]!],
  };
  expect(kept(await see(target), target)).toBe(true);
  const moved = { ...target, objects: [target.objects[0]!, { ...target.objects[1]!, x: 38 }] };
  expect(kept(await see(moved), target)).toBe(false);
  expect(kept(await see(wanted), target)).toBe(false);
});

const box = (x: number, y: number, side = 10): SeenObject => ({
  shape: "circle",
  color: "red",
  size: "small",
  x,
  y,
  width: side,
  height: side,
});

test("positions by GenEval's rule", () => {
  expect([...positionOf(box(10, 30), box(50, 30))]).toEqual(["left of"]);
  expect([...positionOf(box(50, 30), box(10, 34))]).toEqual(["right of"]);
  expect([...positionOf(box(30, 10), box(30, 50))]).toEqual(["above"]);
  // On the diagonal both hold; within a tenth of the boxes' sizes none does.
  expect([...positionOf(box(50, 50), box(10, 10))].sort()).toEqual(["below", "right of"]);
  expect([...positionOf(box(31, 30), box(30, 30))]).toEqual([]);
  expect([...positionOf(box(30, 30), box(30, 30))]).toEqual([]);
});

test("each of the six tasks asks its own question", async () => {
  const failing = async (seen: Promise<ReturnType<typeof parseScene>>, scene = wanted) => {
    const parsed = await seen;
    return GENEVAL_TASKS.filter((task) => !passes(task, parsed, scene));
  };
  expect(await failing(see(wanted))).toEqual(["counting"]); // one circle, where two are meant
  const twins: Scene = {
    background: "gray",
    objects: [thing("small cyan star", 14, 14), thing("small cyan star", 44, 40)],
  };
  expect(passes("counting", await see(twins), twins)).toBe(true);
  expect(await failing(changed(([a, b]) => [a!, { ...b!, color: "cyan" }]))).toEqual([
    "counting",
    "color attribution",
  ]);
  expect(await failing(changed(([a, b]) => [{ ...a!, color: "black" }, b!]))).toEqual([
    "counting",
    "colors",
    "color attribution",
  ]);
  const apart = changed(([a, b]) => [
    { ...a!, x: 46, y: 44 },
    { ...b!, x: 12, y: 14 },
  ]);
  expect(await failing(apart)).toEqual(["counting", "position"]);
  expect(await failing(changed(([a]) => [a!]))).toEqual([
    "two objects",
    "counting",
    "position",
    "color attribution",
  ]);
});
