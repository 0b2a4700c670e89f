/** Whom a picture that cannot be read is to be blamed on: its file, or the machine. */
import { systemCode } from "./system-code.js";

/** What the system says of a file that is not there or not to be read; all else is the machine's fault. */
const UNREADABLE = new Set([
  "ENOENT",
  "EACCES",
  "EPERM",
  "EISDIR",
  "ENOTDIR",
  "ENAMETOOLONG",
  "ELOOP",
  "ENXIO", // a socket
]);

/** Why a picture could not be read, where the system said it and no record is to blame. */
export function machinesFault(error: unknown): Error | undefined {
  const { cause } = error as Error;
  const code = systemCode(cause);
  return code === undefined || UNREADABLE.has(code) ? undefined : (cause as Error);
}
