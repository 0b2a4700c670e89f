/**
 * Pictures as training takes them: bytes at the model's size and latents. What was once computed is kept in
 * one packed file, a slot for each picture, so that later epochs and runs only read.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { appendFile, type FileHandle, mkdir, open, readFile, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { loadAddon } from "../addon.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { decodeImage } from "../image-input.js";
import { UniFluid } from "../model.js";

export interface Picture {
  /** RGB, [size, size, 3]. */
  pixels: Uint8Array;
  /** [cells, token channels] */
  latents: Float32Array;
}

interface Entry {
  path: string;
  /** Of the file, to see whether it has changed. */
  bytes: number;
  modified: number;
  slot: number;
}

/** Name of the folder beside a manifest that prepared pictures lie in. */
export const CACHE_FOLDER = ".unifluid-cache";

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

  /** Opens the cache beside `manifest`, or begins one. */
  static async open(manifest: string, checkpoint: Checkpoint, threads?: number): Promise<Pictures> {
    const { spec, config } = checkpoint;
    const size = config?.image?.imageSize ?? spec.vision?.imageSize ?? 0;
    const latents = spec.image ? spec.image.grid ** 2 * spec.image.tokenChannels : 0;
    const folder = join(dirname(manifest), CACHE_FOLDER);
    await mkdir(folder, { recursive: true });
    const name = join(folder, await identity(checkpoint));
    const data = await open(`${name}.bin`, "a+");
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
  async get(path: string): Promise<Picture> {
    const entry = await this.prepare(path);
    const bytes = new Uint8Array(this.slotBytes);
    await this.data.read(bytes, 0, bytes.length, entry.slot * this.slotBytes);
    const split = this.size * this.size * 3;
    return {
      pixels: bytes.subarray(0, split),
      latents: new Float32Array(bytes.slice(split).buffer),
    };
  }

  /** Where a picture is kept; computed and added where it is new or has changed. */
  async prepare(path: string): Promise<Entry> {
    const known = this.entries.get(path);
    const { size: bytes, mtimeMs: modified } = await stat(path);
    if (known?.bytes === bytes && known.modified === modified) return known;
    const begun = this.waiting.get(path);
    if (begun) return begun;
    const made = this.add(path, bytes, modified).finally(() => this.waiting.delete(path));
    this.waiting.set(path, made);
    return made;
  }

  private async add(path: string, bytes: number, modified: number): Promise<Entry> {
    const { pixels: decoded, width, height } = await decodeImage(path);
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
    const entry = { path, bytes, modified, slot: 0 };
    const write = this.writing.then(async () => {
      await this.data.appendFile(slot);
      entry.slot = this.slots++;
      await appendFile(this.index, `${JSON.stringify(entry)}\n`);
      this.entries.set(path, entry);
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
