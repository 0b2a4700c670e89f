/** Scenes written as words. */
import type { SceneObject } from "../../lib/scenes/world";

/** `large red circle` at a place. */
export function thing(words: string, x: number, y: number): SceneObject {
  const [size, color, shape] = words.split(" ") as [
    SceneObject["size"],
    SceneObject["color"],
    SceneObject["shape"],
  ];
  return { size, color, shape, x, y };
}
