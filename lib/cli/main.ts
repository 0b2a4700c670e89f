#!/usr/bin/env node
/** The program `unifluid`. */

import { NativeLoadError } from "../errors.js";
import { fail } from "./context.js";
import { ExitCode } from "./exit-codes.js";
import { endWithStandardOutput } from "./output.js";

async function main(args: readonly string[], json: boolean): Promise<void> {
  endWithStandardOutput(json);
  const { run } = await loadProgram();
  await run(args);
}

/** The commands need sharp, whose native part may not fit this machine. */
async function loadProgram() {
  try {
    return await import("./program.js");
  } catch (cause) {
    throw new NativeLoadError("NATIVE_LOAD_FAILED", (cause as Error).message, { cause });
  }
}

/**
 * Whoever stopped a command does not wait for a file that does not answer, as on a network disk that is gone. Its read
 * cannot be given up, and `process.exit` would wait for it; the handlers of signals are off by now.
 */
function endAfterSignal(): void {
  const { exitCode } = process;
  if (exitCode !== ExitCode.interrupted && exitCode !== ExitCode.terminated) return;
  const signal = exitCode === ExitCode.interrupted ? "SIGINT" : "SIGTERM";
  setTimeout(() => process.kill(process.pid, signal), 5000).unref();
}

const args = process.argv.slice(2);
const json = args.includes("--json");
main(args, json)
  .catch((error) => fail(error, json))
  .finally(endAfterSignal);
