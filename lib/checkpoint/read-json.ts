/** JSON files of a checkpoint. */

import { readFile } from "node:fs/promises";
import { CheckpointNotFoundError, InvalidConfigError } from "../errors.js";

/** Parses a JSON file; `absent` is the answer where there is none. */
export async function readJson(path: string, absent?: unknown): Promise<unknown> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    if (absent !== undefined && (cause as NodeJS.ErrnoException).code === "ENOENT") return absent;
    throw new CheckpointNotFoundError(`cannot read ${path}: ${(cause as Error).message}`, {
      cause,
    });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new InvalidConfigError(`${path}: not JSON: ${(cause as Error).message}`, { cause });
  }
}
