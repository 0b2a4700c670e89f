/** Reads the fixtures' images where there is no sharp: PNG of 8-bit RGB, not interlaced (RFC 2083). */
import { inflateSync } from "node:zlib";
import type { RawPixels } from "../../lib";

const SIGNATURE = 8;
const CHANNELS = 3;

/** What a filter predicts from the bytes to the left, above, and above to the left. */
const FILTERS: ((a: number, b: number, c: number) => number)[] = [
  () => 0,
  (a) => a,
  (_, b) => b,
  (a, b) => (a + b) >> 1,
  (a, b, c) => {
    const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
    if (pa <= pb && pa <= pc) return a;
    return pb <= pc ? b : c;
  },
];

/** Throws where a file is of another kind. */
export function decodePng(file: Buffer): RawPixels {
  const chunks: Buffer[] = [];
  let [width, height] = [0, 0];
  for (let at = SIGNATURE; at < file.length; ) {
    const length = file.readUInt32BE(at);
    const body = file.subarray(at + 8, at + 8 + length);
    const type = file.toString("latin1", at + 4, at + 8);
    if (type === "IDAT") chunks.push(body);
    if (type === "IHDR") {
      [width, height] = [body.readUInt32BE(0), body.readUInt32BE(4)];
      const format = [...body.subarray(8, 13)].join(" ");
      if (format !== "8 2 0 0 0") throw new Error(`expected 8-bit RGB but found PNG of ${format}`);
    }
    at += 12 + length;
  }
  const data = inflateSync(Buffer.concat(chunks));
  const row = CHANNELS * width;
  const pixels = new Uint8Array(height * row);
  for (let y = 0; y < height; y++) {
    const predict = FILTERS[data[y * (row + 1)]!]!;
    for (let i = 0; i < row; i++) {
      const at = y * row + i;
      const left = i >= CHANNELS ? pixels[at - CHANNELS]! : 0;
      const above = y > 0 ? pixels[at - row]! : 0;
      const corner = i >= CHANNELS && y > 0 ? pixels[at - row - CHANNELS]! : 0;
      pixels[at] = data[y * (row + 1) + 1 + i]! + predict(left, above, corner);
    }
  }
  return { pixels, width, height };
}
