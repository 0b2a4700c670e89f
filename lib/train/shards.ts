/**
 * Samples of tar shards in the form of WebDataset (Aizman et al., 2019): files that lie one after another and
 * share their name up to its first dot, the key.
 */
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { posix } from "node:path";
import { pipeline } from "node:stream/promises";
import { createGunzip } from "node:zlib";
import { extract } from "tar-stream";

export interface ShardSample {
  /** Its number in the shard, from 0. */
  index: number;
  key: string;
  /** Contents by extension, which is all behind the key's dot, in small letters. */
  files: ReadonlyMap<string, Buffer>;
  /** When the shard was last written, in milliseconds. */
  modified: number;
  /** Why it cannot be used. */
  fault?: string;
}

/** Whether a file is a shard by its name. */
export const isShardName = (name: string): boolean => /\.(tar|tar\.gz|tgz)$/i.test(name);

/** A file beyond this is no picture of the sizes that are read, but could fill the memory. */
const MAX_FILE_BYTES = 512 * 1024 * 1024;

/** `a/000001.target.png`: key `a/000001`, extension `target.png`. Hidden files and those without either are none. */
function splitName(name: string): { key: string; extension: string } | undefined {
  const { dir, base } = posix.parse(posix.normalize(name));
  const dot = base.indexOf(".");
  if (dot < 1 || dot === base.length - 1) return undefined;
  return { key: posix.join(dir, base.slice(0, dot)), extension: base.slice(dot + 1).toLowerCase() };
}

/**
 * Reads a shard from its beginning, a sample at a time; one whose name ends in .gz or .tgz is unpacked. Where the
 * archive is damaged or cut off, the last sample says so in `fault`. Throws what the file system says where it
 * cannot be opened.
 */
export async function* readShard(path: string): AsyncGenerator<ShardSample, void> {
  const { mtimeMs: modified } = await stat(path);
  const archive = extract();
  const bytes = createReadStream(path);
  // An error destroys the archive, and the loop below throws it.
  const read = /\.t?gz$/i.test(path)
    ? pipeline(bytes, createGunzip(), archive)
    : pipeline(bytes, archive);
  read.catch(() => {});
  let index = 0;
  let current: { key: string; files: Map<string, Buffer>; fault?: string } | undefined;
  const finish = (): ShardSample => ({ index: index++, modified, ...current! });
  try {
    for await (const entry of archive) {
      const name = entry.header.type === "file" ? splitName(entry.header.name) : undefined;
      if (name && name.key !== current?.key) {
        if (current) yield finish();
        current = { key: name.key, files: new Map() };
      }
      const size = entry.header.size ?? 0;
      if (!name || !current || size > MAX_FILE_BYTES) {
        if (name && current) current.fault = `${name.extension} has ${size} bytes`;
        entry.resume();
        continue;
      }
      const chunks: Buffer[] = [];
      for await (const chunk of entry) chunks.push(chunk as Buffer);
      if (current.files.has(name.extension)) current.fault = `${name.extension} is there twice`;
      current.files.set(name.extension, Buffer.concat(chunks));
    }
  } catch (error) {
    const fault = `the archive is damaged here: ${(error as Error).message}`;
    current = { key: current?.key ?? "its beginning", files: new Map(), fault };
  }
  if (current) yield finish();
}
