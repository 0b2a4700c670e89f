/** A manifest as a source: JSON lines beside their images. */
import { readFile } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { TrainingDataError } from "../errors.js";
import { Random } from "../philox.js";
import { parsePictures, parseRecord, parseRecordText, pickSaid } from "./record.js";
import { ShuffleBuffer } from "./shuffle-buffer.js";
import { type OrderOptions, orderStream, type Source, type SourceRecord } from "./source.js";

export class ManifestSource implements Source {
  private order: { epoch: number; indices: Int32Array } | undefined;
  private drawn = 0;

  private constructor(
    readonly name: string,
    private readonly lines: readonly string[],
    private readonly options: OrderOptions,
  ) {}

  /** Throws `TRAINING_DATA`. */
  static async open(path: string, options: OrderOptions): Promise<ManifestSource> {
    let content: string;
    try {
      content = await readFile(path, "utf8");
    } catch (cause) {
      throw new TrainingDataError(`cannot read ${path}: ${(cause as Error).message}`, { cause });
    }
    const lines = content.split("\n").filter((line) => line.trim() !== "");
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
    const value = () => parseRecordText(this.lines[index] as string);
    const at = (path: string) => resolve(this.folder, path);
    return {
      name: `${this.name}: record ${index}`,
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
    return { manifest: basename(this.name), records: this.lines.length };
  }

  position() {
    return { ...this.identity, drawn: this.drawn };
  }

  async restore(position: unknown): Promise<boolean> {
    const { manifest, records } = this.identity;
    // Checkpoints of earlier versions say only what was drawn.
    const at = { manifest, records, ...(position as object | undefined) } as Record<
      string,
      unknown
    >;
    const fits =
      Number.isSafeInteger(at.drawn) &&
      (at.drawn as number) >= 0 &&
      at.manifest === manifest &&
      at.records === records;
    if (fits) this.drawn = at.drawn as number;
    return fits;
  }

  async *all(): AsyncIterableIterator<SourceRecord> {
    for (let i = 0; i < this.lines.length; i++) yield this.record(i);
  }

  async close(): Promise<void> {}
}
