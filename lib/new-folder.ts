/** Folders that appear when they are complete. */

import { rename, rm } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { InvalidOptionError } from "./errors.js";
import { isThere, makeFolder } from "./files.js";
import { freeLock, takeLock, thisOwner } from "./folder-lock.js";

/** The absolute path of a folder that is to be made. Throws `INVALID_OPTION` where something is there. */
export async function expectNoFolder(folder: string): Promise<string> {
  const target = resolve(folder);
  if (await isThere(target))
    throw new InvalidOptionError(`expected a folder that does not exist yet but ${folder} does`);
  return target;
}

/**
 * Lets `fill` write into a folder beside `target`, an absolute path, and moves it there; where that fails, nothing is
 * left. Throws `OUTPUT_LOCKED` while another process makes the same folder, and `INVALID_OPTION` where one has.
 */
export async function fillNewFolder(
  target: string,
  fill: (beside: string) => Promise<void>,
): Promise<void> {
  const beside = `${target}.partial`;
  const lock = `${target}.lock`;
  await makeFolder(dirname(target));
  await takeLock(lock, thisOwner());
  try {
    // Another process may have made it since the caller looked.
    await expectNoFolder(target);
    // Of a process that was killed.
    await rm(beside, { recursive: true, force: true });
    try {
      await makeFolder(beside);
      await fill(beside);
      await rename(beside, target);
    } catch (error) {
      await rm(beside, { recursive: true, force: true });
      throw error;
    }
  } finally {
    await freeLock(lock);
  }
}
