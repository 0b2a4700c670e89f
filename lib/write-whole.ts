/** Files that are there whole or not at all. */

import { randomUUID } from "node:crypto";
import { rename, rm, writeFile } from "node:fs/promises";

/** How the names of files end that are being written, or were when their process was killed; of a regular expression. */
export const HALF_WRITTEN_ENDING = "\\.[0-9a-f]{8}\\.tmp";

/**
 * Writes a file beside its place under another name, then moves it there. Throws what the file system says, of
 * `name` and not of that other name.
 */
export async function writeWhole(path: string, data: Uint8Array, name = path): Promise<void> {
  const beside = `${path}.${randomUUID().slice(0, 8)}.tmp`;
  try {
    await writeFile(beside, data, { flag: "wx" });
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true }).catch(() => {});
    throw errorOfPath(error as NodeJS.ErrnoException, name);
  }
}

/** An error of the file system as one of another path: the code and the words, without the name that it was about. */
function errorOfPath(cause: NodeJS.ErrnoException, path: string): Error {
  const { code, errno, syscall, message } = cause;
  if (code === undefined) return cause;
  const words = message.replace(/, \w+( '.*)?$/s, "");
  const error = new Error(`${words}, write '${path}'`, { cause });
  return Object.assign(error, { code, errno, syscall, path });
}
