#!/usr/bin/env node
// Stands in for node-gyp: prebuildify starts it as `node-gyp rebuild --arch=... ...` in a folder of its own, and takes
// the addon from build/Release there. We build with CMake.
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const [, arch = process.arch] =
  process.argv.map((arg) => /^--arch=(.+)$/.exec(arg)).find(Boolean) ?? [];
const cross =
  arch === "arm64" && process.arch !== "arm64"
    ? [`--CDCMAKE_TOOLCHAIN_FILE=${join(root, "scripts/aarch64-linux-gnu.cmake")}`]
    : [];
const { status } = spawnSync(
  process.execPath,
  [
    createRequire(import.meta.url).resolve("cmake-js/bin/cmake-js"),
    "compile",
    ...["--directory", root],
    ...["--out", join(process.cwd(), "build")],
    ...["--arch", arch],
    ...["--parallel", String(availableParallelism())],
    "--CDUNIFLUID_TESTS=OFF",
    ...cross,
  ],
  { cwd: root, stdio: "inherit" },
);
process.exit(status ?? 1);
