/** Damaged image files: each is decoded or refused with an `InvalidImageError`, and none ends the process. */

import sharp from "sharp";
import { InvalidImageError } from "../../lib/errors.js";
import { decodeImage } from "../../lib/image-input.js";

const CASES_PER_FORMAT = 180;

/** Mulberry32: numbers in [0, 1) that depend on the seed alone. */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function damage(file: Uint8Array, random: () => number): Uint8Array {
  const below = (n: number) => Math.floor(random() * n);
  let bytes = Uint8Array.from(file);
  for (let changes = 1 + below(4); changes > 0 && bytes.length > 0; changes--) {
    // Half of the damage lies in the headers, where it is read as sizes and offsets.
    const at = below(random() < 0.5 ? Math.min(64, bytes.length) : bytes.length);
    switch (below(6)) {
      case 0:
        bytes[at]! ^= 1 << below(8);
        break;
      case 1:
        bytes.fill(below(2) * 255, at, at + 1 + below(8));
        break;
      case 2:
        bytes = bytes.slice(0, at);
        break;
      case 3: {
        const end = at + 1 + below(16);
        bytes = Uint8Array.from([...bytes.subarray(0, at), ...bytes.subarray(end)]);
        break;
      }
      case 4: {
        const copied = bytes.subarray(at, at + 1 + below(16));
        bytes = Uint8Array.from([...bytes.subarray(0, at), ...copied, ...bytes.subarray(at)]);
        break;
      }
      default:
        for (let i = at; i < Math.min(bytes.length, at + 4); i++) bytes[i] = below(256);
    }
  }
  return bytes;
}

const noise = Buffer.from(Array.from({ length: 20 * 14 * 3 }, (_, i) => (i * i) % 251));
const image = () => sharp(noise, { raw: { width: 20, height: 14, channels: 3 } });
const svg =
  '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle cx="4" cy="4" r="3" fill="red"/></svg>';

test.each<[string, () => Promise<Buffer>]>([
  ["jpeg", () => image().withMetadata({ orientation: 6 }).jpeg().toBuffer()],
  ["png", () => image().ensureAlpha(0.5).png().toBuffer()],
  ["webp", () => image().webp().toBuffer()],
  ["gif", () => image().gif().toBuffer()],
  ["tiff", () => image().tiff({ compression: "lzw" }).toBuffer()],
  ["avif", () => image().avif().toBuffer()],
  ["svg", async () => Buffer.from(svg)],
])("damaged %s files", async (format, encode) => {
  const file = await encode();
  const random = randomNumbers(file.length);
  let refused = 0;
  for (let i = 0; i < CASES_PER_FORMAT; i++) {
    const bytes = damage(file, random);
    try {
      const { pixels, width, height } = await decodeImage(bytes, { maxPixels: 1_000_000 });
      expect(pixels.length).toBe(width * height * 3);
    } catch (error) {
      if (!(error instanceof InvalidImageError)) {
        throw new Error(`${format} case ${i}: ${Buffer.from(bytes).toString("base64")}`, {
          cause: error,
        });
      }
      refused++;
    }
  }
  // Otherwise the damage would not have been any.
  expect(refused).toBeGreaterThan(CASES_PER_FORMAT / 20);
});
