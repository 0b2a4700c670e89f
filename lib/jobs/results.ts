/**
 * The folder that a batch writes: pictures, and `results.jsonl` with a line for each record. It is its own
 * memory: a run that was killed begins again from what the folder holds.
 */

import { type FileHandle, open, readdir, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { makeFolder } from "../files.js";
import {
  freeLock,
  isAlive,
  type LockOwner,
  lockedError,
  lockOwner,
  takeLock,
  thisOwner,
} from "../folder-lock.js";
import { jsonLine } from "../json-line.js";
import { readJsonLines } from "../json-lines.js";
import { halfWritten } from "./names.js";

/** Which records are whose: record `i` belongs to shard `i mod count`. */
export interface Shard {
  /** From 0. */
  index: number;
  count: number;
}

/** A line of `results.jsonl`. */
export interface ResultLine {
  index: number;
  /** Of the job with its options: a later run knows by it whether the file of jobs has changed. */
  fingerprint: number;
  error?: { code: string; message: string };
  [field: string]: unknown;
}

/** What became of records, in five bytes each: a million take five megabytes. */
export class DoneIndex {
  private fingerprints = new Uint32Array(1024);
  private failed = new Uint8Array(1024);

  set(index: number, fingerprint: number, failed: boolean): void {
    if (index >= this.fingerprints.length) {
      const length = Math.max(index + 1, this.fingerprints.length * 2);
      const [fingerprints, flags] = [new Uint32Array(length), new Uint8Array(length)];
      fingerprints.set(this.fingerprints);
      flags.set(this.failed);
      [this.fingerprints, this.failed] = [fingerprints, flags];
    }
    this.fingerprints[index] = fingerprint;
    this.failed[index] = failed ? 1 : 0;
  }

  /** The fingerprint of what was done; 0: nothing. */
  get(index: number): { fingerprint: number; failed: boolean } {
    return {
      fingerprint: this.fingerprints[index] ?? 0,
      failed: this.failed[index] === 1,
    };
  }
}

/** A number beyond it is no record's, but a damaged line's, and would take memory for all below it. */
const MOST_RECORDS = 2 ** 28;

const RESULTS = /^results(-\d+-of-\d+)?\.jsonl$/;

const resultsName = ({ index, count }: Shard) =>
  count === 1 ? "results.jsonl" : `results-${index + 1}-of-${count}.jsonl`;

/** An open results folder. One process at a time has a shard of it. */
export class ResultsFolder {
  private constructor(
    readonly path: string,
    readonly done: DoneIndex,
    /** Where the lines go. */
    readonly results: string,
    private readonly file: FileHandle,
    private readonly lock: string,
  ) {}

  /**
   * Opens or makes a folder, and reads what was done in it. Throws `OUTPUT_LOCKED` while another process works
   * on some of the same records, and what the file system says.
   */
  static async open(path: string, shard: Shard): Promise<ResultsFolder> {
    await makeFolder(path);
    const lock = await lockShard(path, shard);
    try {
      const done = new DoneIndex();
      const half = halfWritten();
      for (const name of await readdir(path)) {
        if (RESULTS.test(name)) await readResults(join(path, name), done);
        const [, index] = half.exec(name) ?? [];
        if (index !== undefined && Number(index) % shard.count === shard.index) {
          await rm(join(path, name), { force: true });
        }
      }
      const results = join(path, resultsName(shard));
      const file = await open(results, "a+");
      try {
        await repairEnd(file);
      } catch (error) {
        await file.close().catch(() => {});
        throw error;
      }
      return new ResultsFolder(path, done, results, file, lock);
    } catch (error) {
      await freeLock(lock);
      throw error;
    }
  }

  /** Adds a line. The file is open for appending: a line is there wholly, or is cut off at the next start. */
  async write(line: ResultLine): Promise<void> {
    await this.file.appendFile(jsonLine(line));
  }

  async close(): Promise<void> {
    try {
      await this.file.close();
    } finally {
      await freeLock(this.lock);
    }
  }
}

/** A line without an end is no result: `repairEnd` cuts it off. */
async function readResults(path: string, done: DoneIndex): Promise<void> {
  await readJsonLines(path, (line) => {
    const { index, fingerprint, error } = line as ResultLine;
    const numbers = Number.isSafeInteger(index) && Number.isSafeInteger(fingerprint);
    if (!numbers || index < 0 || index >= MOST_RECORDS) return;
    const failed = error !== undefined;
    // The files come in the order of their names: an older one's failure may follow a success.
    const before = done.get(index);
    if (failed && before.fingerprint !== 0 && !before.failed) return;
    done.set(index, fingerprint, failed);
  });
}

/** Cuts off a last line that has no end. */
async function repairEnd(file: FileHandle): Promise<void> {
  let { size } = await file.stat();
  const block = Buffer.alloc(64 * 1024);
  while (size > 0) {
    const from = Math.max(0, size - block.length);
    const { bytesRead } = await file.read(block, 0, size - from, from);
    const end = block.subarray(0, bytesRead).lastIndexOf(0x0a);
    if (end >= 0) {
      await file.truncate(from + end + 1);
      return;
    }
    size = from;
  }
  await file.truncate(0);
}

interface ShardOwner extends LockOwner {
  shard: Shard;
}

const LOCK = /^\.results(-\d+-of-\d+)?\.jsonl\.lock$/;

const locked = (owner: LockOwner, path: string) =>
  lockedError(owner, path, ". To share the work, give each process its --shard of one count");

/**
 * Makes the lock of a shard, unless a living process has it, or one that shares a record with it: a whole run and
 * a shard, or shards of other counts.
 */
async function lockShard(folder: string, shard: Shard): Promise<string> {
  const path = resolve(folder, `.${resultsName(shard)}.lock`);
  await takeLock<ShardOwner>(path, { ...thisOwner(), shard }, locked);
  try {
    for (const name of await readdir(folder)) {
      const other = resolve(folder, name);
      if (!LOCK.test(name) || other === path) continue;
      const owner = (await lockOwner(other)) as ShardOwner | undefined;
      if (owner && owner.shard?.count !== shard.count && isAlive(owner, other))
        throw locked(owner, other);
    }
  } catch (error) {
    await freeLock(path);
    throw error;
  }
  return path;
}
