/**
 * The header of a safetensors file: eight bytes of length, JSON, then the tensors' bytes without gaps.
 * Only the header is read here; the native side maps the file. Everything the format promises is checked,
 * because the native side trusts the offsets.
 */

import { type FileHandle, open } from "node:fs/promises";
import { CheckpointNotFoundError, InvalidSafetensorsError } from "../errors.js";
import { isObject, show } from "./fields.js";
import { readFully } from "./read-fully.js";

/** Bits of one element of each type of the format. */
const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

export type SafetensorsDType = keyof typeof DTYPE_BITS;

export interface TensorEntry {
  name: string;
  dtype: SafetensorsDType;
  shape: number[];
  /** Bytes from the start of the file. */
  offset: number;
  bytes: number;
}

export interface SafetensorsHeader {
  /** In file order. */
  tensors: TensorEntry[];
}

/** The format's own limit. */
export const MAX_HEADER_BYTES = 100_000_000;
const LENGTH_BYTES = 8;

/** Reads and checks the header of the file at `path`. */
export async function readSafetensorsHeader(path: string): Promise<SafetensorsHeader> {
  let file: FileHandle;
  try {
    file = await open(path, "r");
  } catch (cause) {
    throw new CheckpointNotFoundError(`cannot open ${path}: ${(cause as Error).message}`, {
      cause,
    });
  }
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw new CheckpointNotFoundError(`${path} is not a file`);
    const prefix = new Uint8Array(LENGTH_BYTES);
    await readFully(file, prefix, 0, path);
    const header = new Uint8Array(headerLength(prefix, stat.size, path));
    await readFully(file, header, LENGTH_BYTES, path);
    return parseSafetensorsHeader(header, stat.size, path);
  } finally {
    await file.close();
  }
}

/** The length of the header that the first eight bytes give, checked against the file's size. */
export function headerLength(prefix: Uint8Array, fileBytes: number, path: string): number {
  if (new TextDecoder("latin1").decode(prefix) === "version ") {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_HEADER_TOO_LONG",
      `${path}: expected weights but found a Git LFS pointer; "git lfs pull" fetches what it points to`,
    );
  }
  const view = new DataView(prefix.buffer, prefix.byteOffset, prefix.byteLength);
  const length = view.getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_HEADER_TOO_LONG",
      `${path}: expected a header of at most ${MAX_HEADER_BYTES} bytes but the file says ${length}`,
    );
  }
  if (Number(length) > fileBytes - LENGTH_BYTES) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_HEADER_TOO_LONG",
      `${path}: the header should take ${length} bytes but the file has ${fileBytes - LENGTH_BYTES} after its length`,
    );
  }
  return Number(length);
}

/** Checks a header of `header.length` bytes in a file of `fileBytes`. */
export function parseSafetensorsHeader(
  header: Uint8Array,
  fileBytes: number,
  path: string,
): SafetensorsHeader {
  const json = parseHeaderJson(header, path);
  const dataStart = LENGTH_BYTES + header.length;
  const tensors: TensorEntry[] = [];
  for (const [name, value] of Object.entries(json)) {
    if (name === "__metadata__") checkMetadata(value, path);
    else tensors.push(parseTensor(name, value, dataStart, path));
  }
  tensors.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  checkLayout(tensors, dataStart, fileBytes, path);
  return { tensors };
}

function parseHeaderJson(header: Uint8Array, path: string): Record<string, unknown> {
  const invalid = (reason: string, cause?: unknown) =>
    new InvalidSafetensorsError("SAFETENSORS_INVALID_HEADER", `${path}: ${reason}`, { cause });
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header);
    json = JSON.parse(text);
  } catch (cause) {
    throw invalid(`the header is not JSON: ${(cause as Error).message}`, cause);
  }
  if (!isObject(json)) throw invalid(`expected the header to be an object but found ${show(json)}`);
  // JSON.parse keeps the last of two equal names without a word; the text has one colon for every name.
  if (countColons(text) !== countNames(json)) {
    throw invalid("the header has the same name more than once");
  }
  return json;
}

/** Colons outside of strings in valid JSON. */
function countColons(text: string): number {
  let count = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c === 0x22) inString = !inString;
    else if (inString) i += c === 0x5c ? 1 : 0;
    else if (c === 0x3a) count++;
  }
  return count;
}

function countNames(value: unknown): number {
  let count = 0;
  const open: unknown[] = [value];
  while (open.length > 0) {
    const top = open.pop();
    if (typeof top !== "object" || top === null) continue;
    const inner = Object.values(top);
    if (!Array.isArray(top)) count += inner.length;
    for (const v of inner) if (typeof v === "object") open.push(v);
  }
  return count;
}

function checkMetadata(value: unknown, path: string): void {
  if (!isObject(value) || !Object.values(value).every((v) => typeof v === "string")) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_INVALID_HEADER",
      `${path}: expected __metadata__ to map names to strings but found ${show(value)}`,
    );
  }
}

const isIndex = (v: unknown): v is number =>
  typeof v === "number" && Number.isSafeInteger(v) && v >= 0;

function parseTensor(name: string, value: unknown, dataStart: number, path: string): TensorEntry {
  const where = `${path}: tensor ${JSON.stringify(name)}`;
  if (!isObject(value)) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_INVALID_HEADER",
      `${where}: expected an object but found ${show(value)}`,
    );
  }
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string" || !Object.hasOwn(DTYPE_BITS, dtype)) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_UNKNOWN_DTYPE",
      `${where}: expected one of ${Object.keys(DTYPE_BITS).join(", ")} for dtype but found ${show(dtype)}`,
    );
  }
  if (!Array.isArray(shape) || !shape.every(isIndex)) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_INVALID_HEADER",
      `${where}: expected a list of sizes of at least 0 for shape but found ${show(shape)}`,
    );
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isIndex)) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_INVALID_OFFSETS",
      `${where}: expected two integers of at least 0 for data_offsets but found ${show(offsets)}`,
    );
  }
  const [begin, end] = offsets as [number, number];
  const type = dtype as SafetensorsDType;
  const bits = shape.reduce((n: number, size: number) => n * size, DTYPE_BITS[type]);
  if (bits !== (end - begin) * 8) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_INVALID_OFFSETS",
      `${where}: ${type} [${shape.join(", ")}] takes ${bits / 8} bytes but its offsets are ${begin} to ${end}`,
    );
  }
  return { name, dtype: type, shape, offset: dataStart + begin, bytes: end - begin };
}

/** Tensors, in order of their offsets, must fill the file to its end and share no byte. */
function checkLayout(tensors: TensorEntry[], dataStart: number, fileBytes: number, path: string) {
  let end = dataStart;
  let last = "the header";
  for (const tensor of tensors) {
    if (tensor.offset !== end) {
      const how = tensor.offset < end ? "overlaps" : "leaves a gap after";
      throw new InvalidSafetensorsError(
        "SAFETENSORS_INVALID_OFFSETS",
        `${path}: tensor ${JSON.stringify(tensor.name)} ${how} ${last}`,
      );
    }
    end += tensor.bytes;
    last = `tensor ${JSON.stringify(tensor.name)}`;
  }
  if (end > fileBytes) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_TRUNCATED",
      `${path}: the tensors need a file of ${end} bytes but it has ${fileBytes}`,
    );
  }
  if (end < fileBytes) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_INVALID_OFFSETS",
      `${path}: the file has ${fileBytes - end} bytes that belong to no tensor`,
    );
  }
}
