/** The addon's resampling against Pillow's, byte for byte. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { loadAddon } from "../../lib/addon.js";
import type { ResizeFilter } from "../../lib/preprocess.js";

interface Case {
  seed: number;
  /** The noise is black and white, which overshoots most. */
  binary: boolean;
  width: number;
  height: number;
  toWidth: number;
  toHeight: number;
  filter: ResizeFilter;
  offset: number;
}

const folder = join(__dirname, "../fixtures/resize");
const expected = readFileSync(join(folder, "pillow.bin"));
const { cases } = JSON.parse(readFileSync(join(folder, "cases.json"), "utf8")) as { cases: Case[] };

/** The upper bytes of xorshift32. */
function noise(seed: number, length: number, binary: boolean): Uint8Array {
  const bytes = new Uint8Array(length);
  let x = seed;
  for (let i = 0; i < length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    const byte = x >>> 24;
    bytes[i] = binary ? (byte > 127 ? 255 : 0) : byte;
  }
  return bytes;
}

const addon = loadAddon();

test.each(cases)(
  "$width x $height to $toWidth x $toHeight, $filter",
  async ({ seed, binary, width, height, toWidth, toHeight, filter, offset }) => {
    const source = noise(seed, width * height * 3, binary);
    const result = await addon.resizeImage(source, width, height, toWidth, toHeight, filter);
    const pillow = expected.subarray(offset, offset + toWidth * toHeight * 3);
    expect(Buffer.from(result).equals(pillow)).toBe(true);
  },
);

test.each([
  [0, 4, 4, 4],
  [4, 4, 0, 4],
  [4, 4, 4, -1],
  [4, 4, 4, 2 ** 40],
  [4, 5, 4, 4],
])("sizes %p x %p to %p x %p are refused", async (width, height, toWidth, toHeight) => {
  const call = async () =>
    addon.resizeImage(new Uint8Array(4 * 4 * 3), width, height, toWidth, toHeight, "bicubic");
  await expect(call()).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
});
