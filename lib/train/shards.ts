/**
 * Samples of tar shards in the form of WebDataset (Aizman et al., 2019): files that lie one after another and
 * share their name up to its first dot, the key.
 */
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { posix } from "node:path";
import { pipeline } from "node:stream/promises";
import { createGunzip } from "node:zlib";
import { extract, type Header } from "tar-stream";
import { systemCode } from "../system-code.js";

export interface ShardSample {
  /** Its number in the shard, from 0. */
  index: number;
  key: string;
  /** Contents by extension, which is all behind the key's dot, in small letters. */
  files: ReadonlyMap<string, Buffer>;
  /** When the shard was last written, in milliseconds. */
  modified: number;
  /** Extensions of files of it that the archive has, so far, as links alone. */
  links: readonly string[];
  /** Why it cannot be used. */
  fault?: string;
}

/** Whether a file is a shard by its name. */
export const isShardName = (name: string): boolean => /\.(tar|tar\.gz|tgz)$/i.test(name);

/** Files of a sample that have more together hold no pictures of the sizes that are read, but could fill the memory. */
const MAX_SAMPLE_BYTES = 512 * 1024 * 1024;

/** Of pictures that can be decoded. */
export const IMAGE_EXTENSIONS = ["png", "jpg", "jpeg", "webp", "avif", "gif", "tif", "tiff"];

/**
 * Archives of old programs, and of tar --format=v7, do not name their format; checksums are verified all the same. The
 * option is missing in the types.
 */
const EXTRACTING: object = { allowUnknownFormat: true };

/** Zero bytes that end an archive: two blocks, of which some programs write one. */
const END_MARK = 512;

/** `a/000001.target.png`: key `a/000001`, extension `target.png`. Hidden files and those without either are none. */
function splitName(name: string): { key: string; extension: string } | undefined {
  const { dir, base } = posix.parse(posix.normalize(name));
  const dot = base.indexOf(".");
  if (dot < 1 || dot === base.length - 1) return undefined;
  return { key: posix.join(dir, base.slice(0, dot)), extension: base.slice(dot + 1).toLowerCase() };
}

/** The name of a file that is stored without its holes, as by tar -S; undefined: it is none. */
function sparseName({ name, type, size, pax }: Header): string | undefined {
  // A type that tar-stream does not know. Of GNU's others, a label has no bytes, and a folder's name ends in a slash.
  if ((type as Header["type"] | null) === null)
    return size > 0 && !name.endsWith("/") ? name : undefined;
  const fields = (pax ?? {}) as Record<string, string>;
  const sparse = Object.keys(fields).some((field) => field.startsWith("GNU.sparse."));
  return sparse ? (fields["GNU.sparse.name"] ?? name) : undefined;
}

interface OpenSample {
  key: string;
  files: Map<string, Buffer>;
  links: string[];
  /** Of all its files, kept or not. */
  bytes: number;
  fault?: string;
}

const broken = (fault: string, key = "its beginning"): OpenSample => ({
  key,
  files: new Map(),
  links: [],
  bytes: 0,
  fault,
});

/**
 * Reads a shard from its beginning, a sample at a time; one whose name ends in .gz or .tgz is unpacked. Where the
 * archive is damaged, cut off or empty, the last sample says so in `fault`. One that ends between two files but
 * without an archive's end is told to `onRemark`: it may be cut off, but some programs write no end. A sample
 * whose files have more than `most` bytes together is at fault. Throws what the file system says where the shard
 * cannot be opened or read.
 */
export async function* readShard(
  path: string,
  onRemark?: (message: string) => void,
  most = MAX_SAMPLE_BYTES,
): AsyncGenerator<ShardSample, void> {
  const { mtimeMs: modified } = await stat(path);
  const archive = extract(EXTRACTING);
  const bytes = createReadStream(path);
  // How many bytes there are, and how many zeros at their end.
  let [length, zeros] = [0, 0];
  const watch = async function* (chunks: AsyncIterable<Buffer>) {
    for await (const chunk of chunks) {
      let last = chunk.length;
      while (last > 0 && chunk[last - 1] === 0) last--;
      zeros = last === 0 ? zeros + chunk.length : chunk.length - last;
      length += chunk.length;
      yield chunk;
    }
  };
  // An error destroys the archive, and the loop below throws it.
  const read = /\.t?gz$/i.test(path)
    ? pipeline(bytes, createGunzip(), watch, archive)
    : pipeline(bytes, watch, archive);
  read.catch(() => {});
  let index = 0;
  let current: OpenSample | undefined;
  // A link is no file of a sample, and neither begins nor ends one: it may lie anywhere.
  const links = new Map<string, string[]>();
  const linksOf = (key: string): string[] => {
    const known = links.get(key) ?? [];
    links.set(key, known);
    return known;
  };
  const finish = (): ShardSample => {
    const { bytes: _, ...sample } = current!;
    links.delete(sample.key);
    return { index: index++, modified, ...sample };
  };
  try {
    for await (const entry of archive) {
      const { type } = entry.header;
      if (type === "symlink" || type === "link") {
        const name = splitName(entry.header.name);
        if (name) linksOf(name.key).push(name.extension);
        entry.resume();
        continue;
      }
      const sparse = sparseName(entry.header);
      const stored = sparse ?? (type === "file" ? entry.header.name : undefined);
      const name = stored === undefined ? undefined : splitName(stored);
      if (name && name.key !== current?.key) {
        if (current) yield finish();
        current = { key: name.key, files: new Map(), links: linksOf(name.key), bytes: 0 };
      }
      if (!name || !current) {
        entry.resume();
        continue;
      }
      if (sparse !== undefined) {
        current.fault = `its ${name.extension} is stored sparse, which is not read: pack without tar -S`;
        entry.resume();
        continue;
      }
      current.bytes += entry.header.size ?? 0;
      if (current.bytes > most) {
        current.files.clear();
        current.fault = `its files have ${current.bytes} bytes together, where at most ${most} are read`;
        entry.resume();
        continue;
      }
      const chunks: Buffer[] = [];
      for await (const chunk of entry) chunks.push(chunk as Buffer);
      if (current.files.has(name.extension)) current.fault = `${name.extension} is there twice`;
      current.files.set(name.extension, Buffer.concat(chunks));
    }
    if (current) yield finish();
    current = undefined;
    const pictures = [...links].filter(([, extensions]) =>
      extensions.some((extension) => IMAGE_EXTENSIONS.includes(extension)),
    );
    if (index > 0 && pictures.length > 0)
      onRemark?.(`${path} has links in place of pictures (${pictures[0]![0]}), which are skipped`);
    // A folder of links that was packed as it was: nothing of it can be used, and each is to say why.
    else
      for (const [key, extensions] of pictures)
        yield { index: index++, modified, key, files: new Map(), links: extensions };
    if (length === 0) current = broken("the archive is empty: it has no bytes");
    else if (zeros < END_MARK)
      onRemark?.(
        `${path} lacks the blocks of zeros that end a tar file: it may have been cut off between two files`,
      );
  } catch (error) {
    // A disk that fails, say, is not the archive's damage.
    if (systemCode(error) !== undefined) throw error;
    const damage = `the archive is damaged here: ${(error as Error).message}`;
    // What is sparse with many holes looks like damage.
    const fault = current?.fault === undefined ? damage : `${current.fault}; ${damage}`;
    current = broken(fault, current?.key);
  }
  if (current) yield finish();
}
