/** Results on standard output and in files. */

import { access, constants, readdir, stat } from "node:fs/promises";
import { basename, dirname, extname, resolve, sep } from "node:path";
import { makeFolder } from "../files.js";
import { jsonLine } from "../json-line.js";
import { systemCode } from "../system-code.js";
import { writeWhole } from "../write-whole.js";
import { tell } from "./context.js";
import { ExitCode, OutputError, UsageError } from "./exit-codes.js";

/** The name that stands for standard input or output. */
export const STANDARD = "-";

/**
 * A reader that went away (`| head -1`) has seen what it wanted: the command ends, and that is no failure. Anything
 * else that standard output does not take is told.
 */
export function endWithStandardOutput(json: boolean): void {
  process.stdout.on("error", ({ code, message }: NodeJS.ErrnoException) => {
    if (code === "EPIPE") process.exit(ExitCode.ok);
    tell(new OutputError(`cannot write to standard output: ${message}`), json);
    process.exit(ExitCode.output);
  });
  process.stderr.on("error", () => {});
}

/** Writes to standard output and waits until it is taken. */
export function write(data: string | Uint8Array): Promise<void> {
  return new Promise((resolve) => {
    process.stdout.write(data, () => resolve());
  });
}

export const writeJson = (value: unknown): Promise<void> => write(jsonLine(value));

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

/**
 * Throws `OUTPUT` unless all `names`, files of one folder, can be written there: before anything is computed, which
 * may take hours.
 */
export async function checkFilesOutput(names: readonly string[]): Promise<void> {
  const [first] = names;
  if (first === undefined) return;
  const cannot = (name: string, reason: string, cause?: unknown) =>
    new OutputError(`cannot write ${name}: ${reason}`, { cause });
  const folder = dirname(resolve(first));
  const found = await stat(folder).catch((error: NodeJS.ErrnoException) => {
    const reason = error.code === "ENOENT" ? `there is no folder ${folder}` : error.message;
    throw cannot(first, reason, error);
  });
  if (!found.isDirectory()) throw cannot(first, `${folder} is not a folder`);
  await access(folder, constants.W_OK | constants.X_OK).catch((error: Error) => {
    throw cannot(first, error.message, error);
  });
  // A folder that may be written to and not read shows what is in the way only when it is written to.
  const entries = await readdir(folder, { withFileTypes: true }).catch(() => []);
  const folders = new Set(entries.filter((e) => e.isDirectory()).map(({ name }) => name));
  const taken = names.find((name) => folders.has(basename(name)));
  if (taken !== undefined) throw cannot(taken, "it is a folder");
}

/** Makes a folder for results. Throws `OUTPUT` unless files can be made there: before any result is. */
export async function makeFolderOutput(folder: string): Promise<void> {
  const check = async () => {
    await makeFolder(folder);
    await access(folder, constants.W_OK | constants.X_OK);
  };
  await check().catch(writingFailed(folder));
}

/** Writes bytes to a file, whole or not at all, or to standard output. */
export async function writeFileOutput(out: string, bytes: Uint8Array): Promise<void> {
  if (out === STANDARD) return write(bytes);
  await writeWhole(out, bytes).catch((cause: Error) => {
    throw new OutputError(`cannot write ${out}: ${cause.message}`, { cause });
  });
}

/**
 * What the file system says of folders of results, of what is made beside them, of those above them or of a file that
 * is open, becomes an error of the output.
 */
export const writingFailed =
  (...folders: readonly string[]) =>
  (error: NodeJS.ErrnoException & { dest?: string }) => {
    if (systemCode(error) === undefined) throw error;
    // A copy has two.
    const paths = [error.path, error.dest].flatMap((path) => path ?? []).map((p) => resolve(p));
    const isMeant = (folder: string) => {
      const to = resolve(folder);
      return paths.some((at) => at.startsWith(to) || to.startsWith(`${at}${sep}`));
    };
    const meant = paths.length === 0 ? folders : folders.filter(isMeant);
    if (meant.length === 0) throw error;
    throw new OutputError(`cannot write to ${meant.join(" or ")}: ${error.message}`, {
      cause: error,
    });
  };

/** Writes a text as it comes, and a line break behind it. */
export async function writePieces(pieces: AsyncIterable<string>): Promise<void> {
  for await (const piece of pieces) await write(piece);
  await write("\n");
}
