/** Records of training that cannot be used: each is told once and replaced by the next, too many stop the run. */
import { TrainingDataError, UniFluidError } from "../errors.js";
import type { Source } from "./source.js";

/** Records that may be tried in the place of a broken one. */
const SUBSTITUTES = 100;
/** Records seen before a share of broken ones means anything. */
const LEAST_SEEN = 200;

export class BrokenRecords {
  private readonly names = new Set<string>();
  private seen = 0;

  /** @param share Broken records beyond this share of those seen stop the run. */
  constructor(
    private readonly share: number,
    private readonly onBroken: (message: string) => void,
  ) {}

  /**
   * What `make` makes of the record that comes `position`-th in a source, or of the next that can be used.
   * Throws `TRAINING_DATA` where there are too many that cannot.
   */
  async replace<T>(
    source: Source,
    position: number,
    make: (index: number) => Promise<T>,
  ): Promise<T> {
    for (let attempt = 0; attempt < Math.min(SUBSTITUTES, source.length); attempt++) {
      const index = source.at(position + attempt);
      const name = `${source.path}: record ${index}`;
      if (this.names.has(name)) continue;
      if (attempt === 0) this.count();
      try {
        return await make(index);
      } catch (error) {
        this.skip(name, error);
      }
    }
    throw new TrainingDataError(`${source.path}: too many broken records one after another`);
  }

  /** Counts a record that is tried. */
  count(): void {
    this.seen++;
  }

  /** Notes a record that failed with `error`, which is thrown again unless the record is to blame. */
  skip(name: string, error: unknown): void {
    const known =
      error instanceof UniFluidError || typeof (error as { errno?: unknown }).errno === "number";
    if (!known) throw error;
    this.names.add(name);
    this.onBroken(`${name}: ${(error as Error).message}`);
    if (this.names.size > this.share * Math.max(this.seen, LEAST_SEEN))
      throw new TrainingDataError(
        `${this.names.size} of ${this.seen} records seen are broken, more than brokenShare (${this.share}) allows; the last: ${name}: ${(error as Error).message}`,
      );
  }
}
