/** Results on standard output and in files. */

import { extname } from "node:path";
import { UniFluidError } from "../errors.js";
import type { Image, ImageFormat } from "../image.js";
import { ExitCode, OutputError, UsageError } from "./exit-codes.js";

/** The name that stands for standard input or output. */
export const STANDARD = "-";

/**
 * A reader that went away (`| head -1`) has seen what it wanted: the command ends, and that is no failure.
 */
export function endQuietlyOnClosedPipe(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    process.exit(error.code === "EPIPE" ? ExitCode.ok : ExitCode.output);
  });
  process.stderr.on("error", () => {});
}

/** Writes to standard output and waits until it is taken. */
export function write(data: string | Uint8Array): Promise<void> {
  return new Promise((resolve) => {
    process.stdout.write(data, () => resolve());
  });
}

/** One JSON document on a line; seeds beyond 2^53 as strings, which JSON numbers would not hold. */
export function writeJson(value: unknown): Promise<void> {
  const text = JSON.stringify(value, (_, v) => (typeof v === "bigint" ? String(v) : v));
  return write(`${text}\n`);
}

/** `out.png` for one image; `out-0001.png`, `out-0002.png`, ... for several. */
export function numberedName(path: string, index: number, count: number): string {
  if (count === 1) return path;
  const extension = extname(path);
  const stem = path.slice(0, path.length - extension.length);
  return `${stem}-${String(index + 1).padStart(4, "0")}${extension}`;
}

/** Checks where images go before anything is computed. */
export function checkImageOutput(out: string, count: number, json: boolean): void {
  if (out !== STANDARD) return;
  if (count > 1) throw new UsageError(`--out - takes one image, not ${count}`);
  if (json) throw new UsageError("--out - and --json cannot share standard output");
  if (process.stdout.isTTY) throw new UsageError("--out - would write an image to the terminal");
}

/** Writes an image to a file, or to standard output. */
export async function writeImage(image: Image, out: string, format: ImageFormat): Promise<void> {
  if (out === STANDARD) return write(await image.toBuffer(format));
  try {
    await image.save(out);
  } catch (cause) {
    if (cause instanceof UniFluidError) throw cause;
    throw new OutputError(`cannot write ${out}: ${(cause as Error).message}`, { cause });
  }
}

/** Writes a text as it comes, and a line break behind it. */
export async function writePieces(pieces: AsyncIterable<string>): Promise<void> {
  for await (const piece of pieces) await write(piece);
  await write("\n");
}
