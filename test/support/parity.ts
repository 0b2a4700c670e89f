/** What a fixture expects, and how far from it a result is. */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { FIXTURES, type FixtureTensor, Tensors } from "./fixtures";

/** An input of `expected.json`; which fields it has depends on its task. */
export interface FixtureInput {
  name: string;
  task: "text" | "caption" | "answer" | "generate" | "edit" | "vae";
  text: string;
  ids: number[];
  question: string;
  /** A file name within the folder of expectations. */
  image: string;
  prefix_ids: number[];
  max_new_tokens: number;
  greedy: number[];
  greedy_text: string;
  prompt: string;
  instruction: string;
  seed: number;
}

export interface Fixture {
  name: string;
  /** The checkpoint directory. */
  directory: string;
  inputs: FixtureInput[];
  /** The path of an input's image. */
  imageOf(input: FixtureInput): string;
  tensor(name: string): FixtureTensor;
}

/** A fixture of a folder; "shapes-64" is the shipped model, in `shippedDirectory`, with expectations of its own. */
export function openFixture(
  name: string,
  folder = FIXTURES,
  shippedDirectory = join(__dirname, "../../models", name),
): Fixture {
  const own = join(folder, name);
  const shipped = existsSync(join(own, "expected"));
  const expected = shipped ? join(own, "expected") : own;
  const info = JSON.parse(readFileSync(join(expected, "expected.json"), "utf8"));
  const tensors = new Tensors(join(expected, "expected.safetensors"));
  return {
    name,
    directory: shipped ? shippedDirectory : own,
    inputs: info.inputs,
    imageOf: (input) => join(expected, input.image),
    tensor: (tensor) => tensors.get(tensor),
  };
}

/** The largest difference, relative to the largest value expected. */
export function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) throw new Error(`${got.length} values, expected ${want.length}`);
  let [difference, largest] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    difference = Math.max(difference, Math.abs(got[i]! - want[i]!)); // NaN stays NaN
    largest = Math.max(largest, Math.abs(want[i]!));
  }
  return difference / largest;
}

/** The largest difference in 8-bit levels between RGB bytes and expected [3, height, width] in [-1, 1]. */
export function pixelError(rgb: Uint8Array, { shape, data }: FixtureTensor): number {
  const [, height, width] = shape as [number, number, number];
  const count = height * width;
  if (rgb.length !== 3 * count) throw new Error(`${rgb.length} bytes, expected ${3 * count}`);
  let largest = 0;
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) {
      const want = Math.min(Math.max((data[c * count + i]! + 1) * 127.5, 0), 255);
      largest = Math.max(largest, Math.abs(rgb[3 * i + c]! - want));
    }
  }
  return largest;
}

/** Latents [c, h, w] as tokens [h/p * w/p, c * p * p], in the order channel, patch row, patch column. */
export function patchify({ shape, data }: FixtureTensor, patch: number): Float32Array {
  const [c, h, w] = shape as [number, number, number];
  const tokens = new Float32Array(c * h * w);
  let to = 0;
  for (let row = 0; row < h; row += patch) {
    for (let column = 0; column < w; column += patch) {
      for (let channel = 0; channel < c; channel++) {
        for (let y = 0; y < patch; y++) {
          for (let x = 0; x < patch; x++) {
            tokens[to++] = data[(channel * h + row + y) * w + column + x]!;
          }
        }
      }
    }
  }
  return tokens;
}

/** The index of the largest value of each row. */
export function argmaxRows(values: ArrayLike<number>, width: number): number[] {
  return Array.from({ length: values.length / width }, (_, row) => {
    let best = 0;
    for (let i = 1; i < width; i++) {
      if (values[row * width + i]! > values[row * width + best]!) best = i;
    }
    return best;
  });
}
