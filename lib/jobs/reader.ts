/** Records of a file of jobs, one at a time: JSON lines, CSV with a header, or a prompt a line. */

import { createReadStream } from "node:fs";
import { extname } from "node:path";
import { addAbortSignal, type Readable } from "node:stream";
import { parse } from "csv-parse";
import { InvalidRecordError } from "../errors.js";

export type JobFormat = "jsonl" | "csv" | "lines";

const FORMAT_OF_EXTENSION: Readonly<Record<string, JobFormat>> = {
  ".jsonl": "jsonl",
  ".ndjson": "jsonl",
  ".csv": "csv",
};

/** Characters of one record; more is no job but a mistake, such as a file of another kind. */
const MAX_RECORD = 64 * 2 ** 20;

/** The format that a file's name says: `.jsonl`, `.ndjson`, `.csv`, or lines of text. */
export function formatOf(path: string): JobFormat {
  return FORMAT_OF_EXTENSION[extname(path).toLowerCase()] ?? "lines";
}

/** A record as it was read, or why it is none. */
export type RawRecord = { index: number } & ({ value: unknown } | { error: InvalidRecordError });

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
  let index = 0;
  for await (const line of lines(stream)) {
    if (line.trim() === "") continue;
    yield format === "lines"
      ? { index, value: { prompt: line } }
      : { index, ...parseLine(line, index) };
    index++;
  }
}

function parseLine(line: string, index: number) {
  try {
    return { value: JSON.parse(line) as unknown };
  } catch (cause) {
    const message = `record ${index}: expected JSON: ${(cause as Error).message}`;
    return { error: new InvalidRecordError(message, { cause }) };
  }
}

/** Lines of UTF-8 text, without their ends. */
async function* lines(stream: Readable): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8");
  let rest = "";
  for await (const chunk of stream) {
    const text = rest + decoder.decode(chunk as Buffer, { stream: true });
    const parts = text.split("\n");
    rest = parts.pop()!;
    if (rest.length > MAX_RECORD) {
      throw new InvalidRecordError(
        `expected records of at most ${MAX_RECORD} characters, one a line`,
      );
    }
    for (const part of parts) yield part.endsWith("\r") ? part.slice(0, -1) : part;
  }
  rest += decoder.decode();
  if (rest !== "") yield rest.endsWith("\r") ? rest.slice(0, -1) : rest;
}

async function* csvRecords(stream: Readable): AsyncGenerator<RawRecord> {
  const parser = stream.pipe(
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
  stream.once("error", (error) => parser.destroy(error));
  let index = 0;
  let odd = 0;
  try {
    for await (const { record, info } of parser as AsyncIterable<CsvRecord>) {
      // A comma without quotes around it would otherwise cut a prompt short in silence.
      const wrong = info.invalid_field_length > odd;
      odd = info.invalid_field_length;
      const cells = Object.entries(record).filter(([, cell]) => cell !== "");
      yield wrong
        ? { index, error: wrongWidth(index) }
        : { index, value: Object.fromEntries(cells) };
      index++;
    }
  } catch (cause) {
    if (!(cause as { code?: string }).code?.startsWith("CSV_")) throw cause;
    // What follows a broken quote cannot be told apart: the file ends here.
    throw new InvalidRecordError(`record ${index}: ${(cause as Error).message}`, { cause });
  }
}

const wrongWidth = (index: number) =>
  new InvalidRecordError(
    `record ${index}: expected as many cells as the header has; quote texts that hold commas`,
  );

interface CsvRecord {
  record: Record<string, string>;
  info: { invalid_field_length: number };
}
