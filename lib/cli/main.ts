#!/usr/bin/env node
/** The program `unifluid`. */

import { NativeLoadError } from "../errors.js";
import { fail } from "./context.js";
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

const args = process.argv.slice(2);
const json = args.includes("--json");
main(args, json).catch((error) => fail(error, json));
