/** How near two pictures are. */
import type { Image } from "./image.js";

/** Peak signal-to-noise ratio of two pictures of one size, in decibels; at most 108. */
export function psnr(a: Image, b: Image): number {
  const square = a.pixels.reduce((sum, v, i) => sum + (v - (b.pixels[i] as number)) ** 2, 0);
  return 10 * Math.log10(255 ** 2 / Math.max(square / a.pixels.length, 1e-6));
}
