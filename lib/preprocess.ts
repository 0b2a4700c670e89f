/** From RGB bytes to what SigLIP and the autoencoder take: resized, scaled, one plane a channel. */

import { setImmediate } from "node:timers/promises";
import { Fields, isObject } from "./checkpoint/fields.js";
import { fromNative, InvalidConfigError, InvalidImageError } from "./errors.js";
import type { DecodedImage } from "./image-input.js";
import type { NativeAddon } from "./native.js";

/** The only part of the addon that is needed here. */
export type Resizer = Pick<NativeAddon, "resizeImage">;

export type ResizeFilter = Parameters<NativeAddon["resizeImage"]>[5];

/** Pillow's numbers for the filters that the addon has. */
const FILTERS: readonly ResizeFilter[] = ["nearest", "lanczos", "bilinear", "bicubic"];

/** `preprocessor_config.json` of a `SiglipImageProcessor`. */
export interface PreprocessorConfig {
  /** False: images must have the model's size already. */
  resize: boolean;
  width: number;
  height: number;
  filter: ResizeFilter;
  /** Factor of the bytes; 1: they stay 0 to 255. */
  rescaleFactor: number;
  /** Per channel: (value - mean) / std. */
  mean: readonly [number, number, number];
  std: readonly [number, number, number];
}

/**
 * Checks parsed JSON; an absent field has the default of transformers' `SiglipImageProcessor`.
 * Throws `InvalidConfigError`.
 *
 * @param where What to call the file in messages.
 */
export function parsePreprocessorConfig(
  json: unknown,
  where = "preprocessor_config.json",
): PreprocessorConfig {
  const fields: Fields = Fields.of(json, where);
  const resample = fields.integer("resample", { default: 3 });
  const filter = FILTERS[resample];
  if (!filter) fields.fail("resample", "0 (nearest), 1 (lanczos), 2 (bilinear) or 3 (bicubic)");
  const normalize = fields.boolean("do_normalize", { default: true });
  const config: PreprocessorConfig = {
    resize: fields.boolean("do_resize", { default: true }),
    ...parseSize(fields),
    filter,
    rescaleFactor: fields.boolean("do_rescale", { default: true }) ? parseRescale(fields) : 1,
    mean: normalize ? parseTriple(fields, "image_mean", 0.5) : [0, 0, 0],
    std: normalize ? parseTriple(fields, "image_std", 0.5) : [1, 1, 1],
  };
  // Each is a float32, but what they make of a byte may still be none. Both are monotonic in the byte.
  for (const c of CHANNELS) {
    const [black, white] = [normalized(config, c, 0), normalized(config, c, 255)];
    if (Number.isFinite(black) && Number.isFinite(white)) continue;
    throw new InvalidConfigError(
      `${where}: expected rescale_factor, image_mean and image_std that make float32 numbers of the bytes 0 to 255 ` +
        `but found ${config.rescaleFactor}, ${config.mean[c]} and ${config.std[c]}, which make ${black} to ${white}`,
    );
  }
  return config;
}

const CHANNELS = [0, 1, 2] as const;

/** A byte of a channel as SigLIP gets it: rescaled, then normalized, rounded to float32 after each as in numpy. */
function normalized(config: PreprocessorConfig, channel: number, byte: number): number {
  const rescaled = Math.fround(byte * config.rescaleFactor);
  const mean = Math.fround(config.mean[channel]!);
  return Math.fround(Math.fround(rescaled - mean) / Math.fround(config.std[channel]!));
}

const isFloat32 = (value: unknown): value is number =>
  typeof value === "number" && Number.isFinite(Math.fround(value));

/** Bytes are multiplied by it, in float64: only the products need be float32 numbers. */
function parseRescale(fields: Fields): number {
  const value = fields.number("rescale_factor", { default: 1 / 255, min: 0, open: true });
  if (!isFloat32(value) || Math.fround(value) === 0) {
    fields.fail("rescale_factor", "a positive float32 number", value);
  }
  return value;
}

const MAX_SIDE = 16384;

