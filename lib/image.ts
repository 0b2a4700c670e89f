/** A picture: pixels in memory, and the formats it can be written in. */

import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { type InspectOptions, inspect, types } from "node:util";
import sharp from "sharp";
import { show } from "./checkpoint/fields.js";
import { InvalidImageError, InvalidOptionError } from "./errors.js";
import { absolute } from "./files.js";
import { isUrl } from "./is-url.js";
import { optionsObject } from "./options.js";
import { writeWhole } from "./write-whole.js";

export type ImageFormat = "png" | "webp" | "jpeg";

export const IMAGE_FORMATS = ["png", "webp", "jpeg"] as const satisfies ImageFormat[];

const FORMAT_OF_EXTENSION: Readonly<Record<string, ImageFormat>> = {
  ".png": "png",
  ".webp": "webp",
  ".jpg": "jpeg",
  ".jpeg": "jpeg",
};

export interface ImageOptions {
  /** The seed the image was drawn with. */
  seed?: number | bigint;
}

/** The format that a file name asks for; throws `INVALID_OPTION` for an extension that is not known. */
export function imageFormatOf(path: string): ImageFormat {
  const extension = extname(path).toLowerCase();
  const format = Object.hasOwn(FORMAT_OF_EXTENSION, extension)
    ? FORMAT_OF_EXTENSION[extension]
    : undefined;
  if (!format) {
    throw new InvalidOptionError(
      `expected a file name ending in ${Object.keys(FORMAT_OF_EXTENSION).join(", ")} but received ${JSON.stringify(path)}`,
    );
  }
  return format;
}

/** Pixels along a side of which the encoders make files. */
const LONGEST_SIDE = new Map<unknown, number>([
  ["webp", 16_383],
  ["jpeg", 65_500],
  ["jpg", 65_500],
]);

/** Throws `IMAGE_TOO_LARGE` where a side of an image is longer than its format allows. */
export function checkSides(width: number, height: number, format: ImageFormat | "jpg"): void {
  const longest = LONGEST_SIDE.get(format) ?? Infinity;
  if (Math.max(width, height) <= longest) return;
  throw new InvalidImageError(
    "IMAGE_TOO_LARGE",
    `an image of ${width} x ${height} pixels is too large for ${format}: its sides may have at most ${longest}`,
  );
}

/** An RGB image. */
export class Image {
  /** RGB bytes, [height, width, 3]. */
  readonly pixels: Uint8Array;
  readonly width: number;
  readonly height: number;
  /** The seed it was drawn with: a number if that is exact, else a bigint. */
  readonly seed: number | bigint | undefined;

  private constructor(pixels: Uint8Array, width: number, height: number, options: ImageOptions) {
    this.pixels = pixels;
    this.width = width;
    this.height = height;
    const { seed } = options;
    const asNumber = Number(seed);
    this.seed = typeof seed === "bigint" && Number.isSafeInteger(asNumber) ? asNumber : seed;
  }

  /** Wraps `pixels`, [height, width, 3], without copying. */
  static fromPixels(
    pixels: Uint8Array,
    width: number,
    height: number,
    options?: ImageOptions,
  ): Image {
    const given = optionsObject(options, ["seed"]);
    if (!types.isUint8Array(pixels) && !types.isUint8ClampedArray(pixels)) {
      throw new InvalidImageError(
        "IMAGE_UNSUPPORTED_INPUT",
        `expected a Uint8Array for the pixels but received ${show(pixels)}`,
      );
    }
    const sides = [width, height];
    if (!sides.every((side) => Number.isSafeInteger(side) && side > 0)) {
      throw new InvalidImageError(
        "IMAGE_UNSUPPORTED_INPUT",
        `expected a positive width and height but received ${show(width)} and ${show(height)}`,
      );
    }
    if (pixels.length !== width * height * 3) {
      throw new InvalidImageError(
        "IMAGE_UNSUPPORTED_INPUT",
        `expected ${width * height * 3} bytes for ${width} x ${height} RGB pixels but received ${pixels.length}`,
      );
    }
    return new Image(pixels, width, height, given);
  }

  /**
   * Encodes the image. PNG is lossless; WebP and JPEG are lossy, at high quality; "jpg" is "jpeg". Throws
   * `IMAGE_TOO_LARGE` if a side is longer than the format allows.
   */
  async toBuffer(format: ImageFormat | "jpg" = "png"): Promise<Buffer> {
    const { pixels, width, height } = this;
    if (pixels.length !== width * height * 3) {
      throw new InvalidImageError(
        "IMAGE_UNSUPPORTED_INPUT",
        "the pixels of the image are no longer available: their buffer was transferred",
      );
    }
    checkSides(width, height, format);
    const raw = { width, height, channels: 3 } as const;
    const image = sharp(asBuffer(pixels), { raw, limitInputPixels: false });
    switch (format) {
      case "png":
        return image.png().toBuffer();
      case "webp":
        return image.webp({ quality: 92, smartSubsample: true }).toBuffer();
      case "jpeg":
      case "jpg":
        return image.jpeg({ quality: 92, chromaSubsampling: "4:4:4" }).toBuffer();
      default:
        throw new InvalidOptionError(
          `expected "png", "webp" or "jpeg" for the format but received ${show(format)}`,
        );
    }
  }

  /**
   * Writes the image in the format of the extension: `.png`, `.webp`, `.jpg` or `.jpeg`. `path` may be a `file:`
   * `URL`; a string is always a path.
   *
   * An existing file is replaced atomically: `path` always has the old file or all of the new. Throws `INVALID_OPTION`
   * if `path` names no file of these formats, and file system errors unchanged.
   */
  async save(path: string | URL): Promise<void> {
    const file = filePathOf(path);
    const place = absolute(file);
    await writeWhole(place, await this.toBuffer(imageFormatOf(file)), file);
  }

  /** Everything but the pixels; a seed that a JSON number would round is a string. */
  toJSON(): { width: number; height: number; seed?: number | string } {
    const { width, height, seed } = this;
    if (seed === undefined) return { width, height };
    return { width, height, seed: typeof seed === "bigint" ? String(seed) : seed };
  }

  /** What `console.log` shows: everything but the pixels. */
  [inspect.custom](_depth: number, options: InspectOptions): string {
    const { width, height, seed } = this;
    return `Image ${inspect({ width, height, ...(seed === undefined ? {} : { seed }) }, options)}`;
  }
}

/** The path of a file that is named by it, or by a `URL`, also one of another realm. */
function filePathOf(file: unknown): string {
  if (typeof file === "string") {
    if (!file.includes("\0")) return file;
    throw new InvalidOptionError(`expected a path without a NUL but received ${show(file)}`);
  }
  if (isUrl(file)) {
    const { href } = file;
    try {
      return fileURLToPath(href);
    } catch (cause) {
      throw new InvalidOptionError(
        `expected a path or the URL of a local file but received ${href}`,
        {
          cause,
        },
      );
    }
  }
  throw new InvalidOptionError(`expected a path or a file URL but received ${show(file)}`);
}

/** The same memory as a Buffer, the one kind of bytes that every realm's sharp takes. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
