/** What the process ends with. */

import { type ErrorCode, UniFluidError } from "../errors.js";

export const ExitCode = {
  ok: 0,
  /** A defect of this program. */
  internal: 1,
  /** A command, option or value that does not exist. */
  usage: 2,
  /** A checkpoint, image or prompt that cannot be used. */
  input: 3,
  /** The model does not fit the memory. */
  memory: 4,
  /** No device or no native part to compute with. */
  device: 5,
  /** A result that cannot be written. */
  output: 6,
  /** Some records, prompts or images failed; the others are done. */
  partial: 7,
  /** A loss was not finite or exploded. */
  diverged: 8,
  /** Ctrl-C. */
  interrupted: 130,
  /** SIGTERM. */
  terminated: 143,
} as const;

/** For `--help`. */
export const EXIT_CODES_HELP = `
Exit codes:
  0    done
  1    internal error: please report it
  2    usage: unknown command or option, value out of range
  3    input: the checkpoint, image or prompt cannot be used
  4    not enough memory
  5    the device, the native part or the Redis server is not available
  6    the result cannot be written
  7    some records, prompts or images failed; the others are done
  8    training diverged; its last good checkpoint is kept
  130  interrupted (Ctrl-C); 143 terminated`;

const BY_CODE: Partial<Record<ErrorCode, number>> = {
  INVALID_OPTION: ExitCode.usage,
  JOBS_CHANGED: ExitCode.usage,
  OUTPUT_LOCKED: ExitCode.output,
  TRAINING_DIVERGED: ExitCode.diverged,
  INSUFFICIENT_MEMORY: ExitCode.memory,
  QUEUE_FULL: ExitCode.memory,
  QUEUE_UNREACHABLE: ExitCode.device,
  DEVICE_ERROR: ExitCode.device,
  DEVICE_UNAVAILABLE: ExitCode.device,
  NATIVE_NOT_FOUND: ExitCode.device,
  NATIVE_LOAD_FAILED: ExitCode.device,
  INTERNAL: ExitCode.internal,
  DISPOSED: ExitCode.internal,
  CANCELLED: ExitCode.internal,
};

/** An error of the command line itself: what commander reports, and combinations that make no sense. */
export class UsageError extends Error {
  readonly code = "USAGE";
}

/** A file or pipe that a result could not be written to. */
export class OutputError extends Error {
  readonly code = "OUTPUT";
}

/** The reason of a signal's abort: SIGINT or SIGTERM came. */
export class Interrupted extends Error {
  readonly code = "INTERRUPTED";

  constructor(readonly exitCode: number) {
    super(exitCode === ExitCode.interrupted ? "interrupted" : "terminated");
  }
}

/** The process's exit code for what a command failed with. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof Interrupted) return error.exitCode;
  if (error instanceof UsageError) return ExitCode.usage;
  if (error instanceof OutputError) return ExitCode.output;
  // Every other error of the package is about what it was given.
  if (error instanceof UniFluidError) return BY_CODE[error.code as ErrorCode] ?? ExitCode.input;
  return ExitCode.internal;
}
