/** Prompts and images from arguments or from standard input. */

import { InvalidImageError } from "../errors.js";
import { type ImageInput, readStream } from "../image-input.js";
import { UsageError } from "./exit-codes.js";
import { STANDARD } from "./output.js";

async function readStandardInput(signal: AbortSignal): Promise<Buffer> {
  try {
    return await readStream(process.stdin, "standard input", signal);
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  }
}

async function readStandardText(signal: AbortSignal): Promise<string> {
  try {
    return (await readStandardInput(signal)).toString("utf8");
  } catch (error) {
    // Too long: for what is no image that is a fault of usage.
    throw error instanceof InvalidImageError ? new UsageError(error.message) : error;
  }
}

/** Standard input can be read once. */
export function checkSingleStandardInput(...names: readonly string[]): void {
  if (names.filter((name) => name === STANDARD).length > 1) {
    throw new UsageError("- stands for standard input, which can be given once");
  }
}

/** An image argument: a path, a URL or data URI, or `-`. */
export async function readImage(name: string, signal: AbortSignal): Promise<ImageInput> {
  if (name !== STANDARD) return name;
  const bytes = await readStandardInput(signal);
  if (bytes.length === 0) throw new InvalidImageError("IMAGE_EMPTY", "standard input is empty");
  return bytes;
}

/** A text argument, or all of standard input without its last line break. */
export async function readText(text: string, signal: AbortSignal): Promise<string> {
  if (text !== STANDARD) return text;
  return (await readStandardText(signal)).replace(/\r?\n$/, "");
}

/** Throws `USAGE` for a text of nothing, which the library would take: an empty variable of the shell, mostly. */
export function checkNotBlank(text: string, what: string): void {
  if (text.trim() !== "") return;
  throw new UsageError(
    `${what} is blank: quote the words, and look whether a variable of the shell is empty`,
  );
}

/** Text arguments that are not blank; `-` stands for the lines of standard input that are not blank. */
export async function readLines(texts: readonly string[], signal: AbortSignal): Promise<string[]> {
  const lines: string[] = [];
  for (const text of texts) {
    if (text !== STANDARD) {
      checkNotBlank(text, "a prompt");
      lines.push(text);
      continue;
    }
    const input = (await readStandardText(signal)).split(/\r?\n/);
    const found = input.filter((line) => line.trim() !== "");
    if (found.length === 0) throw new UsageError("standard input holds no prompt");
    lines.push(...found);
  }
  return lines;
}
