/** The examples of a step as the native trainer takes them. */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import type { NativeTrainingSequence } from "../native.js";
import { Random } from "../philox.js";
import { allSettled } from "../settled.js";
import { BrokenRecords } from "./broken-records.js";
import type { UnifiedRunConfig } from "./config.js";
import { dealt, Mixture } from "./mixture.js";
import { cacheFolder, Pictures, pathOf } from "./pictures.js";
import { expectLearner, Sequences } from "./sequences.js";
import type { SourceRecord } from "./source.js";
import type { StepData } from "./subject.js";

/** Records whose pictures are prepared at once. */
const TOGETHER = 16;

export class Batches {
  private constructor(
    private readonly sequences: Sequences,
    private readonly config: UnifiedRunConfig,
    readonly mixture: Mixture,
    /** Of each source. */
    private readonly pictures: readonly Pictures[],
  ) {}

  /** `copy`: as `Pictures.open` has it. */
  static async open(
    checkpoint: Checkpoint,
    config: UnifiedRunConfig,
    onNote: (message: string) => void,
    copy?: () => Promise<string | undefined>,
  ): Promise<Batches> {
    expectLearner(checkpoint);
    const mixture = await Mixture.open(config, new BrokenRecords(config.brokenShare, onNote));
    // Sources of one folder share their pictures, and all do where they are kept in one.
    const caches = new Map<string, Pictures>();
    const cacheOf = (folder: string) => cacheFolder(folder, config.cache);
    try {
      for (const { folder } of mixture.sources)
        if (!caches.has(cacheOf(folder)))
          caches.set(cacheOf(folder), await Pictures.open(folder, checkpoint, { ...config, copy }));
    } catch (error) {
      await allSettled([mixture, ...caches.values()].map((part) => part.close())).catch(() => {});
      throw error;
    }
    const pictures = mixture.sources.map(({ folder }) => caches.get(cacheOf(folder)) as Pictures);
    return new Batches(new Sequences(checkpoint, config), config, mixture, pictures);
  }

  /** Step `step`, from 1, as `accumulation` batches. */
  async of(step: number): Promise<StepData<NativeTrainingSequence>> {
    const make = async (record: SourceRecord, random: Random, place: number, suspect: boolean) => {
      if (suspect) this.sequences.expectAll(record.texts());
      return this.sequences.of(record.example(random), this.pictures[place] as Pictures, random);
    };
    const { examples, ...after } = await this.mixture.draw(step, make);
    return { batches: dealt(examples, this.config.accumulation), ...after };
  }

  /** Computes what pictures lack of latents, before training; gives their number. */
  async prepare(onPicture: () => void, signal?: AbortSignal): Promise<number> {
    const { broken, sources } = this.mixture;
    // Each comes once here, and the sources do not count what they list.
    broken.among(() => broken.counts.seen);
    const done = new Set<string>();
    const random = new Random(0n, 0, 0);
    const prepare = async (record: SourceRecord, pictures: Pictures) => {
      const { image, target } = record.example(random);
      for (const picture of target === undefined ? [image] : [image, target]) {
        await pictures.prepare(picture);
        const path = pathOf(picture);
        if (!done.has(path)) onPicture();
        done.add(path);
      }
    };
    for (const [place, source] of sources.entries()) {
      const records = source.all();
      const work = async () => {
        for await (const record of records) {
          signal?.throwIfAborted();
          await broken.attempt(record, () => prepare(record, this.pictures[place] as Pictures));
        }
      };
      const workers = Array.from({ length: TOGETHER }, work);
      // Nobody goes on with a picture behind the end.
      await allSettled(workers);
    }
    return done.size;
  }

  async close(): Promise<void> {
    await allSettled([this.mixture, ...new Set(this.pictures)].map((part) => part.close()));
  }
}
