/** A picture: pixels in memory, and the formats it can be written in. */

import { randomUUID } from "node:crypto";
import { rename, rm, writeFile } from "node:fs/promises";
import { extname } from "node:path";
import sharp from "sharp";
import { InvalidImageError, InvalidOptionError } from "./errors.js";

export type ImageFormat = "png" | "webp" | "jpeg";

const FORMAT_OF_EXTENSION: Readonly<Record<string, ImageFormat>> = {
  ".png": "png",
  ".webp": "webp",
  ".jpg": "jpeg",
  ".jpeg": "jpeg",
};

export interface ImageOptions {
  /** The seed that the image was drawn with. */
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

/** An RGB image. */
export class Image {
  /** Bytes in the order red, green, blue; [height, width, 3]. */
  readonly pixels: Uint8Array;
  readonly width: number;
  readonly height: number;
  /** The seed it was drawn with: a number where that is exact, else a bigint. */
  readonly seed: number | bigint | undefined;

  private constructor(pixels: Uint8Array, width: number, height: number, options: ImageOptions) {
    this.pixels = pixels;
    this.width = width;
    this.height = height;
    const { seed } = options;
    const asNumber = Number(seed);
    this.seed = typeof seed === "bigint" && Number.isSafeInteger(asNumber) ? asNumber : seed;
  }

  /** Wraps `pixels` [height, width, 3], which are not copied. */
  static fromPixels(
    pixels: Uint8Array,
    width: number,
    height: number,
    options: ImageOptions = {},
  ): Image {
    const sides = [width, height];
    if (!sides.every((side) => Number.isSafeInteger(side) && side > 0)) {
      throw new InvalidImageError(
        "IMAGE_UNSUPPORTED_INPUT",
        `expected a positive width and height but received ${width} and ${height}`,
      );
    }
    if (pixels.length !== width * height * 3) {
      throw new InvalidImageError(
        "IMAGE_UNSUPPORTED_INPUT",
        `expected ${width * height * 3} bytes for ${width} x ${height} RGB pixels but received ${pixels.length}`,
      );
    }
    return new Image(pixels, width, height, options);
  }

  /** The encoded image. PNG is exact; WebP and JPEG are lossy, of high quality. */
  async toBuffer(format: ImageFormat = "png"): Promise<Buffer> {
    const raw = { width: this.width, height: this.height, channels: 3 } as const;
    const image = sharp(asBuffer(this.pixels), { raw });
    switch (format) {
      case "png":
        return image.png().toBuffer();
      case "webp":
        return image.webp({ quality: 92, smartSubsample: true }).toBuffer();
      case "jpeg":
        return image.jpeg({ quality: 92, chromaSubsampling: "4:4:4" }).toBuffer();
      default:
        throw new InvalidOptionError(
          `expected "png", "webp" or "jpeg" for the format but received ${JSON.stringify(format)}`,
        );
    }
  }

  /**
   * Writes the image in the format of the extension: `.png`, `.webp`, `.jpg` or `.jpeg`.
   *
   * An existing file is replaced in one step: whatever happens, `path` holds the old file or all of the new.
   */
  async save(path: string): Promise<void> {
    await writeWhole(path, await this.toBuffer(imageFormatOf(path)));
  }
}

/** The same memory as a Buffer, the one kind of bytes that every realm's sharp takes. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Writes a file beside its place under another name, then moves it there. */
export async function writeWhole(path: string, data: Uint8Array): Promise<void> {
  const beside = `${path}.${randomUUID().slice(0, 8)}.tmp`;
  try {
    await writeFile(beside, data, { flag: "wx" });
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true });
    throw error;
  }
}
