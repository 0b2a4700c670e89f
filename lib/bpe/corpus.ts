/** The texts that a vocabulary is learned from, as words with their counts. */
import { createReadStream } from "node:fs";
import { InvalidRecordError, TrainingDataError } from "../errors.js";
import { DEFAULT_TEMPLATES, fillTemplate } from "../prompts.js";
import { ManifestSource } from "../train/manifest-source.js";
import { ShardSource } from "../train/shard-source.js";
import { isShardName } from "../train/shards.js";
import type { Source, Texts } from "../train/source.js";

/** SentencePiece's sign for a space. */
export const SPACE = "\u2581";

/**
 * What tokens never reach beyond: a run of letters, one digit, or a run of other signs, each with the space before
 * it; a run of newlines; a space. A tokenizer that merges over the whole text then merges within these alone.
 */
const WORDS = new RegExp(
  `${SPACE}?[\\p{L}\\p{M}]+|${SPACE}?\\p{N}|${SPACE}?[^\\p{L}\\p{M}\\p{N}${SPACE}\\n]+|\\n+|${SPACE}`,
  "gu",
);

/** The words of a text. Half of a surrogate pair, which UTF-8 cannot hold, is U+FFFD. */
export function wordsOf(text: string): string[] {
  const spelled = text.replace(/\p{Surrogate}/gu, "\ufffd").replaceAll(" ", SPACE);
  return spelled.match(WORDS) ?? [];
}

/** Lines of a UTF-8 file without their ends, be they LF or CRLF. Throws `TRAINING_DATA`. */
async function* linesOf(path: string): AsyncGenerator<string, void> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  try {
    for await (const chunk of createReadStream(path)) {
      const lines = (rest + decoder.decode(chunk as Buffer, { stream: true })).split("\n");
      rest = lines.pop() as string;
      for (const line of lines) yield line.replace(/\r$/, "");
    }
    rest += decoder.decode();
  } catch (cause) {
    const { message, code } = cause as NodeJS.ErrnoException;
    const why = code === "ERR_ENCODING_INVALID_ENCODED_DATA" ? "it is not UTF-8" : message;
    throw new TrainingDataError(`cannot read ${path}: ${why}`, { cause });
  }
  if (rest !== "") yield rest.replace(/\r$/, "");
}

/** What a model reads and writes of a record: each template filled, and each text. */
function readAndWritten({ task, said }: Texts): string[] {
  return said.flatMap(({ prompt, text }) => {
    const read = fillTemplate(DEFAULT_TEMPLATES, task, prompt);
    return text === undefined ? [read] : [read, text];
  });
}

async function* textsOf(path: string): AsyncGenerator<string, void> {
  // Records are read as they lie: their order is not drawn.
  const order = { seed: 0n, place: 0 };
  const name = path.toLowerCase();
  let source: Source;
  if (name.endsWith(".jsonl")) source = await ManifestSource.open(path, order);
  else if (isShardName(name)) source = await ShardSource.open([path], order);
  else {
    for await (const line of linesOf(path)) yield `${line}\n`;
    return;
  }
  for await (const record of source.all()) {
    let texts: Texts;
    try {
      texts = record.texts();
    } catch (cause) {
      throw new InvalidRecordError(`${record.name}: ${(cause as Error).message}`, { cause });
    }
    yield* readAndWritten(texts);
  }
}

/**
 * Counts the words of files: of manifests (`.jsonl`) and tar shards (`.tar`, `.tar.gz`) those of their records'
 * texts, of others all. Throws `TRAINING_DATA`, `INVALID_RECORD` for a record that cannot be trained on, and the signal's
 * reason.
 */
export async function countWords(
  paths: readonly string[],
  signal?: AbortSignal,
): Promise<Map<string, number>> {
  const counts = new Map<string, number>();
  for (const path of paths)
    for await (const text of textsOf(path)) {
      signal?.throwIfAborted();
      for (const word of wordsOf(text)) counts.set(word, (counts.get(word) ?? 0) + 1);
    }
  return counts;
}
