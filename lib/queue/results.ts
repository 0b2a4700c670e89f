/** The results that workers left in a run's folder. */

import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { RESULT_NAME } from "../jobs/names.js";

/** Their files, in the order of the records. Throws what the file system says. */
export async function resultFiles(folder: string): Promise<string[]> {
  const names = (await readdir(folder)).filter((name) => RESULT_NAME.test(name));
  names.sort((a, b) => Number.parseInt(a, 10) - Number.parseInt(b, 10));
  return names.map((name) => join(folder, name));
}
