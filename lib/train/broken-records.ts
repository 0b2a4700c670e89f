/** Records of training that cannot be used: each is told once, and too many stop the run. */
import { InvalidImageError, InvalidRecordError, TrainingDataError } from "../errors.js";

/** What the system says of a file that is not there or not to be read; all else is the machine's fault. */
const UNREADABLE = new Set([
  "ENOENT",
  "EACCES",
  "EPERM",
  "EISDIR",
  "ENOTDIR",
  "ENAMETOOLONG",
  "ELOOP",
]);

const isRecords = (error: unknown) =>
  error instanceof InvalidRecordError ||
  error instanceof InvalidImageError ||
  UNREADABLE.has((error as NodeJS.ErrnoException).code ?? "");

/** A record as it is counted: without its line, so that blank lines come and go, and as checkpoints have it. */
const countedAs = (name: string): string => name.replace(/ \(line \d+\)$/, "");

/** Records seen before a share of broken ones means anything. */
const LEAST_SEEN = 200;

/** How many records were seen up to a step, and how many different ones of them were broken. */
export interface RecordCounts {
  seen: number;
  broken: number;
}

/** The same with the names of those that were broken, as a checkpoint keeps it. */
export interface RecordsSeen {
  seen: number;
  broken: string[];
}

export class BrokenRecords {
  /** In the order in which they were found, also before a stop. */
  private readonly found = new Set<string>();
  /** Those that are not tried again. One found before a stop is: it may have been mended since. */
  private readonly skipped = new Set<string>();
  private readonly remarks = new Set<string>();
  private seen = 0;

  /**
   * @param share Broken records beyond this share of those seen stop the run.
   * @param onTold Is told, in words for whoever runs it, what was skipped and what was remarked.
   */
  constructor(
    private readonly share: number,
    private readonly onTold: (message: string) => void,
  ) {}

  get counts(): RecordCounts {
    return { seen: this.seen, broken: this.found.size };
  }

  /** What `restore` needs to go on from when `counts` were these. */
  stateAt({ seen, broken }: RecordCounts): RecordsSeen {
    return { seen, broken: [...this.found].slice(0, broken) };
  }

  /** Goes on counting after a stop. */
  restore({ seen, broken }: RecordsSeen): void {
    this.seen = seen;
    for (const name of broken) this.found.add(name);
  }

  /**
   * Does `work` with the record of a name, unless the record is known to be broken or `work` finds it so. Throws
   * `TRAINING_DATA` where there are too many of those, and what the record is not to blame for.
   */
  async attempt(name: string, work: () => Promise<void>): Promise<void> {
    if (this.skipped.has(countedAs(name))) return;
    this.seen++;
    try {
      await work();
    } catch (error) {
      this.note(name, error);
    }
  }

  /** Tells once what is odd about a source and no record's fault. */
  remark(message: string): void {
    if (this.remarks.has(message)) return;
    this.remarks.add(message);
    this.onTold(message);
  }

  private note(name: string, error: unknown): void {
    if (!isRecords(error)) throw error;
    const counted = countedAs(name);
    this.skipped.add(counted);
    if (this.found.has(counted)) return; // it came twice at once, or was told before a stop
    this.found.add(counted);
    this.onTold(`skipped ${name}: ${(error as Error).message}`);
    if (this.found.size > this.share * Math.max(this.seen, LEAST_SEEN))
      throw new TrainingDataError(
        `${this.found.size} of ${this.seen} records seen are broken, more than brokenShare (${this.share}) allows; the last: ${name}: ${(error as Error).message}`,
      );
  }
}
