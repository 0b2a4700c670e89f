/** One safetensors file, or several with an index, as one list of tensors. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { CheckpointNotFoundError, InvalidSafetensorsError } from "../errors.js";
import { isFile } from "../files.js";
import { isObject, show } from "./fields.js";
import { readSafetensorsHeader, type TensorEntry } from "./safetensors.js";

export interface StoredTensor extends TensorEntry {
  /** Index into `WeightFiles.files`. */
  file: number;
}

export interface WeightFiles {
  /** The file, or the index of the shards. */
  path: string;
  /** Paths. */
  files: string[];
  tensors: StoredTensor[];
}

/** `<directory>/<name>.safetensors` or the index of its shards, whichever is there. */
export async function findWeights(directory: string, name: string): Promise<string | undefined> {
  const single = join(directory, `${name}.safetensors`);
  const index = `${single}.index.json`;
  if (await isFile(single)) return single;
  return (await isFile(index)) ? index : undefined;
}

/**
 * Reads the headers of `<directory>/<name>.safetensors`, or of the shards that
 * `<name>.safetensors.index.json` lists.
 */
export async function readWeightFiles(directory: string, name: string): Promise<WeightFiles> {
  const path = await findWeights(directory, name);
  if (path?.endsWith(".json")) return readShards(directory, path);
  if (path !== undefined) return { path, ...(await joinHeaders([path])) };
  throw new CheckpointNotFoundError(
    `no weights in ${directory}: expected ${name}.safetensors, or ${name}.safetensors.index.json with its shards`,
  );
}

async function joinHeaders(files: string[]): Promise<Omit<WeightFiles, "path">> {
  const headers = await Promise.all(files.map(readSafetensorsHeader));
  const tensors = headers.flatMap((h, file) => h.tensors.map((tensor) => ({ ...tensor, file })));
  return { files, tensors };
}

async function readShards(directory: string, index: string): Promise<WeightFiles> {
  const weightMap = await readIndex(index);
  const names = [...new Set(weightMap.values())].sort();
  for (const name of names) {
    if (!(await isFile(join(directory, name)))) {
      throw new CheckpointNotFoundError(`${index} lists the shard ${name}, which is not there`);
    }
  }
  const joined = await joinHeaders(names.map((name) => join(directory, name)));
  const invalid = (reason: string) =>
    new InvalidSafetensorsError("SAFETENSORS_INVALID_INDEX", `${index}: ${reason}`);
  const found = new Set<string>();
  for (const { name, file } of joined.tensors) {
    const listed = weightMap.get(name);
    if (listed !== names[file]) {
      const where = listed === undefined ? "nowhere" : `in ${listed}`;
      throw invalid(`tensor ${JSON.stringify(name)} is in ${names[file]} but listed ${where}`);
    }
    found.add(name);
  }
  for (const [name, shard] of weightMap) {
    if (!found.has(name)) {
      throw invalid(`tensor ${JSON.stringify(name)} is listed in ${shard} but is not there`);
    }
  }
  return { path: index, ...joined };
}

/** Tensor name to shard name. */
async function readIndex(path: string): Promise<Map<string, string>> {
  const invalid = (reason: string, cause?: unknown) =>
    new InvalidSafetensorsError("SAFETENSORS_INVALID_INDEX", `${path}: ${reason}`, { cause });
  let json: unknown;
  try {
    json = JSON.parse(await readFile(path, "utf8"));
  } catch (cause) {
    throw invalid(`not JSON: ${(cause as Error).message}`, cause);
  }
  const map = isObject(json) ? json.weight_map : undefined;
  if (!isObject(map)) throw invalid(`expected an object for weight_map but found ${show(map)}`);
  const entries = Object.entries(map);
  if (entries.length === 0) throw invalid("weight_map is empty");
  for (const [name, shard] of entries) {
    // A shard lies beside its index: a path could lead anywhere on the disk.
    if (typeof shard !== "string" || !/^[^/\\\0]+\.safetensors$/.test(shard)) {
      throw invalid(
        `expected a safetensors file name for tensor ${JSON.stringify(name)} but found ${show(shard)}`,
      );
    }
  }
  return new Map(entries as [string, string][]);
}
