/** What every command runs in: its signal, its output, and how it ends. */

import { ExitCode, exitCodeOf, Interrupted } from "./exit-codes.js";

export interface OutputFlags {
  /** One JSON document a result on standard output; errors as JSON on standard error. */
  json?: boolean;
  /** Neither progress nor notes on standard error. */
  quiet?: boolean;
}

export interface Context {
  /** Aborts when the user interrupts. */
  signal: AbortSignal;
  json: boolean;
  quiet: boolean;
}

/** Runs a command; the process ends with its exit code when nothing is left to do. */
export async function runCommand(
  flags: OutputFlags,
  command: (context: Context) => Promise<void>,
): Promise<void> {
  const { json = false, quiet = false } = flags;
  const controller = new AbortController();
  const interrupt = (exitCode: number) => () => {
    // Whoever asks twice does not want to wait for the next step.
    if (controller.signal.aborted) process.exit(exitCode);
    controller.abort(new Interrupted(exitCode));
  };
  const onInterrupt = interrupt(ExitCode.interrupted);
  const onTerminate = interrupt(ExitCode.terminated);
  process.on("SIGINT", onInterrupt);
  process.on("SIGTERM", onTerminate);
  try {
    await command({ signal: controller.signal, json, quiet });
  } catch (error) {
    fail(error, json);
  } finally {
    process.off("SIGINT", onInterrupt);
    process.off("SIGTERM", onTerminate);
  }
}

/** Tells of an error on standard error, in one line; `of` is added to its JSON document. */
export function tell(
  { code, message }: { code: string; message: string },
  json: boolean,
  of?: Record<string, unknown>,
): void {
  const line = json
    ? JSON.stringify({ error: { code, message }, ...of })
    : `unifluid: ${code}: ${message.replace(/\s*\n\s*/g, " | ")}`;
  process.stderr.write(`${line}\n`);
}

/** Tells of an error that ends the command, and sets the exit code. */
export function fail(error: unknown, json: boolean): void {
  process.exitCode = exitCodeOf(error);
  tell(describe(error), json);
  if (
    process.exitCode === ExitCode.internal &&
    error instanceof Error &&
    process.env.UNIFLUID_DEBUG
  ) {
    process.stderr.write(`${error.stack}\n`);
  }
}

function describe(error: unknown): { code: string; message: string } {
  if (!(error instanceof Error)) return { code: "INTERNAL", message: String(error) };
  const { code } = error as { code?: unknown };
  return { code: typeof code === "string" ? code : "INTERNAL", message: error.message };
}

/** Whether standard error is for errors alone. */
export const isSilent = ({ quiet, json }: Context): boolean => quiet || json;

/** A line for people, on standard error. */
export function note(context: Context, line: string): void {
  if (!isSilent(context)) process.stderr.write(`unifluid: ${line}\n`);
}
