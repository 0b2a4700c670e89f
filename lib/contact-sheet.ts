/** Many images on one: a grid with each image's label below it. */

import sharp from "sharp";
import { InvalidImageError, InvalidOptionError } from "./errors.js";
import { asBuffer, checkSides, Image, type ImageFormat } from "./image.js";

export interface ContactSheetEntry {
  image: Image;
  /** Shown below the image, on up to three lines. */
  label: string;
}

export interface ContactSheetOptions {
  /** Default: as many as make the sheet about square. */
  columns?: number;
}

/** Pixels across the place of an image: room for a label, and large enough to judge a small image. */
const TILE = 256;
const GAP = 12;
const FONT_SIZE = 14;
const LINE_HEIGHT = 18;
const MAX_LINES = 3;
/** A mean over the letters of common sans-serif fonts; wide scripts count twice. */
const LETTER_WIDTH = 0.55;
/** Pixels of a sheet: 1.5 GiB in memory, some 6,000 images. */
const MAX_PIXELS = 2 ** 29;

/** Where everything is. Throws `IMAGE_TOO_LARGE` where it is too much. */
function layoutOf(labels: readonly string[][], columns: number) {
  const lines = labels.reduce((most, label) => Math.max(most, label.length), 0);
  const pitch = { x: TILE + GAP, y: TILE + lines * LINE_HEIGHT + GAP };
  const width = columns * pitch.x + GAP;
  const height = Math.ceil(labels.length / columns) * pitch.y + GAP;
  if (width * height > MAX_PIXELS) {
    throw new InvalidImageError(
      "IMAGE_TOO_LARGE",
      `a sheet of ${labels.length} images would have ${width} x ${height} pixels, more than ${MAX_PIXELS}`,
    );
  }
  const place = (index: number) => ({
    left: GAP + (index % columns) * pitch.x,
    top: GAP + Math.floor(index / columns) * pitch.y,
  });
  return { width, height, place };
}

const squareColumns = (count: number): number => Math.ceil(Math.sqrt(count));

/**
 * Throws `IMAGE_TOO_LARGE` where images of such labels are too many for one sheet, or for one of that format: before
 * they are drawn.
 */
export function checkContactSheet(labels: readonly string[], format: ImageFormat): void {
  const { width, height } = layoutOf(labels.map(wrapLabel), squareColumns(labels.length));
  checkSides(width, height, format);
}

/** Draws the sheet. Images larger than a place are reduced, small ones enlarged without smoothing. */
export async function contactSheet(
  entries: readonly ContactSheetEntry[],
  options: ContactSheetOptions = {},
): Promise<Image> {
  const { columns = squareColumns(entries.length) } = options;
  if (entries.length === 0) {
    throw new InvalidOptionError(
      "expected at least one image for a contact sheet but received none",
    );
  }
  if (!Number.isSafeInteger(columns) || columns < 1) {
    throw new InvalidOptionError(`expected a positive integer for columns but received ${columns}`);
  }
  const labels = entries.map(({ label }) => wrapLabel(label));
  const { width, height, place } = layoutOf(labels, columns);
  // Each part goes to its place as soon as it is drawn: as layers of one picture, thousands would all be held at once.
  const sheet = Buffer.alloc(width * height * 3, 0xff);
  const put = ({ data, info }: Pixels, left: number, top: number) => {
    const row = info.width * 3;
    for (let y = 0; y < info.height; y++) {
      data.copy(sheet, ((top + y) * width + left) * 3, y * row, (y + 1) * row);
    }
  };
  await Promise.all(
    entries.map(async ({ image }, index) => {
      const { left, top } = place(index);
      const tile = await fitToTile(image);
      const { info } = tile;
      put(tile, left + ((TILE - info.width) >> 1), top + ((TILE - info.height) >> 1));
      const label = labels[index]!;
      if (label.length > 0) put(await drawLabel(label), left - GAP / 2, top + TILE);
    }),
  );
  return Image.fromPixels(sheet, width, height);
}

interface Pixels {
  data: Buffer;
  info: { width: number; height: number };
}

/** RGB pixels of a label, as wide as a place and the gap beside it. */
function drawLabel(lines: readonly string[]): Promise<Pixels> {
  const [width, height] = [TILE + GAP, lines.length * LINE_HEIGHT];
  const text = lines.map(
    (line, i) =>
      `<text x="${width / 2}" y="${(i + 1) * LINE_HEIGHT - 4}">${escapeXml(line)}</text>`,
  );
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" ` +
    `font-family="sans-serif" font-size="${FONT_SIZE}" text-anchor="middle" fill="#222">${text.join("")}</svg>`;
  return sharp(Buffer.from(svg))
    .flatten({ background: "#ffffff" })
    .raw()
    .toBuffer({ resolveWithObject: true });
}

/** RGB pixels that fit a tile: small images by a whole factor, so that their pixels stay square. */
function fitToTile({ pixels, width, height }: Image): Promise<Pixels> {
  const side = Math.max(width, height);
  const image = sharp(asBuffer(pixels), { raw: { width, height, channels: 3 } });
  const factor = Math.floor(TILE / side);
  const fitted =
    factor >= 1
      ? image.resize(width * factor, height * factor, { kernel: "nearest" })
      : image.resize(TILE, TILE, { fit: "inside" });
  return fitted.raw().toBuffer({ resolveWithObject: true });
}

/** A label as lines that fit a tile's width; what does not fit the last one ends in an ellipsis. */
export function wrapLabel(label: string): string[] {
  const room = TILE / (FONT_SIZE * LETTER_WIDTH);
  const lines: string[] = [];
  let line = "";
  for (const word of label.trim().split(/\s+/)) {
    for (const piece of breakWord(word, room)) {
      const joined = line === "" ? piece : `${line} ${piece}`;
      if (letters(joined) <= room) {
        line = joined;
      } else {
        lines.push(line);
        line = piece;
      }
    }
  }
  if (line !== "") lines.push(line);
  if (lines.length <= MAX_LINES) return lines;
  const shown = lines.slice(0, MAX_LINES);
  const last = [...shown[MAX_LINES - 1]!];
  while (letters(`${last.join("")}…`) > room) last.pop();
  shown[MAX_LINES - 1] = `${last.join("").trimEnd()}…`;
  return shown;
}

/** A word in pieces that each fit a line: scripts without spaces have long ones. */
function breakWord(word: string, room: number): string[] {
  const pieces = [""];
  for (const letter of word) {
    const joined = pieces[pieces.length - 1] + letter;
    if (letters(joined) <= room) pieces[pieces.length - 1] = joined;
    else pieces.push(letter);
  }
  return pieces;
}

/** Width in mean letters; those of East Asian scripts and emoji are about two wide. */
function letters(text: string): number {
  let width = 0;
  for (const letter of text) width += letter.codePointAt(0)! >= 0x1100 ? 2 : 1;
  return width;
}

/** Text for an XML element, without the characters that XML cannot hold. */
function escapeXml(text: string): string {
  return (
    Buffer.from(text)
      .toString() // Lone surrogates become U+FFFD.
      // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is to be removed.
      .replace(/[\u0000-\u001f\ufffe\uffff]/g, "")
      .replace(/&/g, "&amp;")
      .replace(/</g, "&lt;")
      .replace(/>/g, "&gt;")
  );
}
