/** From what a caller names a model by to its directory. */

import { existsSync } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { CheckpointNotFoundError, InvalidOptionError } from "../errors.js";
import { isUrl } from "../is-url.js";
import { show } from "./fields.js";

const NO_DOWNLOAD =
  'nothing is downloaded; fetch its files, as "hf download REPOSITORY --local-dir DIRECTORY" does, and give that directory';

/** What may be the name of a shipped model, and else is a path. */
const BARE_NAME = /^[A-Za-z0-9][\w.-]*$/;

/** Models that the package ships. */
const MODELS = join(__dirname, "..", "..", "models");

/** Names of the included models. */
export async function shippedModels(): Promise<string[]> {
  const entries = await readdir(MODELS, { withFileTypes: true }).catch(() => []);
  return entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name);
}

/** Whether a name is that of a shipped model. */
export const isShippedModel = (name: string): boolean =>
  BARE_NAME.test(name) && existsSync(join(MODELS, name));

/**
 * Finds a model's directory by an included model's name, a path or a file URL. A bare name is an included model's if
 * there is one of that name; `./name` is always a path.
 */
export async function locateCheckpoint(model: string | URL): Promise<string> {
  if (typeof model !== "string" && !isUrl(model)) {
    throw new InvalidOptionError(
      `expected a path, a file URL or the name of a model but received ${show(model)}`,
    );
  }
  const text = typeof model === "string" ? model : model.href;
  if (/^(?!file:)[a-z][a-z0-9+.-]*:\/\//i.test(text)) {
    throw new InvalidOptionError(
      `expected a directory on this machine for the model but received ${show(text)}: ${NO_DOWNLOAD}`,
    );
  }
  if (isUrl(model) || /^file:/i.test(text)) {
    let path: string;
    try {
      path = fileURLToPath(text);
    } catch (cause) {
      throw new InvalidOptionError(`expected a file URL for the model but received ${text}`, {
        cause,
      });
    }
    return existing(path, text);
  }
  if (text === "") throw new InvalidOptionError('expected the name of a model but received ""');
  // Without a wait: the process may go to another folder meanwhile.
  if (isShippedModel(text)) return join(MODELS, text);
  return existing(resolve(text), text);
}

async function existing(path: string, given: string): Promise<string> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isDirectory()) return path;
  if (found) {
    throw new CheckpointNotFoundError(
      `expected the directory of a checkpoint but ${show(given)} is a file`,
    );
  }
  const names = await shippedModels();
  const shipped = names.length > 0 ? `; models of this package: ${names.join(", ")}` : "";
  // Two names with a slash between are how hubs call their models.
  const hub = /^[\w-][\w.-]*\/[\w.-]+$/.test(given) ? `; ${NO_DOWNLOAD}` : "";
  throw new CheckpointNotFoundError(
    `there is no checkpoint directory ${show(given)}${shipped}${hub}`,
  );
}
