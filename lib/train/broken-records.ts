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
   * Does `work` with the record of a name, unless the record is known to be broken or `work` finds it so. Throws
   * `TRAINING_DATA` where there are too many of those, and what the record is not to blame for.
   */
  async attempt(name: string, work: () => Promise<void>): Promise<void> {
    if (this.names.has(name)) return;
    this.seen++;
    try {
      await work();
    } catch (error) {
      this.note(name, error);
    }
  }

  private note(name: string, error: unknown): void {
    if (!isRecords(error)) throw error;
    if (this.names.has(name)) return; // it came twice at once
    this.names.add(name);
    this.onBroken(`${name}: ${(error as Error).message}`);
    if (this.names.size > this.share * Math.max(this.seen, LEAST_SEEN))
      throw new TrainingDataError(
        `${this.names.size} of ${this.seen} records seen are broken, more than brokenShare (${this.share}) allows; the last: ${name}: ${(error as Error).message}`,
      );
  }
}
