/**
 * The lines of a text file of any size that fits the memory: its bytes, and where each line begins. Each is made a
 * string when it is used, for a string holds 512 MiB at most.
 */
import { constants } from "node:buffer";
import { type FileHandle, open } from "node:fs/promises";
import { TrainingDataError } from "../errors.js";

const LINE_BREAK = 0x0a;
/** A single call reads 2 GiB at most. */
const PIECE = 2 ** 30;

export class Lines {
  private constructor(
    readonly bytes: Buffer,
    /** The first byte of each that is not blank. */
    private readonly starts: Float64Array,
    /** The line in the file of each, from 1. */
    private readonly numbers: Int32Array,
  ) {}

  /** Those that are not blank. Throws `TRAINING_DATA`. */
  static async read(path: string): Promise<Lines> {
    let bytes: Buffer;
    try {
      const file = await open(path);
      try {
        bytes = await readAll(file, path);
      } finally {
        await file.close();
      }
    } catch (cause) {
      if (cause instanceof TrainingDataError) throw cause;
      throw new TrainingDataError(`cannot read ${path}: ${(cause as Error).message}`, { cause });
    }
    let count = 0;
    for (const [start, end, number] of linesOf(bytes)) {
      if (end - start > constants.MAX_STRING_LENGTH)
        throw new TrainingDataError(
          `${path}: line ${number} has ${end - start} bytes: expected JSON lines, a record in each`,
        );
      if (!isBlank(bytes, start, end)) count++;
    }
    const [starts, numbers] = [new Float64Array(count), new Int32Array(count)];
    let at = 0;
    for (const [start, end, number] of linesOf(bytes)) {
      if (isBlank(bytes, start, end)) continue;
      starts[at] = start;
      numbers[at++] = number;
    }
    return new Lines(bytes, starts, numbers);
  }

  get length(): number {
    return this.starts.length;
  }

  number(index: number): number {
    return this.numbers[index] as number;
  }

  /** Its bytes. */
  at(index: number): Buffer {
    const start = this.starts[index] as number;
    return this.bytes.subarray(start, endOf(this.bytes, start));
  }
}

// Methods of Buffer take offsets of up to 2 GiB, those of its base class any.
function endOf(bytes: Buffer, start: number): number {
  const found = Uint8Array.prototype.indexOf.call(bytes, LINE_BREAK, start);
  return found < 0 ? bytes.length : found;
}

/** First byte, end and number of each line, blank or not. */
function* linesOf(bytes: Buffer): Generator<[number, number, number], void> {
  let start = 0;
  for (let number = 1; start <= bytes.length; number++) {
    const end = endOf(bytes, start);
    yield [start, end, number];
    start = end + 1;
  }
}

function isBlank(bytes: Buffer, start: number, end: number): boolean {
  const first = bytes[start] as number;
  // Most lines begin with a brace: only what may be a space, of which Unicode has some, is looked at.
  const space = first === 0x20 || (first >= 0x09 && first <= 0x0d) || first > 0x7f;
  return start === end || (space && bytes.subarray(start, end).toString().trim() === "");
}

async function readAll(file: FileHandle, path: string): Promise<Buffer> {
  const found = await file.stat();
  // A pipe, say, tells no size.
  if (!found.isFile() || found.size < PIECE) return file.readFile();
  if (found.size > constants.MAX_LENGTH)
    throw new TrainingDataError(
      `${path} has ${found.size} bytes, where a manifest may have ${constants.MAX_LENGTH}: write its records as tar shards, which are not held in memory`,
    );
  const bytes = Buffer.allocUnsafeSlow(found.size);
  let done = 0;
  while (done < bytes.length) {
    const { bytesRead } = await file.read(bytes, done, Math.min(PIECE, bytes.length - done), done);
    if (bytesRead === 0) break; // it became shorter
    done += bytesRead;
  }
  return bytes.subarray(0, done);
}
