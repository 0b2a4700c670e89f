/** A manifest as a source: JSON lines beside their images. */
import { createHash } from "node:crypto";
import { basename, dirname, resolve } from "node:path";
import { setImmediate } from "node:timers/promises";
import { z } from "zod";
import { TrainingDataError } from "../errors.js";
import { Random } from "../philox.js";
import { Lines } from "./lines.js";
import { parsePictures, parseRecord, parseRecordText, pickSaid } from "./record.js";
import { isShardName } from "./shards.js";
import { ShuffleBuffer } from "./shuffle-buffer.js";
import {
  countedIn,
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

/** What the order of an epoch follows from, in a position. */
const ruleSchema = z.object({
  seed: z.string().regex(/^\d+$/),
  shuffle: z.number().int().min(1),
});
type Rule = z.infer<typeof ruleSchema>;

export class ManifestSource implements Source {
  private order: { epoch: number; indices: Int32Array } | undefined;
  /** Of an epoch that was begun before a stop, maybe with other settings. */
  private begun: { epoch: number; rule: Rule } | undefined;
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

  get given(): number {
    return Math.min(this.drawn, this.lines.length);
  }

  private counted(index: number | string): string {
    return `${countedIn(this.options)}record ${index}`;
  }

  countedAs(kept: string): string | undefined {
    if (kept.startsWith(this.counted(""))) return kept;
    // Earlier versions named the file.
    const start = `${this.name}: record `;
    const index = kept.startsWith(start) ? /^\d+/.exec(kept.slice(start.length))?.[0] : undefined;
    return index === undefined ? undefined : this.counted(index);
  }

  private rule(epoch: number): Rule {
    if (this.begun?.epoch === epoch) return this.begun.rule;
    // All lines are in memory: unless less was asked for, all are shuffled.
    const { seed, shuffle = this.lines.length } = this.options;
    return { seed: String(seed), shuffle };
  }

  private get epoch(): number {
    return Math.floor(this.drawn / this.lines.length);
  }

  /** The index of the record that comes `position`-th. */
  private at(position: number): number {
    const count = this.lines.length;
    const epoch = Math.floor(position / count);
    if (this.order?.epoch !== epoch) {
      const { seed, shuffle } = this.rule(epoch);
      const buffer = new ShuffleBuffer<number>(
        shuffle,
        new Random(BigInt(seed), orderStream(this.options.place), epoch),
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
    const value = () => parseRecordText(this.lines.at(index));
    const at = (path: string) => resolve(this.folder, path);
    return {
      name: `${this.name}: record ${index} (line ${this.lines.number(index)})`,
      counted: this.counted(index),
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
      const line = this.lines.at(Math.floor((i * records) / probes)).toString();
      return createHash("sha256").update(line.trim()).digest("hex").slice(0, 8);
    });
    return { manifest: basename(this.name), records, hashes: this.hashes };
  }

  position() {
    // An epoch that was not begun has the order of whoever begins it.
    const begun = this.drawn % this.lines.length > 0;
    return { ...this.identity, drawn: this.drawn, ...(begun && { order: this.rule(this.epoch) }) };
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
    if (!fits) return false;
    this.drawn = at.drawn as number;
    // Positions of earlier versions do not say.
    const { data: rule } = ruleSchema.safeParse(at.order);
    this.begun = rule && { epoch: this.epoch, rule };
    this.order = undefined;
    return true;
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
