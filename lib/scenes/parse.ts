/**
 * Pictures back to scenes, by rule: what stands out from the background is an object, its colour the nearest
 * of the palette, its shape that whose outline, fitted to the same box, covers it best. Nothing is learned, so
 * it can judge what a model draws.
 */
import sharp from "sharp";
import type { Image } from "../image.js";
import { OUTLINES } from "./draw.js";
import {
  BACKGROUND_NAMES,
  BACKGROUNDS,
  type Background,
  COLOR_NAMES,
  COLORS,
  type Color,
  SHAPES,
  type Shape,
  SIZE,
  type Size,
} from "./world.js";

export interface SeenObject {
  /** "?" where no outline fits. */
  shape: Shape | "?";
  color: Color;
  size: Size;
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface SeenScene {
  background: Background;
  objects: SeenObject[];
}

const AREA = SIZE * SIZE;
/** Pixels below which a blob is a speck. */
const LEAST_AREA = 30;
/** Sum of differences over the three channels from which on a pixel is not background. */
const STANDS_OUT = 110;
/** Overlap with an outline below which the shape is unknown. */
const LEAST_OVERLAP = 0.7;
/** Longer side, in pixels, between a small shape's 18 and a large one's 30. */
const LARGE = 23;

type Rgb = readonly number[];

function difference(pixels: Uint8Array, index: number, color: Rgb): number {
  let sum = 0;
  for (let c = 0; c < 3; c++)
    sum += Math.abs((pixels[index * 3 + c] as number) - (color[c] as number));
  return sum;
}

function nearest<Name extends string>(
  color: Rgb,
  names: readonly Name[],
  palette: Readonly<Record<Name, Rgb>>,
): Name {
  const distance = (name: Name) =>
    palette[name].reduce((sum, v, c) => sum + Math.abs(v - (color[c] as number)), 0);
  return names.reduce((best, name) => (distance(name) < distance(best) ? name : best));
}

function median(values: number[]): number {
  const sorted = values.sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}

/** The median of each channel over some pixels. */
function medianColor(pixels: Uint8Array, indices: readonly number[]): number[] {
  return [0, 1, 2].map((c) => median(indices.map((i) => pixels[i * 3 + c] as number)));
}

function border(): number[] {
  const out: number[] = [];
  for (let i = 0; i < SIZE; i++) out.push(i, (SIZE - 1) * SIZE + i, i * SIZE, i * SIZE + SIZE - 1);
  return out;
}
const BORDER = border();

/** Indices of the four neighbours that lie within the picture. */
function neighbours(i: number): number[] {
  const x = i % SIZE;
  const out: number[] = [];
  if (x > 0) out.push(i - 1);
  if (x < SIZE - 1) out.push(i + 1);
  if (i >= SIZE) out.push(i - SIZE);
  if (i < AREA - SIZE) out.push(i + SIZE);
  return out;
}

/** Connected pixels of a mask, four ways, each blob a list of indices. */
function blobs(mask: Uint8Array): number[][] {
  const seen = new Uint8Array(AREA);
  const out: number[][] = [];
  for (let start = 0; start < AREA; start++) {
    if (!mask[start] || seen[start]) continue;
    const blob = [start];
    seen[start] = 1;
    for (let k = 0; k < blob.length; k++)
      for (const j of neighbours(blob[k] as number))
        if (mask[j] && !seen[j]) {
          seen[j] = 1;
          blob.push(j);
        }
    out.push(blob);
  }
  return out;
}

function toMask(indices: readonly number[]): Uint8Array {
  const mask = new Uint8Array(AREA);
  for (const i of indices) mask[i] = 1;
  return mask;
}

/** Pixels of the blob whose neighbours all belong to it; the picture's edge does not. */
function eroded(blob: readonly number[]): number[] {
  const mask = toMask(blob);
  return blob.filter((i) => {
    const around = neighbours(i);
    return around.length === 4 && around.every((j) => mask[j]);
  });
}

interface Box {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

function boxOf(indices: readonly number[]): Box {
  const box: Box = { left: SIZE, top: SIZE, right: 0, bottom: 0 };
  for (const i of indices) {
    const x = i % SIZE;
    const y = (i - x) / SIZE;
    box.left = Math.min(box.left, x);
    box.right = Math.max(box.right, x + 1);
    box.top = Math.min(box.top, y);
    box.bottom = Math.max(box.bottom, y + 1);
  }
  return box;
}

/** Outlines scaled to the unit square. */
const UNIT = Object.fromEntries(
  SHAPES.map((shape) => {
    const xs = OUTLINES[shape].map(([x]) => x);
    const ys = OUTLINES[shape].map(([, y]) => y);
    const [left, top] = [Math.min(...xs), Math.min(...ys)];
    const [width, height] = [Math.max(...xs) - left, Math.max(...ys) - top];
    return [shape, OUTLINES[shape].map(([x, y]) => [(x - left) / width, (y - top) / height])];
  }),
) as Record<Shape, [number, number][]>;

function inside(polygon: readonly [number, number][], x: number, y: number): boolean {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i] as [number, number];
    const [xj, yj] = polygon[j] as [number, number];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}

/** Points of a pixel, along each side, that are tested against an outline. */
const SAMPLES = 4;

/** Intersection over union of a silhouette with a shape's outline in the same box. */
function overlap(mask: Uint8Array, box: Box, shape: Shape): number {
  const [width, height] = [box.right - box.left, box.bottom - box.top];
  let both = 0;
  let either = 0;
  for (let y = box.top; y < box.bottom; y++)
    for (let x = box.left; x < box.right; x++) {
      let covered = 0;
      for (let s = 0; s < SAMPLES * SAMPLES; s++) {
        const px = (x + ((s % SAMPLES) + 0.5) / SAMPLES - box.left) / width;
        const py = (y + (Math.floor(s / SAMPLES) + 0.5) / SAMPLES - box.top) / height;
        if (inside(UNIT[shape], px, py)) covered++;
      }
      const is = mask[y * SIZE + x] === 1;
      const should = covered * 2 >= SAMPLES * SAMPLES;
      if (is && should) both++;
      if (is || should) either++;
    }
  return both / either;
}

function parseBlob(pixels: Uint8Array, blob: number[], ground: Rgb): SeenObject | undefined {
  const core = eroded(eroded(blob));
  const color = nearest(medianColor(pixels, core.length ? core : blob), COLOR_NAMES, COLORS);
  // The silhouette: pixels nearer to the object's colour than to the ground.
  const reach = new Set(blob);
  for (const i of blob) for (const j of neighbours(i)) reach.add(j);
  const silhouette = [...reach].filter(
    (i) => difference(pixels, i, COLORS[color]) < difference(pixels, i, ground),
  );
  if (silhouette.length < LEAST_AREA) return undefined;
  const mask = toMask(silhouette);
  const box = boxOf(silhouette);
  const fits = SHAPES.map((shape) => ({ shape, fit: overlap(mask, box, shape) }));
  const best = fits.reduce((a, b) => (b.fit > a.fit ? b : a));
  const [width, height] = [box.right - box.left, box.bottom - box.top];
  return {
    shape: best.fit > LEAST_OVERLAP ? best.shape : "?",
    color,
    size: Math.max(width, height) > LARGE ? "large" : "small",
    x: (box.left + box.right) / 2,
    y: (box.top + box.bottom) / 2,
    width,
    height,
  };
}

/** `pixels`: RGB bytes, [64, 64, 3]. */
export function parseScene(pixels: Uint8Array): SeenScene {
  if (pixels.length !== AREA * 3)
    throw new RangeError(`expected ${AREA * 3} bytes of RGB but received ${pixels.length}`);
  const votes = BORDER.map((i) =>
    nearest(Array.from(pixels.subarray(i * 3, i * 3 + 3)), BACKGROUND_NAMES, BACKGROUNDS),
  );
  const count = (name: Background) => votes.filter((v) => v === name).length;
  const background = BACKGROUND_NAMES.reduce((a, b) => (count(b) > count(a) ? b : a));
  const ground = medianColor(
    pixels,
    BORDER.filter((_, k) => votes[k] === background),
  );
  const mask = new Uint8Array(AREA);
  for (let i = 0; i < AREA; i++) mask[i] = difference(pixels, i, ground) > STANDS_OUT ? 1 : 0;
  const objects = blobs(mask)
    .filter((blob) => blob.length >= LEAST_AREA)
    .map((blob) => parseBlob(pixels, blob, ground))
    .filter((o): o is SeenObject => o !== undefined);
  return { background, objects };
}

/** Of a picture of any size, brought to the parser's. */
export async function parsePicture({ pixels, width, height }: Image): Promise<SeenScene> {
  if (width === SIZE && height === SIZE) return parseScene(pixels);
  const scaled = sharp(pixels, { raw: { width, height, channels: 3 } })
    .resize(SIZE, SIZE, { fit: "fill", kernel: "linear" })
    .raw();
  return parseScene(await scaled.toBuffer());
}
