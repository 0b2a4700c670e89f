/** Whatever an image can be given as, decoded to RGB bytes. */

import { constants, createReadStream, open } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { Socket } from "node:net";
import { addAbortSignal, type Readable } from "node:stream";
import { setImmediate } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify, types } from "node:util";
import sharp from "sharp";
import { orAborted } from "./abort.js";
import { show } from "./checkpoint/fields.js";
import { decoding } from "./decoding.js";
import { InvalidImageError } from "./errors.js";
import { absolute } from "./files.js";
import { asBuffer, type Image } from "./image.js";
import { isUrl } from "./is-url.js";

/** Pixels in memory: [height, width, 3] RGB or [height, width, 4] RGBA bytes. */
export interface RawPixels {
  pixels: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
}

/** An image file whose bytes can be requested: a `Blob`, a `File`, a `Response`. */
export interface BlobLike {
  /** Size in bytes, if known. */
  readonly size?: number;
  arrayBuffer(): Promise<ArrayBuffer>;
}

/**
 * A path, a `file:` URL (a string or a `URL`), a data URI, the bytes of an image file, a `Blob` of them, an `Image`,
 * or raw pixels.
 */
export type ImageInput =
  | string
  | URL
  | ArrayBufferView
  | ArrayBuffer
  | BlobLike
  | Image
  | RawPixels;

/** RGB bytes, [height, width, 3], in a buffer that no caller has. */
export interface DecodedImage {
  pixels: Uint8Array;
  width: number;
  height: number;
}

export interface DecodeOptions {
  /** Images with more pixels are refused before they are decoded. Default: 64 million. */
  maxPixels?: number;
  signal?: AbortSignal;
}

export const MAX_PIXELS = 64_000_000;

/** The longest side that the addon resizes. */
const MAX_SIDE = 2 ** 20;

/** A file beyond this cannot be a picture of fewer pixels than allowed, but could fill the memory. */
const MAX_FILE_BYTES = 512 * 1024 * 1024;

/**
 * Decodes an image: JPEG, PNG, WebP, GIF, TIFF, AVIF or SVG (not HEIC); of an animation, the first frame. It is turned
 * as its EXIF orientation says, converted to 8-bit sRGB, and laid on white where it is transparent.
 *
 * Throws `InvalidImageError`, or the signal's reason.
 */
export function decodeImage(input: ImageInput, options: DecodeOptions = {}): Promise<DecodedImage> {
  return orAborted(async () => {
    const decode = await openImage(input, options);
    return decode();
  }, options.signal);
}

/**
 * What `work` makes of an image, decoded as `decodeImage` does it. Few images are in memory at once, those of all
 * calls together: `work` keeps nothing of their size, and asks for no other. The wait for an image that comes slowly
 * keeps nobody waiting, since it is read before. A signal ends the call at once, but the decoder and the addon finish
 * what they have begun: until then the image is one of the few.
 */
export function withImage<T>(
  input: ImageInput,
  options: DecodeOptions,
  work: (image: DecodedImage) => Promise<T>,
): Promise<T> {
  const { signal } = options;
  return orAborted(async () => {
    const decode = await openImage(input, options);
    return decoding.run(async () => work(await decode()), signal);
  }, signal);
}

/** Finds an image; what it gives decodes it. */
async function openImage(
  input: ImageInput,
  { maxPixels = MAX_PIXELS, signal }: DecodeOptions,
): Promise<() => Promise<DecodedImage>> {
  if (isRawPixels(input)) {
    const raw = checkRawPixels(input, maxPixels);
    return () => fromRawPixels(raw, signal);
  }
  const { name, read } = await findImage(input, signal);
  return async () => decodeBytes(await read(), name, maxPixels, signal);
}

/**
 * Reads an image and its header, as `decodeImage` does before it decodes: whether it is there, of a known format and
 * not too large. Throws `InvalidImageError`, or the signal's reason.
 */
