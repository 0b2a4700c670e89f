/** `unifluid build`: compiles the native part where the package lies. */

import { spawn } from "node:child_process";
import { join } from "node:path";
import type { Command } from "commander";
import { NativeLoadError } from "../errors.js";
import { runCommand } from "./context.js";

export function addBuild(program: Command): void {
  program
    .command("build")
    .description("compile the native part (needs g++ 12 or later, cmake and make)")
    .action(() =>
      runCommand({}, async () => {
        const script = join(__dirname, "..", "..", "scripts", "install.mjs");
        const compiler = spawn(process.execPath, [script, "--build"], { stdio: "inherit" });
        const status = await new Promise<number | null>((resolve, reject) => {
          compiler.once("error", reject);
          compiler.once("exit", resolve);
        });
        if (status !== 0) {
          throw new NativeLoadError("NATIVE_NOT_FOUND", "the native part was not compiled");
        }
      }),
    );
}
