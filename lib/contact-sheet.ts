/** Many images on one: a grid with each image's label below it. */

import sharp, { type OverlayOptions } from "sharp";
import { InvalidOptionError } from "./errors.js";
import { asBuffer, Image } from "./image.js";

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

/** Draws the sheet. Images larger than a place are reduced, small ones enlarged without smoothing. */
export async function contactSheet(
  entries: readonly ContactSheetEntry[],
  options: ContactSheetOptions = {},
): Promise<Image> {
  const { columns = Math.ceil(Math.sqrt(entries.length)) } = options;
  if (entries.length === 0) {
    throw new InvalidOptionError(
      "expected at least one image for a contact sheet but received none",
    );
  }
  if (!Number.isSafeInteger(columns) || columns < 1) {
    throw new InvalidOptionError(`expected a positive integer for columns but received ${columns}`);
  }
  const labels = entries.map(({ label }) => wrapLabel(label));
  const lines = Math.max(...labels.map((label) => label.length));
  const pitch = { x: TILE + GAP, y: TILE + lines * LINE_HEIGHT + GAP };
  const rows = Math.ceil(entries.length / columns);
  const width = columns * pitch.x + GAP;
  const height = rows * pitch.y + GAP;
  const place = (index: number) => ({
    left: GAP + (index % columns) * pitch.x,
    top: GAP + Math.floor(index / columns) * pitch.y,
  });

  const tiles = await Promise.all(
    entries.map(async ({ image }, index): Promise<OverlayOptions> => {
      const { left, top } = place(index);
      const { data, info } = await fitToTile(image);
      return {
        input: data,
        raw: { width: info.width, height: info.height, channels: 3 },
        left: left + ((TILE - info.width) >> 1),
        top: top + ((TILE - info.height) >> 1),
      };
    }),
  );
  const text = labels.flatMap((label, index) => {
    const { left, top } = place(index);
    return label.map(
      (line, i) =>
        `<text x="${left + TILE / 2}" y="${top + TILE + (i + 1) * LINE_HEIGHT - 4}">${escapeXml(line)}</text>`,
    );
  });
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" ` +
    `font-family="sans-serif" font-size="${FONT_SIZE}" text-anchor="middle" fill="#222">${text.join("")}</svg>`;
  const { data, info } = await sharp({
    create: { width, height, channels: 3, background: "#ffffff" },
  })
    .composite([...tiles, { input: Buffer.from(svg), left: 0, top: 0 }])
    .removeAlpha()
    .raw()
    .toBuffer({ resolveWithObject: true });
  return Image.fromPixels(data, info.width, info.height);
}

/** RGB pixels that fit a tile: small images by a whole factor, so that their pixels stay square. */
function fitToTile({ pixels, width, height }: Image) {
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