export function checkImage(input: ImageInput, options: DecodeOptions = {}): Promise<void> {
  const { maxPixels = MAX_PIXELS, signal } = options;
  return orAborted(async () => {
    if (isRawPixels(input)) {
      checkRawPixels(input, maxPixels);
      return;
    }
    const { name, read } = await findImage(input, signal);
    const bytes = await read();
    await checkHeader(bytes(), name, maxPixels, signal);
  }, signal);
}

/** The bytes of an image file. Throws where they are the caller's and their buffer was transferred since. */
type Bytes = () => Buffer;

interface FoundImage {
  /** What messages call it. */
  name: string;
  /** A regular file is read only now: while others are decoded its bytes would but take memory. */
  read(): Promise<Bytes>;
}

function given(bytes: Uint8Array, name: string): FoundImage {
  // Memory that may be taken away is copied: the decoder reads it on other threads.
  const file = isResizable(bytes.buffer) ? Buffer.from(bytes) : asBuffer(bytes);
  const { length } = file;
  const unlessTransferred = () => {
    if (file.length !== length) throw transferred("bytes");
    return file;
  };
  return { name, read: async () => unlessTransferred };
}

/** Not among the types of the oldest supported JavaScript. */
const isResizable = (buffer: ArrayBufferLike) =>
  (buffer as { resizable?: boolean }).resizable === true;

async function findImage(input: unknown, signal: AbortSignal | undefined): Promise<FoundImage> {
  if (isBytes(input)) {
    const bytes = bytesOf(input);
    return given(bytes, nameOfBytes(bytes));
  }
  if (isBlob(input)) return readBlob(input);
  const text = typeof input === "string" ? input : isUrl(input) ? input.href : undefined;
  if (text === undefined || text === "") throw unsupported(input);
  if (/^data:/i.test(text)) return readDataUri(text);
  if (/^file:/i.test(text)) return findFile(pathOfUrl(text), signal);
  if (typeof input !== "string" || /^[a-z][a-z0-9+.-]*:\/\//i.test(text)) {
    throw new InvalidImageError(
      "IMAGE_UNSUPPORTED_INPUT",
      `images are not fetched over the network: fetch ${shorten(text)} and give its bytes`,
    );
  }
  return findFile(text, signal);
}

function isBytes(value: unknown): value is ArrayBufferView | ArrayBuffer {
  return ArrayBuffer.isView(value) || types.isAnyArrayBuffer(value);
}

/** @param what What messages call them. */
function bytesOf(value: ArrayBufferView | ArrayBuffer, what = "bytes"): Uint8Array {
  try {
    return ArrayBuffer.isView(value)
      ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
      : new Uint8Array(value);
  } catch (cause) {
    throw transferred(what, cause);
  }
}

const transferred = (what: string, cause?: unknown) =>
  new InvalidImageError(
    "IMAGE_UNSUPPORTED_INPUT",
    `the ${what} of the image are no longer available: their buffer was transferred`,
    { cause },
  );

const nameOfBytes = ({ length }: Uint8Array): string => `the image (${length} bytes)`;

function unsupported(input: unknown): InvalidImageError {
  const found =
    input === null
      ? "null"
      : typeof input === "object"
        ? `an object (${Object.prototype.toString.call(input)})`
        : input === ""
          ? "an empty string"
          : `a value of type ${typeof input}`;
  return new InvalidImageError(
    "IMAGE_UNSUPPORTED_INPUT",
    "expected a path, a file URL, a data URI, the bytes of an image, a Blob, an Image or { pixels, width, height } " +
      `for an image but received ${found}`,
  );
}

function shorten(text: string): string {
  return text.length > 100 ? `${text.slice(0, 97)}...` : text;
}

function isBlob(value: unknown): value is BlobLike {
  return (
    typeof value === "object" &&
    value !== null &&
    typeof (value as Partial<BlobLike>).arrayBuffer === "function"
  );
}

