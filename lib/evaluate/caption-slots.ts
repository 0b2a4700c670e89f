/** Which parts of a caption are right, each by itself. */
import { inOrder, type Relation, relation } from "../scenes/language.js";
import type { SaidObject, SaidScene } from "../scenes/read-caption.js";
import { alike, type Scene, type SceneObject } from "../scenes/world.js";

/** What a caption says of a scene. `relation` has only one of two objects that are not alike. */
export const SLOTS = ["count", "size", "color", "shape", "relation", "background"] as const;
export type Slot = (typeof SLOTS)[number];
/** Of the slots that the scene has. */
export type SlotsRight = Partial<Record<Slot, boolean>>;

const OPPOSITE: Record<Relation, Relation> = {
  "left of": "right of",
  "right of": "left of",
  above: "below",
  below: "above",
};

/**
 * `count`: as many objects. `size`, `color` and `shape`: those of all objects, in the order of the canonical caption.
 * A pair may also be named the other way about with the opposite relation: that reading counts where more of it is
 * right.
 */
export function slotsRight(said: SaidScene, scene: Scene): SlotsRight {
  const right = inOneOrder(said, scene);
  if (said.relation === undefined) return right;
  const turned = inOneOrder(
    { ...said, objects: [...said.objects].reverse(), relation: OPPOSITE[said.relation] },
    scene,
  );
  const hits = (slots: SlotsRight) => Object.values(slots).filter(Boolean).length;
  return hits(turned) > hits(right) ? turned : right;
}

function inOneOrder({ objects, relation: how, background }: SaidScene, scene: Scene): SlotsRight {
  const wanted = inOrder(scene);
  const count = objects.length === wanted.length;
  const all = (key: keyof SaidObject) =>
    count && wanted.every((object, i) => objects[i]?.[key] === object[key]);
  const pair = wanted.length === 2 && !alike(wanted);
  return {
    count,
    size: all("size"),
    color: all("color"),
    shape: all("shape"),
    ...(pair && { relation: how === relation(...(wanted as [SceneObject, SceneObject])) }),
    background: background === scene.background,
  };
}
