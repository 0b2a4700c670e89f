/**
 * Pictures as training takes them: bytes at the model's size and latents. What was once computed is kept in
 * packed files, a slot for each picture, so that later epochs and runs only read. A process adds to a pack of its
 * own, which nobody else writes to, so that any number of them may work on one folder, on any file system.
 */
import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { appendFile, type FileHandle, open, readdir, rm, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { loadAddon } from "../addon.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { readFully } from "../checkpoint/read-fully.js";
import { storedBytes } from "../checkpoint/stored-types.js";
import { ENCODER_TENSORS } from "../checkpoint/vae-config.js";
import { decoding } from "../decoding.js";
import { CheckpointNotFoundError, DisposedError, TrainingDataError } from "../errors.js";
import { makeFolder } from "../files.js";
import { type DecodedImage, decodeImage, unreadImage } from "../image-input.js";
import { readJsonLines } from "../json-lines.js";
import type { LoadOptions } from "../load-options.js";
import { type ResizeFilter, resize } from "../preprocess.js";
import { allSettled } from "../settled.js";
import { requireAbility } from "../tasks.js";
import { LatentEncoder } from "./latent-encoder.js";
import { PicturePlaces, type Place } from "./picture-places.js";

export interface Picture {
  /** RGB at the size that the vision tower reads, [side, side, 3]; of a model without one, what latents are of. */
  pixels: Uint8Array;
  /** [cells, token channels] */
  latents: Float32Array;
}

/** A picture's pixels as a part of the model takes them. */
interface Plane {
  side: number;
  filter: ResizeFilter;
}

/** What the model takes of a picture. */
interface Layout {
  /** What the vision tower reads; absent where it is what latents are of, or where there is no tower. */
  read?: Plane;
  /** What latents are of, as drawing has it; where there are none, what is read. */
  drawn: Plane;
  latents: number;
}

function layoutOf({ spec, config, preprocessor }: Checkpoint): Layout {
  const { image, vision } = spec;
  const read = vision && { side: vision.imageSize, filter: preprocessor?.filter ?? "bicubic" };
  if (!image || !spec.vae) return { drawn: read ?? { side: 0, filter: "bicubic" }, latents: 0 };
  const drawn = { side: config!.image!.imageSize, filter: "bicubic" } as const;
  const same = read?.side === drawn.side && read.filter === drawn.filter;
  return { ...(!same && { read }), drawn, latents: image.grid ** 2 * image.tokenChannels };
}

const bytesOf = ({ side }: Plane) => side * side * 3;

/** A picture that is not decoded yet: a path, or the bytes of a file within another. */
export type PictureFile = string | PackedPicture;

export interface PackedPicture {
  /** The name that it is kept under: the outer file's path and its own. */
  path: string;
  bytes: Uint8Array;
  /** When the outer file was last written, in milliseconds. */
  modified: number;
}

/** What tells one picture from another and from itself after a change. */
interface Stamp {
  path: string;
  bytes: number;
  modified: number;
}

/** A line of a pack's index. */
interface Line extends Stamp {
  slot: number;
}

/** A file of slots. */
interface Slots {
  path: string;
  data: FileHandle;
}

/** A file of slots, and beside it an index of what they hold. */
interface Pack {
  /** The number of its file. */
  number: number;
  index: string;
  slots: number;
}

/** Name of the folder beside a manifest or shards that prepared pictures lie in. */
export const CACHE_FOLDER = ".unifluid-cache";

/** What pictures are prepared with, and where they are kept. */
export interface PicturesOptions extends Pick<LoadOptions, "device" | "threads"> {
  /** The folder of packs, in place of the one beside the manifest or the shards. */
  cache?: string;
  /** A directory that has the same autoencoder, for when the checkpoint's own is gone. */
  copy?: () => Promise<string | undefined>;
}

/** The folder of packs of data that lies in `parent`. */
export const cacheFolder = (parent: string, cache?: string): string =>
  cache ?? join(parent, CACHE_FOLDER);

const keyOf = ({ path, bytes, modified }: Stamp) => `${path}\n${bytes}\n${modified}`;

async function stampOf(path: string): Promise<Stamp> {
  const { size: bytes, mtimeMs: modified } = await stat(path).catch((cause) => {
    throw unreadImage(path, cause);
  });
  return { path, bytes, modified };
}

/** The name of a picture as messages and the cache have it. */
export const pathOf = (file: PictureFile): string => (typeof file === "string" ? file : file.path);

/** Of the cache, not of a picture: it ends what is being done. */
const cannotKeep = (cause: unknown) =>
  new TrainingDataError(
    `cannot keep prepared pictures: ${(cause as Error).message}; "cache" in a run's settings (--cache of eval) ` +
      "names another folder for them",
    { cause },
  );

/** Of the cache as well: what is not there must not be trained on as zeros. */
const cannotRead = (cause: unknown) =>
  new TrainingDataError(
    `cannot read prepared pictures: ${(cause as Error).message}; they may be deleted, and are prepared again then`,
    { cause },
  );

/** What a slot's bytes depend on: the encoder, the grid, the sizes and the filters. */
async function identity({ spec }: Checkpoint, { read, drawn }: Layout): Promise<string> {
  const hash = createHash("sha256");
  const filters = drawn.filter === "bicubic" && !read ? [] : [drawn.filter, read];
  hash.update(JSON.stringify([spec.vae, spec.image?.grid, drawn.side, ...filters]));
  for (const tensor of spec.tensors.filter(({ name }) => ENCODER_TENSORS.test(name))) {
    const bytes = storedBytes(tensor);
    hash.update(JSON.stringify([tensor.name, tensor.dtype, bytes]));
    const range = { start: tensor.offset, end: tensor.offset + bytes - 1 };
    const file = createReadStream(spec.files[tensor.file] as string, range);
    for await (const chunk of file) hash.update(chunk as Buffer);
  }
  return hash.digest("hex").slice(0, 16);
}

export class Pictures {
  /** By what tells a picture, since packs may hold it as it was before a change. */
  private readonly places = new PicturePlaces();
  private readonly waiting = new Map<string, Promise<Place>>();
  private loading: Promise<LatentEncoder> | undefined;
  /** Files that are open, by their numbers. */
  private readonly packs: Slots[] = [];
  /** This process's own pack, once there is something to add. */
  private own: Pack | undefined;
  private closed = false;
  /** Index lines are written after their slots, one after another. Once one cannot be, none is: each would try anew. */
  private writing: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly checkpoint: Checkpoint,
    private readonly layout: Layout,
    /** Packs have this name and what tells one process from another. */
    private readonly name: string,
    private readonly load: PicturesOptions,
  ) {}

  /** Opens the cache of data that lies in `parent`, or begins one. Throws `TRAINING_DATA`. */
  static async open(
    parent: string,
    checkpoint: Checkpoint,
    options: PicturesOptions,
  ): Promise<Pictures> {
    const layout = layoutOf(checkpoint);
    const folder = cacheFolder(parent, options.cache);
    const name = join(folder, await identity(checkpoint, layout));
    const pictures = new Pictures(checkpoint, layout, name, options);
    try {
      await makeFolder(folder);
      const known = basename(name);
      const files = (await readdir(folder)).filter((n) => n.startsWith(known));
      for (const index of files.filter((n) => n.endsWith(".jsonl")).sort())
        await pictures.read(join(folder, index.slice(0, -".jsonl".length)));
    } catch (cause) {
      await pictures.close();
      throw cannotKeep(cause);
    }
    return pictures;
  }

  private get slotBytes(): number {
    const { read, drawn, latents } = this.layout;
    return bytesOf(drawn) + (read ? bytesOf(read) : 0) + latents * 4;
  }

  /** Reads the index of a pack, which another process may be adding to. */
  private async read(pack: string): Promise<void> {
    const number = await this.open(`${pack}.bin`, "r");
    const { size } = await this.packs[number]!.data.stat();
    const whole = Math.floor(size / this.slotBytes);
    await readJsonLines(`${pack}.jsonl`, (line) => {
      const { slot, ...stamp } = line as Line;
      if (slot < whole) this.places.set(keyOf(stamp), { pack: number, slot });
    });
  }

  private async begin(): Promise<Pack> {
    const name = `${this.name}-${randomUUID().slice(0, 8)}`;
    const number = await this.open(`${name}.bin`, "ax+");
    return { number, index: `${name}.jsonl`, slots: 0 };
  }

  private async open(path: string, flags: string): Promise<number> {
    const data = await open(path, flags);
    return this.packs.push({ path, data }) - 1;
  }

  /** Throws what decoding throws. */
  async get(file: PictureFile): Promise<Picture> {
    const { pack, slot } = await this.prepare(file);
    const bytes = new Uint8Array(this.slotBytes);
    const { path, data } = this.packs[pack]!;
    await readFully(data, bytes, slot * this.slotBytes, path).catch((cause) => {
      throw cannotRead(cause);
    });
    const { read, drawn } = this.layout;
    const first = bytesOf(drawn);
    const split = first + (read ? bytesOf(read) : 0);
    return {
      pixels: bytes.subarray(read ? first : 0, split),
      latents: new Float32Array(bytes.slice(split).buffer),
    };
  }

  /** Where a picture is kept; computed and added where it is new or has changed. Throws `DISPOSED` once closed. */
  async prepare(file: PictureFile): Promise<Place> {
    const stamp =
      typeof file === "string" ? await stampOf(file) : { ...file, bytes: file.bytes.length };
    const key = keyOf(stamp);
    const known = this.places.get(key) ?? this.waiting.get(key);
    if (known) return known;
    this.expectOpen();
    const input = typeof file === "string" ? file : file.bytes;
    const made = this.add(input, stamp).finally(() => this.waiting.delete(key));
    this.waiting.set(key, made);
    return made;
  }

  private expectOpen(): void {
    if (this.closed) throw new DisposedError("the pictures of this run were closed");
  }

  private async add(input: string | Uint8Array, stamp: Stamp): Promise<Place> {
    const { slot, image } = await decoding.run(async () => {
      this.expectOpen(); // it may have been closed while this waited
      return this.pixelsOf(input);
    });
    await this.addLatents(slot, image);
    const write = this.writing.then(() => this.append(stamp, slot));
    this.writing = write;
    return write;
  }

  /** What is kept of a picture, but for its latents, and the picture that these are of. */
  private async pixelsOf(input: string | Uint8Array) {
    const decoded = await decodeImage(input);
    const at = ({ side, filter }: Plane) => resize(decoded, side, side, filter, loadAddon());
    const { read, drawn } = this.layout;
    const slot = Buffer.alloc(this.slotBytes);
    const image = await at(drawn);
    slot.set(image.pixels);
    if (read) slot.set((await at(read)).pixels, bytesOf(drawn));
    return { slot, image };
  }

  private async addLatents(slot: Buffer, image: DecodedImage): Promise<void> {
    if (this.layout.latents === 0) return;
    const latents = await (await this.encoder()).encode(image);
    const bytes = new Uint8Array(latents.buffer, latents.byteOffset, latents.byteLength);
    slot.set(bytes, slot.length - bytes.length);
  }

  /** What makes latents; where it cannot be loaded, the next picture tries again. */
  private async encoder(): Promise<LatentEncoder> {
    requireAbility(this.checkpoint, "encode");
    // They are kept: as exact as training takes them, wherever they are computed.
    const { device, threads, copy } = this.load;
    const { directory, spec } = this.checkpoint;
    const load = (from: string) =>
      LatentEncoder.load(from, spec.image!, { device, threads, dtype: "float32" });
    this.loading ??= load(directory).catch(async (error) => {
      const other = error instanceof CheckpointNotFoundError ? await copy?.() : undefined;
      if (other === undefined) throw error;
      return load(other);
    });
    const { loading } = this;
    try {
      return await loading;
    } catch (error) {
      // Another picture may be trying again by now.
      if (this.loading === loading) this.loading = undefined;
      throw error;
    }
  }

  private async append(stamp: Stamp, bytes: Buffer): Promise<Place> {
    try {
      this.own ??= await this.begin();
      const { number, index, slots: slot } = this.own;
      await this.packs[number]!.data.appendFile(bytes);
      const line: Line = { ...stamp, slot };
      await appendFile(index, `${JSON.stringify(line)}\n`);
      this.own.slots++;
      const place = { pack: number, slot };
      this.places.set(keyOf(stamp), place);
      return place;
    } catch (cause) {
      if (this.own?.slots === 0) await this.discard(this.own);
      throw cannotKeep(cause);
    }
  }

  /** Removes a pack that holds nothing: on a full disk every try would leave one more. */
  private async discard({ number, index }: Pack): Promise<void> {
    const { data, path } = this.packs[number]!;
    await Promise.allSettled([data.close(), rm(path), rm(index)]);
  }

  /** Waits for pictures that are being prepared: where one of a batch fails, nobody waits for the others. */
  async close(): Promise<void> {
    this.closed = true;
    await Promise.allSettled(this.waiting.values());
    await this.writing.catch(() => {}); // told to whom it was to be kept for
    await allSettled([
      ...this.packs.map(({ data }) => data.close()),
      this.loading?.then((encoder) => encoder.dispose()),
    ]);
  }
}
