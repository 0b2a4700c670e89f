/** What lies at a path that users name, and folders that are made there. */

import { mkdir, stat } from "node:fs/promises";
import { dirname, isAbsolute, resolve, sep } from "node:path";

export const isThere = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

export const isFile = (path: string): Promise<boolean> =>
  stat(path).then(
    (found) => found.isFile(),
    () => false,
  );

export const isFolder = (path: string): Promise<boolean> =>
  stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );

/**
 * Makes a folder and those above it that are missing; one that is there is left as it is. Throws what the file
 * system says, with its `code` and `path`.
 *
 * Node's own recursive `mkdir` tries again for ever, in a thread that no signal reaches, where a folder is there and
 * yet denies that anything could be in it, as /proc does.
 */
export async function makeFolder(path: string): Promise<void> {
  const missing: string[] = [];
  for (let at = resolve(path); ; at = dirname(at)) {
    const found = await stat(at).catch(() => undefined);
    // What is there and no folder stands in the way: making what is below it, or itself, says so.
    if (found?.isDirectory() || (found && missing.length > 0)) break;
    missing.push(at);
    if (at === dirname(at)) break;
  }
  for (const folder of missing.reverse()) {
    try {
      await mkdir(folder);
    } catch (error) {
      // Another process may have been quicker.
      if ((error as NodeJS.ErrnoException).code === "EEXIST" && (await isFolder(folder))) continue;
      throw error;
    }
  }
}

/**
 * A path from the root, taken when a call begins: the process may go to another folder before the file is opened.
 * Links before ".." and a slash at the end mean what they did, unlike with `resolve`.
 */
export const absolute = (path: string): string =>
  isAbsolute(path) ? path : `${process.cwd()}${sep}${path}`;
