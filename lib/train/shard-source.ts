/** Tar shards as a source: read in a row, shuffled in a buffer, taken up again where a run stopped. */
import { stat } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { z } from "zod";
import { InvalidRecordError, TrainingDataError } from "../errors.js";
import { Random } from "../philox.js";
import { listFiles } from "./file-patterns.js";
import type { PackedPicture } from "./pictures.js";
import { decodeText, parseRecord, parseRecordText, pickSaid } from "./record.js";
import { IMAGE_EXTENSIONS, readShard, type ShardSample } from "./shards.js";
import { ShuffleBuffer } from "./shuffle-buffer.js";
import {
  countedIn,
  mostlyAlike,
  type OrderOptions,
  orderStream,
  type Source,
  type SourceRecord,
  shardStream,
} from "./source.js";

/** What a text without a record is. */
export type PlainTask = "caption" | "generate";

export interface ShardOptions extends OrderOptions {
  task?: PlainTask;
}

/** Records in the shuffle buffer, where nothing else was asked for. */
const SHUFFLE = 1000;

const whole = z.number().int().min(0);
const positionSchema = z.object({
  /** Names of the files, which the numbers below count. */
  shards: z.array(z.string()),
  /** Bytes of each; positions of earlier versions have none. */
  sizes: z.array(whole).optional(),
  epoch: whole,
  /** Records drawn in this epoch. */
  drawn: whole,
  /** What is read next: a place in the epoch's order of shards, and a sample of that shard. */
  turn: whole,
  sample: whole,
  /** Shard and sample of the records that wait in the buffer. */
  buffer: z.array(z.tuple([whole, whole])),
  /** What an epoch has, once one is over. */
  records: whole.optional(),
  /** What the epoch's order of shards follows from; positions of earlier versions do not say. */
  order: z.object({ seed: z.string().regex(/^\d+$/), shuffled: z.boolean() }).optional(),
});
type Position = z.infer<typeof positionSchema>;
type Order = NonNullable<Position["order"]>;

/** A sample and the shard that it is of, by number. */
interface Placed {
  shard: number;
  /** The place of the shard in the epoch's order. */
  turn: number;
  sample: ShardSample;
}

export class ShardSource implements Source {
  private epoch = 0;
  /** What the order of this epoch follows from: of a resumed run the next may have another. */
  private rule!: Order;
  private drawn = 0;
  /** Records of the last whole epoch. */
  private records: number | undefined;
  /** What the stream reads next, as in a position. */
  private turn = 0;
  private sample = 0;
  private buffer!: ShuffleBuffer<Placed>;
  private stream!: AsyncGenerator<Placed, void>;

  private constructor(
    readonly name: string,
    private readonly paths: readonly string[],
    private readonly sizes: readonly number[],
    private readonly options: ShardOptions,
  ) {
    this.begin(0);
  }

  /** Throws `TRAINING_DATA`, also where one of the shards is not there. */
  static async open(patterns: readonly string[], options: ShardOptions): Promise<ShardSource> {
    const paths = await listFiles(patterns);
    const sizes: number[] = [];
    for (const path of paths) {
      const { size } = await stat(path).catch((cause) => {
        throw new TrainingDataError(`cannot read ${path}: ${(cause as Error).message}`, { cause });
      });
      sizes.push(size);
    }
    return new ShardSource(patterns.join(", "), paths, sizes, options);
  }

  get folder(): string {
    return dirname(this.paths[0] as string);
  }

  /** Not by its key: that of an archive that is damaged at its beginning is known once it is mended. */
  private counted(shard: number, sample: number): string {
    return `${countedIn(this.options)}shard ${shard}: sample ${sample}`;
  }