/** `{ "height", "width" }`, or a number for a square. */
function parseSize(fields: Fields): { width: number; height: number } {
  const size = fields.raw("size");
  if (size === undefined) return { width: 224, height: 224 };
  if (isObject(size)) {
    const child = fields.child("size");
    const range = { min: 1, max: MAX_SIDE };
    return { width: child.integer("width", range), height: child.integer("height", range) };
  }
  const side = fields.integer("size", { min: 1, max: MAX_SIDE });
  return { width: side, height: side };
}

/** Three float32 numbers, or one for all three. Those of `image_std` divide. */
function parseTriple(fields: Fields, name: string, fallback: number): [number, number, number] {
  const value = fields.raw(name) ?? fallback;
  const list = Array.isArray(value) ? value : [value, value, value];
  const divides = name === "image_std";
  const fits = (v: unknown) => isFloat32(v) && (!divides || Math.fround(v) > 0);
  if (list.length !== 3 || !list.every(fits)) {
    fields.fail(name, divides ? "three positive float32 numbers" : "three float32 numbers", value);
  }
  return list as [number, number, number];
}

/**
 * SigLIP's input, [3, imageSize, imageSize], as the preprocessor of transformers computes it.
 *
 * Throws `IMAGE_UNSUPPORTED_INPUT` where the configuration forbids resizing and the image needs it.
 */
export async function toVisionPixels(
  image: DecodedImage,
  config: PreprocessorConfig,
  addon: Resizer,
  imageSize: number,
): Promise<Float32Array> {
  const fits = image.width === imageSize && image.height === imageSize;
  if (!config.resize && !fits) {
    throw new InvalidImageError(
      "IMAGE_UNSUPPORTED_INPUT",
      `this checkpoint does not resize images (do_resize is false): expected ${imageSize} x ${imageSize} ` +
        `pixels but received ${image.width} x ${image.height}`,
    );
  }
  const { pixels } = await resize(image, imageSize, imageSize, config.filter, addon);
  return normalizedPlanes(pixels, config);
}

/** Bytes of an image of the model's size, [pixels, 3], as SigLIP's input. */
export function normalizedPlanes(
  pixels: Uint8Array,
  config: PreprocessorConfig,
): Promise<Float32Array> {
  const tables = CHANNELS.map((c) => byteTable((byte) => normalized(config, c, byte)));
  return toPlanes(pixels, tables);
}

/** The autoencoder's input, [3, height, width] in [-1, 1]. */
export async function toVaePixels(
  image: DecodedImage,
  width: number,
  height: number,
  addon: Resizer,
): Promise<Float32Array> {
  const { pixels } = await resize(image, width, height, "bicubic", addon);
  const table = byteTable((byte) => Math.fround(byte / 127.5) - 1);
  return toPlanes(pixels, [table, table, table]);
}

/** An image of the size asked for, the same one where it has it. */
export async function resize(
  image: DecodedImage,
  width: number,
  height: number,
  filter: ResizeFilter,
  addon: Resizer,
): Promise<DecodedImage> {
  if (image.width === width && image.height === height) return image;
  try {
    const { pixels, width: from, height: down } = image;
    const resized = await addon.resizeImage(pixels, from, down, width, height, filter);
    return { pixels: resized, width, height };
  } catch (failure) {
    throw fromNative(failure);
  }
}

function byteTable(value: (byte: number) => number): Float32Array {
  return Float32Array.from({ length: 256 }, (_, byte) => value(byte));
}

/** How many pixels JavaScript's thread converts in one turn: about a millisecond. */
const TURN_PIXELS = 2 ** 16;

/** [pixels, 3] bytes to [3, pixels] numbers, each channel through its table; other work comes between. */
async function toPlanes(pixels: Uint8Array, tables: Float32Array[]): Promise<Float32Array> {
  const count = pixels.length / 3;
  const planes = new Float32Array(pixels.length);
  for (let first = 0; first < count; first += TURN_PIXELS) {
    if (first > 0) await setImmediate();
    const end = Math.min(first + TURN_PIXELS, count);
    tables.forEach((table, c) => {
      const plane = planes.subarray(c * count, (c + 1) * count);
      for (let i = first, from = 3 * first + c; i < end; i++, from += 3)
        plane[i] = table[pixels[from]!]!;
    });
  }
  return planes;
}
