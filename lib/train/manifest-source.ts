/** A manifest as a source: JSON lines beside their images. */
import { createHash } from "node:crypto";
import { basename, dirname, resolve } from "node:path";
import { setImmediate } from "node:timers/promises";
import { TrainingDataError } from "../errors.js";
import { Random } from "../philox.js";
import { Lines } from "./lines.js";
import { parsePictures, parseRecord, parseRecordText, pickSaid } from "./record.js";
import { isShardName } from "./shards.js";
import { ShuffleBuffer } from "./shuffle-buffer.js";
import {
  mostlyAlike,
  type OrderOptions,
  orderStream,
  type Source,
  type SourceRecord,
} from "./source.js";

/** Lines that tell a manifest from another of its name and length. */
const PROBES = 64;
/** Where the header of a tar's first file says what it is. */
const TAR_MAGIC = 257;

export class ManifestSource implements Source {
  private order: { epoch: number; indices: Int32Array } | undefined;
  private drawn = 0;
  private hashes: string[] | undefined;

  private constructor(
    readonly name: string,
    private readonly lines: Lines,
    private readonly options: OrderOptions,
  ) {}

  /** Throws `TRAINING_DATA`. */
  static async open(path: string, options: OrderOptions): Promise<ManifestSource> {
    if (isShardName(path)) throw isTar(path);
    const lines = await Lines.read(path);
    if (lines.bytes.subarray(TAR_MAGIC).toString("latin1", 0, 5) === "ustar") throw isTar(path);
    if (lines.length === 0) throw new TrainingDataError(`${path} has no records`);
    return new ManifestSource(path, lines, options);
  }

  get folder(): string {
    return dirname(this.name);
  }

  /** The index of the record that comes `position`-th. */
  private at(position: number): number {
    const count = this.lines.length;
    const epoch = Math.floor(position / count);
    if (this.order?.epoch !== epoch) {
      // All lines are in memory: unless less was asked for, all are shuffled.
      const { seed, place, shuffle = count } = this.options;
      const buffer = new ShuffleBuffer<number>(
        shuffle,
        new Random(seed, orderStream(place), epoch),
      );
      let read = 0;
      const indices = Int32Array.from({ length: count }, () => {
        while (read < count && !buffer.full) buffer.push(read++);
        return buffer.take() as number;
      });
      this.order = { epoch, indices };
    }
    return this.order.indices[position % count] as number;
  }

  private record(index: number): SourceRecord {
    const value = () => parseRecordText(this.lines.text(index));
    const at = (path: string) => resolve(this.folder, path);
    const counted = `${this.name}: record ${index}`;
    return {
      name: `${counted} (line ${this.lines.number(index)})`,
      counted,
      texts: () => parseRecord(value()),
      example: (random) => {
        const record = parseRecord(value());
        const { task, image, target } = record;
        return {
          task,
          ...pickSaid(record, random),
          image: at(image),
          target: target === undefined ? undefined : at(target),
        };
      },
      pictures: () => parsePictures(value()).map(at),
    };
  }

  async next(): Promise<SourceRecord> {
    return this.record(this.at(this.drawn++));
  }

  /** With what tells the manifest from another: a run's folder and its data may be moved. */
  private get identity() {
    const records = this.lines.length;
    const probes = Math.min(PROBES, records);
    this.hashes ??= Array.from({ length: probes }, (_, i) => {
      const line = this.lines.text(Math.floor((i * records) / probes));
      return createHash("sha256").update(line.trim()).digest("hex").slice(0, 8);
    });
    return { manifest: basename(this.name), records, hashes: this.hashes };
  }

  position() {
    return { ...this.identity, drawn: this.drawn };
  }

  async restore(position: unknown): Promise<boolean> {
    const { manifest, records, hashes } = this.identity;
    // Checkpoints of earlier versions say only what was drawn, or nothing of what the lines say.
    const at = { manifest, records, hashes, ...(position as object | undefined) } as Record<
      string,
      unknown
    >;
    const fits =
      Number.isSafeInteger(at.drawn) &&
      (at.drawn as number) >= 0 &&
      at.manifest === manifest &&
      at.records === records &&
      mostlyAlike(at.hashes, hashes);
    if (fits) this.drawn = at.drawn as number;
    return fits;
  }

  async *all(): AsyncIterableIterator<SourceRecord> {
    for (let i = 0; i < this.lines.length; i++) {
      // They are there already: without a pause nothing else, such as Ctrl-C, would be heard before the last.
      if (i % 1000 === 999) await setImmediate();
      yield this.record(i);
    }
  }

  async close(): Promise<void> {}
}

const isTar = (path: string) =>
  new TrainingDataError(
    `expected JSON lines but ${path} is a tar file: a run takes it under "shards" of a source, the suite loss of eval takes manifests alone`,
  );
