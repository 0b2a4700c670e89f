/** From what a caller names a model by to its directory. */

import { readdir, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { CheckpointNotFoundError, InvalidOptionError } from "../errors.js";
import { show } from "./fields.js";

/** Models that the package ships. */
const MODELS = join(__dirname, "..", "..", "models");

const isDirectory = (path: string): Promise<boolean> =>
  stat(path).then(
    (s) => s.isDirectory(),
    () => false,
  );

/** Names of the shipped models. */
export async function shippedModels(): Promise<string[]> {
  const entries = await readdir(MODELS, { withFileTypes: true }).catch(() => []);
  return entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name);
}

/**
 * The directory of a model: the name of a shipped one, a path, or a file URL. A bare name is a shipped
 * model's if there is one of that name; `./name` is always a path.
 */
export async function locateCheckpoint(model: string | URL): Promise<string> {
  if (typeof model !== "string" && !(model instanceof URL)) {
    throw new InvalidOptionError(
      `expected a path, a file URL or the name of a model but received ${show(model)}`,
    );
  }
  const text = String(model);
  if (model instanceof URL || text.startsWith("file:")) {
    let path: string;
    try {
      path = fileURLToPath(model);
    } catch (cause) {
      throw new InvalidOptionError(`expected a file URL for the model but received ${text}`, {
        cause,
      });
    }
    return existing(path, text);
  }
  if (text === "") throw new InvalidOptionError('expected the name of a model but received ""');
  const isBareName = /^[A-Za-z0-9][\w.-]*$/.test(text);
  if (isBareName && (await shippedModels()).includes(text)) return join(MODELS, text);
  return existing(resolve(text), text);
}

async function existing(path: string, given: string): Promise<string> {
  if (await isDirectory(path)) return path;
  const names = await shippedModels();
  const shipped = names.length > 0 ? `; models of this package: ${names.join(", ")}` : "";
  throw new CheckpointNotFoundError(`there is no checkpoint directory ${show(given)}${shipped}`);
}
