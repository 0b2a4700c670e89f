/** Records of a file of jobs, one at a time: JSON lines, CSV with a header, or a prompt a line. */

import { createReadStream } from "node:fs";
import { extname } from "node:path";
import { addAbortSignal, Readable } from "node:stream";
import { CsvError, parse } from "csv-parse";
import { InvalidOptionError, InvalidRecordError } from "../errors.js";

export type JobFormat = "jsonl" | "csv" | "lines";

const FORMAT_OF_EXTENSION: Readonly<Record<string, JobFormat>> = {
  ".jsonl": "jsonl",
  ".ndjson": "jsonl",
  ".csv": "csv",
};

/** Bytes of one record; more is no job but a mistake, such as a file of another kind. */
const MAX_RECORD = 64 * 2 ** 20;

/**
 * The format that a file's name says: `.jsonl`, `.ndjson`, `.csv`, or lines of text. Throws `INVALID_OPTION` for
 * `.json`, whose lines nobody means as prompts.
 */
export function formatOf(path: string): JobFormat {
  const extension = extname(path).toLowerCase();
  if (extension === ".json") {
    throw new InvalidOptionError(
      `expected .jsonl (a JSON document on each line), .csv or a text file of prompts but received ${path}: write ` +
        "each record on a line of its own, or say by --input-format what the file holds",
    );
  }
  return FORMAT_OF_EXTENSION[extension] ?? "lines";
}

/** A record as it was read, or why it is none. `line`: of the file, from 1, on which it ends. */
export type RawRecord = { index: number; line: number } & (
  | { value: unknown }
  | { error: InvalidRecordError }
);

/** What messages call a record. */
export const nameOfRecord = (index: number, line?: number): string =>
  line === undefined ? `record ${index}` : `record ${index} (line ${line})`;

/**
 * Records of a file, or of a stream; blank lines do not count. Throws what the file system says, and the signal's
 * reason, also while it waits for a stream on which nothing comes.
 */
export async function* readRecords(
  source: string | Readable,
  format: JobFormat,
  signal?: AbortSignal,
): AsyncGenerator<RawRecord, void, undefined> {
  const stream = typeof source === "string" ? createReadStream(source) : source;
  if (signal) addAbortSignal(signal, stream);
  try {
    yield* format === "csv" ? csvRecords(stream) : lineRecords(stream, format);
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    stream.destroy();
  }
}

async function* lineRecords(
  stream: Readable,
  format: "jsonl" | "lines",
): AsyncGenerator<RawRecord> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let index = 0;
  let line = 0;
  for await (const bytes of lines(stream)) {
    line++;
    if (bytes.includes(0)) throw notText(line);
    let text: string;
    try {
      text = decoder.decode(bytes);
    } catch (cause) {
      const message = `${nameOfRecord(index, line)}: expected UTF-8 text`;
      yield { index, line, error: new InvalidRecordError(message, { cause }) };
      index++;
      continue;
    }
    if (text.trim() === "") continue;
    yield format === "lines"
      ? { index, line, value: { prompt: text } }
      : { index, line, ...parseLine(text, index, line) };
    index++;
  }
}

/** No text has NUL bytes: nothing of such a file is a record. */
const notText = (line: number) =>
  new InvalidRecordError(
    `line ${line}: expected UTF-8 text but found a NUL byte; is this a file of jobs?`,
  );

function parseLine(text: string, index: number, line: number) {
  try {
    return { value: JSON.parse(text) as unknown };
  } catch (cause) {
    const message = `${nameOfRecord(index, line)}: expected JSON: ${(cause as Error).message}`;
    return { error: new InvalidRecordError(message, { cause }) };
  }
}

const NEWLINE = 0x0a;
const RETURN = 0x0d;

/**
 * The bytes of lines, without their ends. Unlike those of `node:readline` they end at line feeds alone: since Node 24
 * it also takes U+2028 and U+2029 for ends, which JSON may hold as they are.
 */
async function* lines(stream: Readable): AsyncGenerator<Buffer> {
  let rest: Buffer[] = [];
  let length = 0;
  const joined = () => {
    const line = Buffer.concat(rest);
    [rest, length] = [[], 0];
    return line.at(-1) === RETURN ? line.subarray(0, -1) : line;
  };
  for await (const chunk of stream) {
    const bytes = chunk as Buffer;
    let from = 0;
    for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, from)) {
      rest.push(bytes.subarray(from, end));
      from = end + 1;
      yield joined();
    }
    const left = bytes.subarray(from);
    rest.push(left);
    length += left.length;
    if (length > MAX_RECORD) {
      throw new InvalidRecordError(`expected records of at most ${MAX_RECORD} bytes, one a line`);
    }
  }
  if (length > 0) yield joined();
}

/** The stream as it is. Throws `INVALID_RECORD` where it is no UTF-8 text. */
async function* checkedText(stream: Readable): AsyncGenerator<Buffer> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let line = 1;
  const check = (bytes?: Buffer) => {
    try {
      decoder.decode(bytes, { stream: bytes !== undefined });
    } catch (cause) {
      throw new InvalidRecordError(`line ${line} or later: expected UTF-8 text`, { cause });
    }
  };
  for await (const chunk of stream) {
    const bytes = chunk as Buffer;
    check(bytes);
    const zero = bytes.indexOf(0);
    for (let at = bytes.indexOf(NEWLINE); at >= 0; at = bytes.indexOf(NEWLINE, at + 1)) {
      if (zero >= 0 && at > zero) break;
      line++;
    }
    if (zero >= 0) throw notText(line);
    yield bytes;
  }
  check();
}

async function* csvRecords(stream: Readable): AsyncGenerator<RawRecord> {
  const text = Readable.from(checkedText(stream), { objectMode: false });
  const parser = text.pipe(
    parse({
      bom: true,
      columns: true,
      skip_empty_lines: true,
      relax_column_count: true,
      max_record_size: MAX_RECORD,
      info: true,
      trim: true,
    }),
  );
  text.once("error", (error) => parser.destroy(error));
  let index = 0;
  let odd = 0;
  try {
    for await (const { record, info } of parser as AsyncIterable<CsvRecord>) {
      // A comma without quotes around it would otherwise cut a prompt short in silence.
      const wrong = info.invalid_field_length > odd;
      odd = info.invalid_field_length;
      const cells = Object.entries(record).filter(([, cell]) => cell !== "");
      const line = info.lines;
      yield wrong
        ? { index, line, error: wrongWidth(index, line) }
        : { index, line, value: Object.fromEntries(cells) };
      index++;
    }
  } catch (cause) {
    if (!(cause instanceof CsvError)) throw cause;
    // What follows a broken quote cannot be told apart: the file ends here. The message names the line.
    throw new InvalidRecordError(`not CSV: ${cause.message}`, { cause });
  } finally {
    text.destroy();
  }
}

const wrongWidth = (index: number, line: number) =>
  new InvalidRecordError(
    `${nameOfRecord(index, line)}: expected as many cells as the header has; quote texts that hold commas`,
  );

interface CsvRecord {
  record: Record<string, string>;
  info: { invalid_field_length: number; lines: number };
}