  countedAs(kept: string): string | undefined {
    if (kept.startsWith(`${countedIn(this.options)}shard `)) return kept;
    // Earlier versions named the file and the key.
    const [, path, sample] = /^(.*): sample (\d+) \(.*\)$/s.exec(kept) ?? [];
    const shard = path === undefined ? -1 : this.paths.indexOf(path);
    return shard < 0 ? undefined : this.counted(shard, Number(sample));
  }

  private get shuffle(): number {
    return this.options.shuffle ?? SHUFFLE;
  }

  /** Numbers of the shards as an epoch reads them: in their order where nothing is shuffled. */
  private order(epoch: number, { seed, shuffled }: Order): number[] {
    const numbers = [...this.paths.keys()];
    if (!shuffled) return numbers;
    const all = new ShuffleBuffer<number>(
      numbers.length,
      new Random(BigInt(seed), shardStream(this.options.place), epoch),
    );
    for (const n of numbers) all.push(n);
    return numbers.map(() => all.take() as number);
  }

  private begin(epoch: number, at: Partial<Position> = {}): void {
    const { drawn = 0, turn = 0, sample = 0 } = at;
    const rule = at.order ?? { seed: String(this.options.seed), shuffled: this.shuffle !== 1 };
    const random = new Random(this.options.seed, orderStream(this.options.place), epoch);
    for (let i = 0; i < drawn; i++) random.next();
    this.buffer = new ShuffleBuffer(this.shuffle, random);
    Object.assign(this, { epoch, rule, drawn, turn, sample });
    this.stream = this.read(this.order(epoch, rule), turn, sample);
  }

  private async *read(order: number[], turn: number, sample: number): AsyncGenerator<Placed, void> {
    for (let t = turn; t < order.length; t++) {
      const shard = order[t] as number;
      for await (const one of this.samples(shard))
        if (t > turn || one.index >= sample) yield { shard, turn: t, sample: one };
    }
  }

  private async *samples(shard: number): AsyncGenerator<ShardSample, void> {
    const path = this.paths[shard] as string;
    try {
      yield* readShard(path, this.options.onRemark);
    } catch (cause) {
      throw new TrainingDataError(`cannot read ${path}: ${(cause as Error).message}`, { cause });
    }
  }

  async next(): Promise<SourceRecord> {
    for (;;) {
      while (!this.buffer.full) {
        const { value, done } = await this.stream.next();
        if (done) break;
        this.turn = value.turn;
        this.sample = value.sample.index + 1;
        this.buffer.push(value);
      }
      const taken = this.buffer.take();
      if (taken) {
        this.drawn++;
        return this.record(taken.shard, taken.sample);
      }
      if (this.drawn === 0) throw new TrainingDataError(`${this.name} has no records`);
      this.records = this.drawn;
      this.begin(this.epoch + 1);
    }
  }

  get given(): number {
    // Positions of earlier versions do not say how many there were.
    return this.records ?? (this.epoch === 0 ? this.drawn : Number.POSITIVE_INFINITY);
  }

  position(): Position {
    const { epoch, rule, drawn, turn, sample, records } = this;
    return {
      shards: this.paths.map((path) => basename(path)),
      sizes: [...this.sizes],
      epoch,
      drawn,
      turn,
      sample,
      buffer: this.buffer.items.map((item) => [item.shard, item.sample.index]),
      order: rule,
      ...(records !== undefined && { records }),
    };
  }

  /** Reads again what waited in the buffer, as far as it is still there. Throws `TRAINING_DATA`. */
  async restore(position: unknown): Promise<boolean> {
    const { data } = positionSchema.safeParse(position);
    const names = this.paths.map((path) => basename(path));
    if (!data || data.shards.join("\n") !== names.join("\n")) return false;
    if (data.sizes && !mostlyAlike(data.sizes, this.sizes)) return false;
    const found = new Map<string, Placed>();
    for (const shard of new Set(data.buffer.map(([number]) => number))) {
      const wanted = new Set(data.buffer.filter(([n]) => n === shard).map(([, sample]) => sample));
      for await (const sample of this.samples(shard)) {
        if (wanted.delete(sample.index))
          found.set(`${shard} ${sample.index}`, { shard, turn: 0, sample });
        if (wanted.size === 0) break;
      }
      if (wanted.size > 0)
        this.options.onRemark?.(
          `${this.paths[shard]} has changed since the run stopped: ${wanted.size} of its samples still to come are ` +
            `missing (${[...wanted][0]}), and skipped`,
        );
    }
    await this.close();
    this.records = data.records;
    this.begin(data.epoch, data);
    for (const [shard, sample] of data.buffer) {
      const waits = found.get(`${shard} ${sample}`);
      if (waits) this.buffer.push(waits);
    }
    return true;
  }

