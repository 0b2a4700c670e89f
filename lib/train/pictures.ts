/**
 * Pictures as training takes them: bytes at the model's size and latents. What was once computed is kept in
 * one packed file, a slot for each picture, so that later epochs and runs only read.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { appendFile, type FileHandle, mkdir, open, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { loadAddon } from "../addon.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { TrainingDataError } from "../errors.js";
import { decodeImage } from "../image-input.js";
import { UniFluid } from "../model.js";

export interface Picture {
  /** RGB, [size, size, 3]. */
  pixels: Uint8Array;
  /** [cells, token channels] */
  latents: Float32Array;
}

/** A picture that is not decoded yet: a path, or the bytes of a file within another. */
export type PictureFile = string | PackedPicture;

export interface PackedPicture {
  /** The name that it is kept under: the outer file's path and its own. */
  path: string;
  bytes: Uint8Array;
  /** When the outer file was last written, in milliseconds. */
  modified: number;
}

interface Entry {
  path: string;
  /** Of the file, to see whether it has changed. */
  bytes: number;
  modified: number;
  slot: number;
}

/** Name of the folder beside a manifest or shards that prepared pictures lie in. */
export const CACHE_FOLDER = ".unifluid-cache";

async function stampOf(path: string): Promise<Omit<Entry, "slot">> {
  const { size: bytes, mtimeMs: modified } = await stat(path);
  return { path, bytes, modified };
}

/** The name of a picture as messages and the cache have it. */
export const pathOf = (file: PictureFile): string => (typeof file === "string" ? file : file.path);

/** What latents depend on: the autoencoder, the size and the grid. */
async function identity(checkpoint: Checkpoint): Promise<string> {
  const hash = createHash("sha256");
  const { spec } = checkpoint;
  hash.update(JSON.stringify([spec.vae, spec.image?.grid, checkpoint.config?.image?.imageSize]));
  const files = [
    ...new Set(spec.tensors.filter((t) => t.name.startsWith("vae.")).map((t) => t.file)),
  ];
  for (const file of files)
    await pipeline(createReadStream(spec.files[file] as string), hash, { end: false });
  return hash.digest("hex").slice(0, 16);
}

export class Pictures {
  private readonly entries = new Map<string, Entry>();
  private readonly waiting = new Map<string, Promise<Entry>>();
  private model: Promise<UniFluid> | undefined;
  private slots = 0;
  /** Index lines are written after their slots, one after another. */
  private writing: Promise<void> = Promise.resolve();

  private constructor(
    private readonly checkpoint: Checkpoint,
    private readonly size: number,
    private readonly latentCount: number,
    private readonly data: FileHandle,
    private readonly index: string,
    private readonly threads: number | undefined,
  ) {}

  /** Opens the cache in `parent`, or begins one. */
  static async open(parent: string, checkpoint: Checkpoint, threads?: number): Promise<Pictures> {
    const { spec, config } = checkpoint;
    const size = config?.image?.imageSize ?? spec.vision?.imageSize ?? 0;
    const latents = spec.image ? spec.image.grid ** 2 * spec.image.tokenChannels : 0;
    const folder = join(parent, CACHE_FOLDER);
    const name = join(folder, await identity(checkpoint));
    let data: FileHandle;
    try {
      await mkdir(folder, { recursive: true });
      data = await open(`${name}.bin`, "a+");
    } catch (cause) {
      const reason = (cause as Error).message;
      throw new TrainingDataError(`cannot keep prepared pictures: ${reason}`, { cause });
    }
    const pictures = new Pictures(checkpoint, size, latents, data, `${name}.jsonl`, threads);
    await pictures.readIndex();
    return pictures;
  }

  private get slotBytes(): number {
    return this.size * this.size * 3 + this.latentCount * 4;
  }

  private async readIndex(): Promise<void> {
    const text = await readFile(this.index, "utf8").catch(() => "");
    const whole = Math.floor((await this.data.stat()).size / this.slotBytes);
    this.slots = whole;
    for (const line of text.split("\n")) {
      // A line that a killed process left half-written is no entry.
      let entry: Entry;
      try {
        entry = JSON.parse(line) as Entry;
      } catch {
        continue;
      }
      if (entry.slot < whole) this.entries.set(entry.path, entry);
    }
    // Slots begin where whole ones end.
    await this.data.truncate(whole * this.slotBytes);
  }

  /** Throws what decoding throws. */
  async get(file: PictureFile): Promise<Picture> {
    const entry = await this.prepare(file);
    const bytes = new Uint8Array(this.slotBytes);
    await this.data.read(bytes, 0, bytes.length, entry.slot * this.slotBytes);
    const split = this.size * this.size * 3;
    return {
      pixels: bytes.subarray(0, split),
      latents: new Float32Array(bytes.slice(split).buffer),
    };
  }

  /** Where a picture is kept; computed and added where it is new or has changed. */
  async prepare(file: PictureFile): Promise<Entry> {
    const { path, bytes, modified } =
      typeof file === "string" ? await stampOf(file) : { ...file, bytes: file.bytes.length };
    const known = this.entries.get(path);
    if (known?.bytes === bytes && known.modified === modified) return known;
    const begun = this.waiting.get(path);
    if (begun) return begun;
    const input = typeof file === "string" ? file : file.bytes;
    const made = this.add(input, { path, bytes, modified }).finally(() =>
      this.waiting.delete(path),
    );
    this.waiting.set(path, made);
    return made;
  }

  private async add(input: string | Uint8Array, stamp: Omit<Entry, "slot">): Promise<Entry> {
    const { pixels: decoded, width, height } = await decodeImage(input);
    const fits = width === this.size && height === this.size;
    const pixels = fits
      ? decoded
      : await loadAddon().resizeImage(decoded, width, height, this.size, this.size, "bicubic");
    const slot = Buffer.alloc(this.slotBytes);
    slot.set(pixels);
    if (this.latentCount > 0) {
      this.model ??= UniFluid.load(this.checkpoint.directory, { threads: this.threads });
      const image = { pixels, width: this.size, height: this.size };
      const latents = await (await this.model).encodeImage(image);
      slot.set(
        new Uint8Array(latents.buffer, latents.byteOffset, latents.byteLength),
        pixels.length,
      );
    }
    const entry = { ...stamp, slot: 0 };
    const write = this.writing.then(async () => {
      await this.data.appendFile(slot);
      entry.slot = this.slots++;
      await appendFile(this.index, `${JSON.stringify(entry)}\n`);
      this.entries.set(entry.path, entry);
    });
    this.writing = write.catch(() => {});
    await write;
    return entry;
  }

  async close(): Promise<void> {
    await this.writing;
    await this.data.close();
    if (this.model) await (await this.model).dispose();
  }
}
