/** Scenes as pictures: SVG, made into pixels by sharp. */

import sharp from "sharp";
import { BACKGROUNDS, COLORS, RADIUS, type Scene, SHAPES, type Shape, SIZE } from "./world.js";

export type Point = readonly [x: number, y: number];

/** Corners, or points along a curve, of a shape before it is brought to size. */
function points(shape: Shape): Point[] {
  const around = (n: number) => Array.from({ length: n }, (_, i) => (2 * Math.PI * i) / n);
  switch (shape) {
    case "circle":
      return around(48).map((a) => [Math.cos(a), Math.sin(a)]);
    case "square":
      return [
        [-0.9, -0.9],
        [0.9, -0.9],
        [0.9, 0.9],
        [-0.9, 0.9],
      ];
    case "triangle":
      return [
        [0, -1],
        [1, 0.8],
        [-1, 0.8],
      ];
    case "star":
      return around(10).map((a, i) => {
        const r = i % 2 ? 0.45 : 1;
        return [r * Math.cos(a - Math.PI / 2), r * Math.sin(a - Math.PI / 2)];
      });
    case "heart":
      return around(48).map((a) => [
        16 * Math.sin(a) ** 3,
        -(13 * Math.cos(a) - 5 * Math.cos(2 * a) - 2 * Math.cos(3 * a) - Math.cos(4 * a)),
      ]);
  }
}

/** Its bounding box centred at 0 and half its longer side 1 (a square's 0.9: it looks as large then). */
function outline(shape: Shape): Point[] {
  const p = points(shape);
  const xs = p.map(([x]) => x);
  const ys = p.map(([, y]) => y);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [top, bottom] = [Math.min(...ys), Math.max(...ys)];
  const scale = shape === "square" ? 1 : 2 / Math.max(right - left, bottom - top);
  return p.map(([x, y]) => [(x - (left + right) / 2) * scale, (y - (top + bottom) / 2) * scale]);
}

export const OUTLINES = Object.fromEntries(SHAPES.map((s) => [s, outline(s)])) as Record<
  Shape,
  Point[]
>;

const rgb = (c: readonly number[]) => `rgb(${c.join(",")})`;

/** The scene as an SVG document of `size` pixels along each side. */
export function toSvg(scene: Scene, size = SIZE): string {
  const shapes = scene.objects.map((o) => {
    const at = OUTLINES[o.shape]
      .map(([x, y]) => [o.x + x * RADIUS[o.size], o.y + y * RADIUS[o.size]])
      .map(([x, y]) => `${(x as number).toFixed(3)},${(y as number).toFixed(3)}`);
    return `<polygon points="${at.join(" ")}" fill="${rgb(COLORS[o.color])}"/>`;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${size}" height="${size}" viewBox="0 0 ${SIZE} ${SIZE}">`,
    `<rect width="${SIZE}" height="${SIZE}" fill="${rgb(BACKGROUNDS[scene.background])}"/>`,
    ...shapes,
    "</svg>",
  ].join("");
}

/** RGB bytes of the scene, [size, size, 3]. */
export async function drawPixels(scene: Scene, size = SIZE): Promise<Uint8Array> {
  return sharp(Buffer.from(toSvg(scene, size)))
    .flatten()
    .removeAlpha()
    .raw()
    .toBuffer();
}

/** The scene as a PNG file. */
export async function drawPng(scene: Scene, size = SIZE): Promise<Buffer> {
  return sharp(Buffer.from(toSvg(scene, size)))
    .flatten()
    .removeAlpha()
    .png()
    .toBuffer();
}