  async *all(): AsyncIterableIterator<SourceRecord> {
    for (const shard of this.paths.keys())
      for await (const sample of this.samples(shard)) yield this.record(shard, sample);
  }

  async close(): Promise<void> {
    await this.stream.return();
  }

  private record(shard: number, sample: ShardSample): SourceRecord {
    const path = this.paths[shard] as string;
    const plain = this.options.task ?? "caption";
    return {
      // A key may occur twice, where shards were joined.
      name: `${path}: sample ${sample.index} (${sample.key})`,
      counted: this.counted(shard, sample.index),
      texts: () => recordOf(path, sample, plain).record,
      example: (random) => {
        const { record, image, target } = recordOf(path, sample, plain);
        return { task: record.task, ...pickSaid(record, random), image, target };
      },
      pictures: () => {
        const { image, target } = picturesOf(path, sample);
        return target ? [image, target] : [image];
      },
    };
  }
}

/** What a message of a missing file adds where there is a link in its place. */
const linked = ({ links }: ShardSample): string =>
  links.length === 0
    ? ""
    : `; its ${links.join(" and ")} ${links.length === 1 ? "is a link, which has" : "are links, which have"} nothing ` +
      "in an archive: tar -h (--hard-dereference for hard links) stores the files themselves";

function picturesOf(path: string, sample: ShardSample) {
  const { index, files, key, modified, fault } = sample;
  if (fault !== undefined) throw new InvalidRecordError(fault);
  const find = (prefix: string): PackedPicture | undefined => {
    const extension = IMAGE_EXTENSIONS.map((e) => `${prefix}${e}`).find((e) => files.has(e));
    if (extension === undefined) return undefined;
    const bytes = files.get(extension) as Buffer;
    return { path: `${path}/${index}/${key}.${extension}`, bytes, modified };
  };
  const image = find("");
  if (!image)
    throw new InvalidRecordError(
      `expected an image of this sample, such as ${key}.png${linked(sample)}`,
    );
  return { image, target: find("target.") };
}

/** A sample's record, and its pictures as far as the record's task has them. */
function recordOf(path: string, sample: ShardSample, plain: PlainTask) {
  const { image, target } = picturesOf(path, sample);
  const value = textsOf(sample, plain);
  if (!target && "task" in value && value.task === "edit")
    throw new InvalidRecordError(
      `expected the edited image of this sample, such as ${sample.key}.target.png${linked(sample)}`,
    );
  const record = parseRecord({ ...value, image: image.path, target: target?.path });
  return { record, image, target: record.target === undefined ? undefined : target };
}

/** The record of a sample, without its pictures: its JSON where that has a task, else its plain text. */
function textsOf(sample: ShardSample, plain: PlainTask): object {
  const { key, files } = sample;
  const json = files.get("json");
  const value = json && parseRecordText(json);
  if (typeof value === "object" && value !== null && "task" in value) return value;
  const txt = files.get("txt");
  if (txt === undefined)
    throw new InvalidRecordError(
      `expected ${key}.json with a task, or ${key}.txt${linked(sample)}`,
    );
  const text = decodeText(txt).trim();
  return plain === "caption" ? { task: plain, text } : { task: plain, prompt: text };
}
