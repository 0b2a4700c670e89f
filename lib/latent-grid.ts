/** How pictures and latents of a checkpoint's autoencoder go together: pixels to cells and back. */

import type { Checkpoint } from "./checkpoint/checkpoint.js";
import { vaeFactor } from "./checkpoint/vae-config.js";
import { InvalidImageError } from "./errors.js";
import { integerOption, invalidOption } from "./options.js";

/** The longest side of an image that the engine encodes, and of the grid of latents that it decodes, in pixels. */
const MOST_ENCODED = 2 ** 15;

/** Pixels across one row of latents. */
function latentUnit({ spec }: Checkpoint): number {
  return vaeFactor(spec.vae!) * (spec.image?.latentPatch ?? 1);
}

/**
 * Width and height at which an image is encoded: the model's, or for an autoencoder alone the image's own. Throws
 * `IMAGE_UNSUPPORTED_INPUT` or `IMAGE_TOO_LARGE`.
 */
export function encodedSize(
  checkpoint: Checkpoint,
  { width, height }: { width: number; height: number },
): [number, number] {
  const side = checkpoint.config?.image?.imageSize;
  if (side !== undefined) return [side, side];
  const unit = latentUnit(checkpoint);
  if (width % unit !== 0 || height % unit !== 0) {
    throw new InvalidImageError(
      "IMAGE_UNSUPPORTED_INPUT",
      `expected an image whose sides are multiples of ${unit} but received ${width} x ${height}`,
    );
  }
  if (Math.max(width, height) > MOST_ENCODED) {
    throw new InvalidImageError(
      "IMAGE_TOO_LARGE",
      `the image has ${width} x ${height} pixels; an autoencoder encodes sides of at most ${MOST_ENCODED}`,
    );
  }
  return [width, height];
}

/**
 * Columns and rows of so many values of latents: of an image of that width and height, or else of a square one. Throws
 * `INVALID_OPTION`.
 */
export function latentGrid(
  checkpoint: Checkpoint,
  values: number,
  width?: number,
  height?: number,
): [number, number] {
  const { spec } = checkpoint;
  const channels = spec.image?.tokenChannels ?? spec.vae!.latentChannels;
  const unit = latentUnit(checkpoint);
  if (width === undefined && height === undefined) {
    const side = Math.sqrt(values / channels);
    if (Number.isInteger(side) && side > 0) return [side, side];
    const expected = `latents of a square of cells with ${channels} channels, or width and height,`;
    throw invalidOption(expected, "latents", `${values} values`);
  }
  const [columns, rows] = Object.entries({ width, height }).map(([name, side]) => {
    const pixels = integerOption(name, side, { min: unit, max: MOST_ENCODED });
    if (pixels % unit === 0) return pixels / unit;
    throw invalidOption(`a multiple of ${unit}`, name, side);
  }) as [number, number];
  if (columns * rows * channels !== values) {
    throw invalidOption(`${columns * rows} x ${channels} values`, "latents", `${values} values`);
  }
  return [columns, rows];
}
