/** Captions read back, and which parts of one are right. */
import { SLOTS, slotsRight } from "../../lib/evaluate/caption-slots";
import { Random } from "../../lib/philox";
import { caption, inOrder, relation } from "../../lib/scenes/language";
import { readCaption } from "../../lib/scenes/read-caption";
import { alike, randomScene, type Scene, type SceneObject } from "../../lib/scenes/world";
import { thing } from "../support/scenes";

const scenes = Array.from({ length: 500 }, (_, i) =>
  randomScene(new Random(12n, 1, i), { pairs: "include" }),
);
const isPair = ({ objects }: Scene) => objects.length === 2 && !alike(objects);

test("a canonical caption is read back as its scene, with and without sizes and background", () => {
  for (const scene of scenes) {
    const objects = inOrder(scene);
    const [a, b] = objects as [SceneObject, SceneObject];
    const pair = isPair(scene) && { relation: relation(a, b) };
    expect(readCaption(caption(scene))).toEqual({
      objects: objects.map(({ size, color, shape }) => ({ size, color, shape })),
      ...pair,
      background: scene.background,
    });
    expect(readCaption(caption(scene, { size: false, background: false }))).toEqual({
      objects: objects.map(({ color, shape }) => ({ color, shape })),
      ...pair,
    });
  }
  expect(new Set(scenes.filter(isPair).map((s) => readCaption(caption(s)).relation))).toEqual(
    new Set(["left of", "above"]),
  );
});

test("a caption that is no sentence of the language says what it can", () => {
  expect(readCaption("nothing on a pink background")).toEqual({
    objects: [],
    background: "pink",
  });
  expect(readCaption("")).toEqual({ objects: [] });
  expect(readCaption("on a blue background")).toEqual({ objects: [], background: "blue" });
  expect(readCaption(" a large circle above a tiny mauve star on a plaid background\n")).toEqual({
    objects: [{ size: "large", shape: "circle" }, { shape: "star" }],
    relation: "above",
  });
  expect(readCaption("three blue hearts above a red star")).toEqual({
    objects: [...Array(3).fill({ color: "blue", shape: "heart" }), { color: "red", shape: "star" }],
  });
  expect(readCaption("what a picture!")).toEqual({ objects: [{}] });
});

test("every slot of a canonical caption is right, also of a pair turned about", () => {
  for (const scene of scenes) {
    const slots = SLOTS.filter((slot) => slot !== "relation" || isPair(scene));
    const all = Object.fromEntries(slots.map((slot) => [slot, true]));
    for (const flip of [false, true])
      expect(slotsRight(readCaption(caption(scene, { flip })), scene)).toEqual(all);
  }
});

describe("a wrong word makes its slot wrong, and no other", () => {
  const pair: Scene = {
    background: "pink",
    objects: [thing("large red circle", 40, 20), thing("small blue square", 15, 30)],
  };
  const right = "a small blue square left of a large red circle on a pink background";
  const wrong = (text: string, scene = pair) =>
    Object.entries(slotsRight(readCaption(text), scene))
      .filter(([, hit]) => !hit)
      .map(([slot]) => slot);

  test.each([
    ["small", "large", "size"],
    ["blue", "green", "color"],
    ["circle", "heart", "shape"],
    ["left of", "right of", "relation"],
    ["left of", "above", "relation"],
    ["pink", "white", "background"],
    ["pink", "plaid", "background"],
  ])("%s as %s", (from, to, slot) => {
    expect(right).toContain(from);
    expect(wrong(right.replace(from, to))).toEqual([slot]);
  });

  test("colours and shapes that changed places", () => {
    expect(wrong(right.replace("blue", "x").replace("red", "blue").replace("x", "red"))).toEqual([
      "color",
    ]);
  });

  test("an object left out, or one too many", () => {
    const ofObjects = ["count", "size", "color", "shape"];
    expect(wrong("a small blue square on a pink background")).toEqual([...ofObjects, "relation"]);
    const twins = {
      ...pair,
      objects: [thing("small cyan star", 10, 10), thing("small cyan star", 40, 40)],
    };
    expect(wrong("two small cyan stars on a pink background", twins)).toEqual([]);
    expect(wrong("three small cyan stars on a pink background", twins)).toEqual(ofObjects);
  });

  test("sizes that are not said", () => {
    expect(wrong("a blue square left of a red circle on a pink background")).toEqual(["size"]);
  });
});
