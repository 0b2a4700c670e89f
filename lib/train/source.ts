/** Where the records of a run come from, and in which order. */
import type { Random } from "../philox.js";
import type { TemplateTask } from "../prompts.js";
import type { PictureFile } from "./pictures.js";
import type { Said, TrainingRecord } from "./record.js";

/** One example to learn: what is said, and its pictures. */
export interface TrainingExample extends Said {
  task: TemplateTask;
  image: PictureFile;
  /** The picture after an edit. */
  target?: PictureFile;
}

/** The task of a record, and what is said in it, of which an example has one. */
export type Texts = Pick<TrainingRecord, "task" | "said">;

export interface SourceRecord {
  /** The file and the record in it, for messages. */
  readonly name: string;
  /** What it is counted under if it is broken: the same wherever the data lie, whatever its line and its key. */
  readonly counted: string;
  /** All that may be said of its pictures. Throws `INVALID_RECORD`. */
  texts(): Texts;
  /** `random` picks among its texts. Throws `INVALID_RECORD`. */
  example(random: Random): TrainingExample;
  /** Its pictures, one or two, whatever its task. Throws `INVALID_RECORD`. */
  pictures(): PictureFile[];
}

/** Records without an end: each once an epoch, in an order that the run's seed decides. */
export interface Source {
  readonly name: string;
  /** The folder that prepared pictures lie in. */
  readonly folder: string;
  /** How many different records it has given, also before a stop. */
  readonly given: number;
  /**
   * What a record is counted under that a checkpoint, maybe of an earlier version, has as `kept`; undefined: it is
   * none of this source.
   */
  countedAs(kept: string): string | undefined;
  /** The next record. Calls follow one another. Throws `TRAINING_DATA`. */
  next(): Promise<SourceRecord>;
  /** What `restore` needs to go on from here, as JSON. */
  position(): unknown;
  /** Goes on from a position; false where it does not fit the source, which then begins anew. */
  restore(position: unknown): Promise<boolean>;
  /** Every record once, as they lie. */
  all(): AsyncIterableIterator<SourceRecord>;
  close(): Promise<void>;
}

/** What decides a source's order. */
export interface OrderOptions {
  /** Called with what is odd about the source, though no record is to blame. */
  onRemark?: (message: string) => void;
  /** The run's. */
  seed: bigint;
  /** That of the source among those of the run: it names the source's randomness. */
  place: number;
  /** The place of the first source of the same records: what is broken is counted once. Default: `place`. */
  sharing?: number;
  /** Records in the shuffle buffer; 1: as they lie. */
  shuffle?: number;
}

/** The streams of randomness of a source (`Random`), which no other part of a run draws from. */
export const orderStream = (place: number) => 100 + place;
export const shardStream = (place: number) => 500_000 + place;

/** How names begin that records are counted under. */
export const countedIn = ({ place, sharing = place }: OrderOptions) => `source ${sharing}: `;

/**
 * Whether data are those that a position is of, by marks of their parts: at least half are as they were, for some may
 * have been mended since.
 */
export function mostlyAlike(before: unknown, now: readonly (string | number)[]): boolean {
  if (!Array.isArray(before) || before.length !== now.length) return false;
  return 2 * now.filter((mark, i) => mark === before[i]).length >= now.length;
}