async function readBlob(blob: BlobLike): Promise<FoundImage> {
  if (typeof blob.size === "number") checkFileSize("the image", blob.size);
  let buffer: unknown;
  try {
    buffer = await blob.arrayBuffer();
  } catch (cause) {
    const message = `cannot read the image: ${firstLine(messageOf(cause))}`;
    throw new InvalidImageError("IMAGE_NOT_FOUND", message, { cause });
  }
  if (!isBytes(buffer)) throw unsupported(buffer);
  const bytes = bytesOf(buffer);
  const name = nameOfBytes(bytes);
  checkFileSize(name, bytes.length);
  return given(bytes, name);
}

function checkFileSize(name: string, size: number): void {
  if (size <= MAX_FILE_BYTES) return;
  const message = `${name} has ${size} bytes; at most ${MAX_FILE_BYTES} are read`;
  throw new InvalidImageError("IMAGE_TOO_LARGE", message);
}

/** All that a stream holds, unless that is more than a file may have: what has no size is counted as it comes. */
export async function readStream(
  stream: Readable,
  name: string,
  signal: AbortSignal | undefined,
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of signal ? addAbortSignal(signal, stream) : stream) {
    size += (chunk as Buffer).length;
    if (size > MAX_FILE_BYTES) {
      const message = `${name} has more than ${MAX_FILE_BYTES} bytes, which are read at most`;
      throw new InvalidImageError("IMAGE_TOO_LARGE", message);
    }
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks);
}

