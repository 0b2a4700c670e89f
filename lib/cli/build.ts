/** `unifluid build`: compiles the native part where the package lies. */

import { spawn } from "node:child_process";
import { dirname, join } from "node:path";
import type { Command } from "commander";
import { findAddon } from "../addon.js";
import { CUDA_LIBRARY } from "../device.js";
import { NativeLoadError } from "../errors.js";
import { runCommand } from "./context.js";
import { UsageError } from "./exit-codes.js";

export function addBuild(program: Command): void {
  program
    .command("build")
    .description(
      "compile the native part (needs g++ 12 or later, cmake, make, cmake-js and node-addon-api)",
    )
    .option(
      "--cuda",
      "compile the CUDA library for this machine's GPUs (needs nvcc from CUDA 12.8 or later)",
    )
    .option("--arch <list>", 'with --cuda: for these compute capabilities, such as "80;90"')
    .action(({ cuda, arch }: { cuda?: boolean; arch?: string }) =>
      runCommand({}, async () => {
        if (arch !== undefined && !cuda) throw new UsageError("--arch needs --cuda");
        const scripts = join(__dirname, "..", "..", "scripts");
        const args = cuda
          ? [
              join(scripts, "build-cuda.mjs"),
              "--out",
              join(dirname(findAddon().path), CUDA_LIBRARY),
              ...(arch === undefined ? [] : ["--arch", arch]),
            ]
          : [join(scripts, "install.mjs"), "--build"];
        const compiler = spawn(process.execPath, args, { stdio: "inherit" });
        const status = await new Promise<number | null>((resolve, reject) => {
          compiler.once("error", reject);
          compiler.once("exit", resolve);
        });
        if (status !== 0) {
          throw new NativeLoadError(
            "NATIVE_NOT_FOUND",
            `the ${cuda ? "CUDA library" : "native part"} was not compiled`,
          );
        }
      }),
    );
}
