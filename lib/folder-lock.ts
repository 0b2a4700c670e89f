/** Locks of folders: files that name the process that writes there. A process that is gone blocks nobody. */

import { randomUUID } from "node:crypto";
import {
  constants,
  copyFile,
  link,
  opendir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from "node:fs/promises";
import { hostname } from "node:os";
import { basename, dirname, join } from "node:path";
import { OutputLockedError } from "./errors.js";

/** Who has a lock. */
export interface LockOwner {
  pid: number;
  host: string;
  /** When the process began, in milliseconds since 1970; locks of earlier versions do not say. */
  started?: number;
}

/** The same in all threads of this process, but for what the clock was set meanwhile. */
const startOfProcess = (): number => Math.round(Date.now() - process.uptime() * 1000);
/** So far may two times of one process be apart. */
const CLOCK_SKEW = 2000;

/** This process. */
export const thisOwner = (): LockOwner => ({
  pid: process.pid,
  host: hostname(),
  started: startOfProcess(),
});

/** Locks of this thread. */
const held = new Set<string>();

/** What file systems without hard links say of one. */
const NO_LINKS = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"]);

/** Throws `EEXIST` where there is something. */
async function linkNew(from: string, to: string): Promise<void> {
  await link(from, to).catch((error: NodeJS.ErrnoException) => {
    if (!NO_LINKS.has(error.code ?? "")) throw error;
    return copyFile(from, to, constants.COPYFILE_EXCL);
  });
}

/** `rest` of the message: what to do. */
export const lockedError = ({ pid, host }: LockOwner, path: string, rest = "") =>
  new OutputLockedError(
    `process ${pid} on ${host} is writing to this folder; if it is not, remove ${path}${rest}`,
  );

/**
 * Makes the lock at an absolute path, in a folder that is there, with what else is to be known of its owner. Throws
 * what `locked` makes of the owner while a living process has it.
 */
export async function takeLock<Owner extends LockOwner>(
  path: string,
  mine: Owner,
  locked: (owner: LockOwner, path: string) => Error = lockedError,
): Promise<void> {
  // It is there with its content or not at all.
  const beside = `${path}.${randomUUID()}`;
  await writeFile(beside, JSON.stringify(mine));
  try {
    await linkNew(beside, path).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
      const owner = await lockOwner(path);
      if (owner && isAlive(owner, path)) throw locked(owner, path);
      await removeStale(path, locked);
      await linkNew(beside, path).catch(async (again: NodeJS.ErrnoException) => {
        throw again.code === "EEXIST" ? locked((await lockOwner(path)) ?? mine, path) : again;
      });
    });
  } finally {
    await rm(beside, { force: true });
  }
  held.add(path);
  await removeLeft(path).catch(() => {}); // no harm but the looks of the folder
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
/** Age in milliseconds from which a file that names nobody is no longer being written. */
const OLD = 60_000;

/** Removes what processes that were killed as they took or gave up the lock have left beside it. */
async function removeLeft(path: string): Promise<void> {
  const prefix = `${basename(path)}.`;
  for await (const { name } of await opendir(dirname(path))) {
    if (!name.startsWith(prefix) || !UUID.test(name.slice(prefix.length))) continue;
    const left = join(dirname(path), name);
    const owner = await lockOwner(left);
    const gone = owner ? !isAlive(owner, left) : Date.now() - (await stat(left)).mtimeMs > OLD;
    if (gone) await rm(left, { force: true });
  }
}

/**
 * Removes the lock of a process that is gone. Another process may have found it as well and have put its own in
 * its place by now: what was taken away is looked at once more.
 */
async function removeStale(
  path: string,
  locked: (owner: LockOwner, path: string) => Error,
): Promise<void> {
  const aside = `${path}.${randomUUID()}`;
  try {
    await rename(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  try {
    const owner = await lockOwner(aside);
    if (!owner || !isAlive(owner, path)) return;
    await linkNew(aside, path);
    throw locked(owner, path);
  } finally {
    await rm(aside, { force: true });
  }
}

/** Gives up a lock that `takeLock` made. */
export async function freeLock(path: string): Promise<void> {
  held.delete(path);
  await rm(path, { force: true });
}

/** What a lock says of its owner; undefined: nothing that can be read. */
export async function lockOwner(path: string): Promise<LockOwner | undefined> {
  try {
    const owner = JSON.parse(await readFile(path, "utf8")) as LockOwner;
    return typeof owner.pid === "number" ? owner : undefined;
  } catch {
    return undefined;
  }
}

/** Whether the owner of the lock at `path` is at work. Of another machine nothing is known: taken for alive. */
export function isAlive({ pid, host, started }: LockOwner, path: string): boolean {
  if (host !== hostname()) return true;
  // One that bears this process's number is another thread's, or an earlier process's.
  if (pid === process.pid)
    return (
      held.has(path) || (started !== undefined && Math.abs(started - startOfProcess()) < CLOCK_SKEW)
    );
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