function pathOfUrl(url: string): string {
  try {
    return fileURLToPath(url);
  } catch (cause) {
    throw new InvalidImageError(
      "IMAGE_UNSUPPORTED_INPUT",
      `${shorten(url)} is not the URL of a local file: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** `data:[<type>][;base64],<data>` */
function readDataUri(uri: string): FoundImage {
  const comma = uri.indexOf(",");
  const header = uri.slice(0, Math.max(comma, 0));
  const body = uri.slice(comma + 1);
  const name = `the data URI ${shorten(header)}`;
  const undecodable = (reason: string, cause?: unknown) =>
    new InvalidImageError("IMAGE_UNDECODABLE", `${name} ${reason}`, { cause });
  if (comma < 0) throw undecodable("has no comma before its data");
  let data: Uint8Array;
  try {
    data = percentDecode(body);
  } catch (cause) {
    throw undecodable("has invalid percent-encoding", cause);
  }
  if (!/;\s*base64\s*$/i.test(header)) return given(data, name);
  // Buffer skips what is not base64; a damaged URI must not become a shorter file.
  const text = asBuffer(data).toString("latin1").replace(/\s+/g, "");
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(text)) throw undecodable("is not base64");
  return given(Buffer.from(text, "base64"), name);
}

/** Characters beyond ASCII, which a URI need not have encoded, are those of UTF-8. */
function percentDecode(text: string): Uint8Array {
  const bytes = Buffer.from(text, "utf8").toString("latin1");
  return Buffer.from(
    bytes.replace(/%([0-9a-f]{2})|%/gi, (_, hex) => {
      if (hex === undefined) throw new URIError("% without two hexadecimal digits");
      return String.fromCharCode(Number.parseInt(hex, 16));
    }),
    "latin1",
  );
}

/** @param name A path, as it was given: messages have it so. */
async function findFile(name: string, signal: AbortSignal | undefined): Promise<FoundImage> {
  const [path, found] = await orNotFound(name, signal, async () => {
    const place = absolute(name);
    return [place, await stat(place)] as const;
  });
  if (found.isDirectory()) {
    throw new InvalidImageError("IMAGE_NOT_FOUND", `${name} is a directory, not an image`);
  }
  checkFileSize(name, found.size);
  const read = () =>
    orNotFound(name, signal, async () => {
      if (found.isFile() && found.size > 0) return readFile(path, { signal });
      const stream = found.isFIFO() ? await openPipe(path) : createReadStream(path);
      return readStream(stream, name, signal);
    });
  // What comes as slowly as somebody writes it is read at once, and keeps no other image waiting.
  if (!found.isFile()) return given(await read(), name);
  return {
    name,
    read: async () => {
      const file = await read();
      return () => file;
    },
  };
}

/** What the work on a file gives; what the system says is an error of that image. */
async function orNotFound<T>(
  name: string,
  signal: AbortSignal | undefined,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (cause instanceof InvalidImageError) throw cause;
    signal?.throwIfAborted();
    throw unreadImage(name, cause);
  }
}

/** Of what the file system says of an image's file. */
export function unreadImage(name: string, cause: unknown): InvalidImageError {
  const { code } = cause as NodeJS.ErrnoException;
  const reason =
    code === "ENOENT" ? `there is no file ${name}` : `cannot read ${name}: ${messageOf(cause)}`;
  return new InvalidImageError("IMAGE_NOT_FOUND", reason, { cause });
}

/**
 * A pipe, as a socket: read as a file it would hold one of libuv's few threads until somebody writes to it, whatever
 * signal aborts meanwhile.
 */
async function openPipe(path: string): Promise<Socket> {
  const fd = await promisify(open)(path, constants.O_RDONLY | constants.O_NONBLOCK);
  return new Socket({ fd, readable: true, writable: false });
}

async function orUndecodable<T>(name: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    const message = `cannot decode ${name}: ${firstLine(messageOf(cause))}`;
    throw new InvalidImageError("IMAGE_UNDECODABLE", message, { cause });
  }
}

/** The header is enough to refuse a picture that would not fit the memory. */
async function checkHeader(
  file: Buffer,
  name: string,
  maxPixels: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (file.length === 0) throw new InvalidImageError("IMAGE_EMPTY", `${name} is empty`);
  if (isHeic(file)) {
    throw new InvalidImageError(
      "IMAGE_UNDECODABLE",
      `${name} is a HEIC image, which is not read here: convert it to JPEG or PNG first`,
    );
  }
  const header = await orUndecodable(name, () =>
    sharp(file, { limitInputPixels: false }).metadata(),
  );
  signal?.throwIfAborted();
  checkSize(name, header.width, header.height, maxPixels);
}

async function decodeBytes(
  bytes: Bytes,
  name: string,
  maxPixels: number,
  signal: AbortSignal | undefined,
): Promise<DecodedImage> {
  await checkHeader(bytes(), name, maxPixels, signal);
  const file = bytes();
  // failOn: a truncated file must not become a picture that is grey from there on. Warnings are let pass:
  // many cameras and programs write files that cause some.
  const { data, info } = await orUndecodable(name, () =>
    sharp(file, { failOn: "error", limitInputPixels: maxPixels, autoOrient: true })
      .flatten({ background: "#ffffff" })
      .toColourspace("srgb")
      .raw({ depth: "uchar" })
      .toBuffer({ resolveWithObject: true }),
  );
  signal?.throwIfAborted();
  const { width, height, channels } = info;
  const pixels = channels === 3 ? data : await rgbOf(data, width * height, channels, signal);
  return { pixels, width, height };
}

/** Brands of ISO base media files that hold HEVC images (ISO/IEC 23008-12, annex B). */
const HEIC_BRANDS = new Set(["heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs"]);

/**
 * Whether a file begins as HEIC does: with a box `ftyp` [size 32-bit, "ftyp", brand, version, compatible brands]
 * that names HEVC and not AVIF. The decoder has no HEVC, and says of such a file only that it is a bad one.
 */
function isHeic(file: Buffer): boolean {
  if (file.length < 16 || file.toString("latin1", 4, 8) !== "ftyp") return false;
  const end = Math.min(file.readUInt32BE(0), file.length);
  const brands: string[] = [file.toString("latin1", 8, 12)];
  for (let at = 16; at + 4 <= end; at += 4) brands.push(file.toString("latin1", at, at + 4));
  if (brands.some((brand) => brand === "avif" || brand === "avis")) return false;
  return brands.some((brand) => HEIC_BRANDS.has(brand));
}

/** Of whatever was thrown: reasons of signals need not be errors. */
function messageOf(cause: unknown): string {
  const { message } = (cause ?? {}) as Partial<Error>;
  return typeof message === "string" ? message : String(cause);
}

function firstLine(text: string): string {
  return text.split("\n", 1)[0] ?? text;
}

function checkSize(name: string, width: number, height: number, maxPixels: number): void {
  const limit =
    width * height > maxPixels
      ? `at most ${maxPixels} are decoded`
      : Math.max(width, height) > MAX_SIDE
        ? `sides may have at most ${MAX_SIDE}`
        : undefined;
  if (limit === undefined) return;
  const message = `${name} has ${width} x ${height} pixels; ${limit}`;
  throw new InvalidImageError("IMAGE_TOO_LARGE", message);
}

/** How many pixels JavaScript's thread converts in one turn: a millisecond or two. */
const TURN_PIXELS = 2 ** 16;

/** Pixels of 1 (gray), 3 (RGB) or 4 (RGBA, laid on white) bytes as RGB, which is a copy; other work comes between. */
async function rgbOf(
  pixels: Uint8Array,
  count: number,
  channels: number,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  const rgb = new Uint8Array(count * 3);
  for (let first = 0; first < count; first += TURN_PIXELS) {
    if (first > 0) await setImmediate();
    signal?.throwIfAborted();
    if (pixels.length !== count * channels) throw transferred("pixels");
    const end = Math.min(first + TURN_PIXELS, count);
    const source = pixels.subarray(first * channels, end * channels);
    convertToRgb(source, channels, rgb.subarray(first * 3, end * 3));
  }
  return rgb;
}

function convertToRgb(pixels: Uint8Array, channels: number, rgb: Uint8Array): void {
  if (channels === 3) {
    rgb.set(pixels);
  } else if (channels === 4) {
    for (let from = 0, to = 0; to < rgb.length; from += 4) {
      const alpha = pixels[from + 3]!;
      const white = 255 * (255 - alpha);
      for (let c = 0; c < 3; c++) rgb[to++] = Math.round((pixels[from + c]! * alpha + white) / 255);
    }
  } else {
    for (let from = 0, to = 0; to < rgb.length; from += channels) {
      for (let c = 0; c < 3; c++) rgb[to++] = pixels[from]!;
    }
  }
}

function isRawPixels(input: unknown): input is RawPixels {
  return typeof input === "object" && input !== null && "pixels" in input;
}

interface CheckedPixels {
  bytes: Uint8Array;
  channels: number;
  width: number;
  height: number;
}

function checkRawPixels({ pixels, width, height }: RawPixels, maxPixels: number): CheckedPixels {
  const unsuitable = (message: string) => new InvalidImageError("IMAGE_UNSUPPORTED_INPUT", message);
  if (![width, height].every((side) => Number.isSafeInteger(side) && side >= 0)) {
    throw unsuitable(
      `expected whole numbers for width and height but received ${show(width)}, ${show(height)}`,
    );
  }
  if (!types.isUint8Array(pixels) && !types.isUint8ClampedArray(pixels)) {
    throw unsuitable("expected a Uint8Array or Uint8ClampedArray for the pixels of an image");
  }
  const count = width * height;
  if (count === 0) {
    throw new InvalidImageError("IMAGE_EMPTY", `an image of ${width} x ${height} pixels is empty`);
  }
  checkSize("the image", width, height, maxPixels);
  const bytes = bytesOf(pixels, "pixels");
  const channels = bytes.length / count;
  if (channels !== 3 && channels !== 4) {
    throw unsuitable(
      `expected ${count * 3} (RGB) or ${count * 4} (RGBA) bytes for ${width} x ${height} pixels ` +
        `but received ${bytes.length}`,
    );
  }
  return { bytes, channels, width, height };
}

/** A copy, made with other work between: the caller leaves its own alone until the call is done. */
async function fromRawPixels(
  { bytes, channels, width, height }: CheckedPixels,
  signal: AbortSignal | undefined,
): Promise<DecodedImage> {
  return { pixels: await rgbOf(bytes, width * height, channels, signal), width, height };
}
