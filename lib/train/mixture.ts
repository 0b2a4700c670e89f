/** The sources of a run, and what each step takes from them. */
import { TrainingDataError } from "../errors.js";
import { Random } from "../philox.js";
import { allSettled } from "../settled.js";
import type { BrokenRecords, RecordCounts } from "./broken-records.js";
import type { RunConfig, SourceConfig } from "./config.js";
import { ManifestSource } from "./manifest-source.js";
import { ShardSource } from "./shard-source.js";
import type { OrderOptions, Source, SourceRecord } from "./source.js";

/** Records that may be tried in the place of a broken one, one after another. */
export const SUBSTITUTES = 100;
/** Streams of randomness above those of the sources' orders. */
const PICK_STREAM = 1_000_000;

/** What a step takes. */
export interface Drawn<T> {
  examples: T[];
  /** Where each source is after the step, as JSON. */
  positions: unknown[];
  /** Records seen in the run up to this step, and the broken ones of them. */
  records: RecordCounts;
}

/** `options` but for those that the source's own settings have. Throws `TRAINING_DATA`. */
export function openSource(
  { manifest, shards, shuffle, task }: Omit<SourceConfig, "examples">,
  options: Omit<OrderOptions, "shuffle">,
): Promise<Source> {
  return shards
    ? ShardSource.open(shards, { ...options, shuffle, task })
    : ManifestSource.open(manifest!, { ...options, shuffle });
}

/** Whose records are the same, and say the same: a plain text is a caption to one task and a prompt to the other. */
const recordsOf = ({ manifest, shards, task = "caption" }: SourceConfig): string =>
  manifest ?? [task, ...shards!].join("\n");

/** The place of the first source that has the records of the one at `place`. */
const sharingOf = ({ sources }: RunConfig, place: number): number =>
  sources.findIndex((other) => recordsOf(other) === recordsOf(sources[place] as SourceConfig));

export class Mixture {
  /** Sources that a resumed run begins anew. */
  private readonly anew = new Set<Source>();

  private constructor(
    private readonly config: RunConfig,
    readonly sources: readonly Source[],
    readonly broken: BrokenRecords,
  ) {}

  /** At the beginning of each source. Throws `TRAINING_DATA`. */
  static async open(config: RunConfig, broken: BrokenRecords): Promise<Mixture> {
    const sources: Source[] = [];
    const seed = BigInt(config.seed);
    const onRemark = (message: string) => broken.remark(message);
    for (const [place, settings] of config.sources.entries()) {
      const sharing = sharingOf(config, place);
      sources.push(await openSource(settings, { seed, place, sharing, onRemark }));
    }
    const mixture = new Mixture(config, sources, broken);
    broken.among(() => mixture.given);
    return mixture;
  }

  /** How many different records the sources have given. */
  private get given(): number {
    const counts: number[] = this.sources.map(() => 0);
    for (const [place, { given }] of this.sources.entries()) {
      const sharing = sharingOf(this.config, place);
      counts[sharing] = Math.max(given, counts[sharing] as number);
    }
    return counts.reduce((sum, count) => sum + count, 0);
  }

  /** As a source has it, but for those that begin anew. */
  countedAs(kept: string): string | undefined {
    for (const source of this.sources) {
      const counted = this.anew.has(source) ? undefined : source.countedAs(kept);
      if (counted !== undefined) return counted;
    }
    return undefined;
  }

  /**
   * The examples of step `step`, from 1: what `make` makes of records, source by source; `suspect` is as
   * `BrokenRecords.attempt` has it. They follow from the seed, the step and the positions, whatever is ready first: a
   * broken record is replaced by what comes after all that its source gave. Calls follow one another, as the steps do.
   * Throws `TRAINING_DATA`.
   */
  async draw<T>(
    step: number,
    make: (record: SourceRecord, random: Random, place: number, suspect: boolean) => Promise<T>,
  ): Promise<Drawn<T>> {
    let first = 0;
    const parts: Promise<T[]>[] = [];
    for (const [place, { examples }] of this.config.sources.entries()) {
      const at = PICK_STREAM + first;
      first += examples;
      parts.push(
        this.take(place, (record, k, suspect) =>
          // Each attempt draws from the beginning.
          make(record, new Random(BigInt(this.config.seed), at + k, step), place, suspect),
        ),
      );
    }
    const examples = (await Promise.all(parts)).flat();
    const positions = this.sources.map((source) => source.position());
    return { examples, positions, records: this.broken.counts };
  }

  private async take<T>(
    place: number,
    make: (record: SourceRecord, k: number, suspect: boolean) => Promise<T>,
  ): Promise<T[]> {
    const source = this.sources[place] as Source;
    const count = (this.config.sources[place] as SourceConfig).examples;
    const made = new Map<number, T>();
    for (let attempt = 0; attempt <= SUBSTITUTES; attempt++) {
      const missing = Array.from({ length: count }, (_, k) => k).filter((k) => !made.has(k));
      if (missing.length === 0) return Array.from({ length: count }, (_, k) => made.get(k) as T);
      const records: SourceRecord[] = [];
      for (const _ of missing) records.push(await source.next());
      await Promise.all(
        missing.map(async (k, i) => {
          const record = records[i] as SourceRecord;
          await this.broken.attempt(record, async (suspect) => {
            made.set(k, await make(record, k, suspect));
          });
        }),
      );
    }
    throw new TrainingDataError(`${source.name}: too many broken records one after another`);
  }

  /**
   * Goes on behind step `step`. `positions`: those of that step; a checkpoint without them is of a version whose
   * positions followed from the step. Calls `onNew` with each source that begins anew instead.
   */
  async restore(
    step: number,
    positions: unknown[] | undefined,
    onNew: (name: string) => void,
  ): Promise<void> {
    for (const [i, source] of this.sources.entries()) {
      const { examples } = this.config.sources[i] as SourceConfig;
      const position = positions ? positions[i] : { drawn: step * examples };
      if (await source.restore(position)) continue;
      this.anew.add(source);
      onNew(source.name);
    }
  }

  async close(): Promise<void> {
    await allSettled(this.sources.map((source) => source.close()));
  }
}

/** Examples of a step as `parts` batches: dealt out in turn, so that each has some of every source. */
export function dealt<T>(examples: readonly T[], parts: number): T[][] {
  const count = Math.min(parts, examples.length);
  return Array.from({ length: count }, (_, p) => examples.filter((_, i) => i % count === p));
}

/** Examples of the largest batch that a run computes at a time. */
export function largestBatch({ sources, accumulation }: RunConfig): number {
  return Math.ceil(sources.reduce((sum, { examples }) => sum + examples, 0) / accumulation);
}
