/** Records of training that cannot be used: each is told once, and too many stop the run. */
import { InvalidImageError, InvalidRecordError, TrainingDataError } from "../errors.js";
import { machinesFault } from "../machines-fault.js";
import type { SourceRecord } from "./source.js";

const isRecords = (error: unknown) =>
  error instanceof InvalidRecordError || error instanceof InvalidImageError;

/** Records seen before a share of broken ones means anything. */
const LEAST_SEEN = 200;

/** What tells a record from others. */
type Named = Pick<SourceRecord, "name" | "counted">;

/** How many records were seen up to a step, and how many different ones of them were broken. */
export interface RecordCounts {
  seen: number;
  broken: number;
  /** Records that were found broken, or mended, up to then. */
  changes: number;
}

/** The same with the names of those that were broken, as a checkpoint keeps it. */
export interface RecordsSeen {
  seen: number;
  broken: string[];
}

export class BrokenRecords {
  /** By the names that are counted, also those of before a stop. */
  private readonly found = new Set<string>();
  /** How `found` came about: a step's data are read before the step before is done, and saved. */
  private readonly changes: { name: string; broken: boolean }[] = [];
  /** Those found before a stop that were not tried since: they may have been mended. */
  private readonly suspects = new Set<string>();
  /** Those that are not tried again. */
  private readonly skipped = new Set<string>();
  /** What was told. */
  private readonly told = new Set<string>();
  /** Records that were read, each as often as it was. */
  private seen = 0;
  private different = (): number => this.seen;

  /**
   * @param share Broken records beyond this share of those seen, each counted once, stop the run.
   * @param onTold Is told, in words for whoever runs it, what was skipped and what was remarked.
   */
  constructor(
    private readonly share: number,
    private readonly onTold: (message: string) => void,
  ) {}

  /** How many different records were seen: those of later epochs are the same again. */
  among(different: () => number): void {
    this.different = different;
  }

  /** For what is read beside the steps: what is broken there is skipped and told as well, but neither counts. */
  uncounted(): BrokenRecords {
    const beside = new BrokenRecords(Number.POSITIVE_INFINITY, (message) => this.remark(message));
    for (const name of this.found) beside.found.add(name);
    return beside;
  }

  get counts(): RecordCounts {
    return { seen: this.seen, broken: this.found.size, changes: this.changes.length };
  }

  /** What `restore` needs to go on from when `counts` were these. */
  stateAt({ seen, changes }: RecordCounts): RecordsSeen {
    const found = new Set<string>();
    for (const { name, broken } of this.changes.slice(0, changes))
      if (broken) found.add(name);
      else found.delete(name);
    return { seen, broken: [...found] };
  }

  /** Goes on counting after a stop. `countedAs`: the name that a record has now, if it is still there. */
  restore(
    { seen, broken }: RecordsSeen,
    countedAs: (kept: string) => string | undefined = (kept) => kept,
  ): void {
    this.seen = seen;
    for (const kept of broken) {
      const name = countedAs(kept);
      if (name === undefined) continue;
      this.change(name, true);
      this.suspects.add(name);
    }
  }

  /**
   * Does `work` with a record, unless it is known to be broken or `work` finds it so. `suspect`: it was found broken
   * before a stop. Then all of it must be usable, also what is not drawn this time: a run that had not stopped would
   * skip it whatever is drawn. Throws `TRAINING_DATA` where there are too many of those or the machine could not read
   * a picture, and what else the record is not to blame for.
   */
  async attempt(record: Named, work: (suspect: boolean) => Promise<void>): Promise<void> {
    const { counted } = record;
    if (this.skipped.has(counted)) return;
    this.seen++;
    try {
      await work(this.suspects.has(counted));
    } catch (error) {
      this.note(record, error);
      return;
    }
    if (this.suspects.delete(counted)) this.change(counted, false); // it was mended
  }

  private change(name: string, broken: boolean): void {
    if (broken) this.found.add(name);
    else this.found.delete(name);
    this.changes.push({ name, broken });
  }

  /** Tells once, such as what is odd about a source and no record's fault. */
  remark(message: string): void {
    if (this.told.has(message)) return;
    this.told.add(message);
    this.onTold(message);
  }

  private note({ name, counted }: Named, error: unknown): void {
    const fault = machinesFault(error);
    if (fault)
      throw new TrainingDataError(`${name}: ${(error as Error).message}`, { cause: fault });
    if (!isRecords(error)) throw error;
    this.skipped.add(counted);
    this.suspects.delete(counted);
    if (this.found.has(counted)) return; // it came twice at once, or was told before a stop
    this.change(counted, true);
    this.remark(`skipped ${name}: ${(error as Error).message}`);
    const of = Math.min(this.seen, this.different());
    if (this.found.size > this.share * Math.max(of, LEAST_SEEN))
      throw new TrainingDataError(
        `${this.found.size} of ${of} records seen are broken, more than brokenShare (${this.share}) allows; the last: ${name}: ${(error as Error).message}`,
      );
  }
}
