// Checks the C++ and CUDA sources with clang-format; `--write` formats them in place.
//
// The binary comes with the npm package `clang-format`, so that everybody formats with one version.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const folders = ["core", "cpu", "binding", "cuda", "test"];
const skipped = new Set(["fixtures", "node_modules"]);

function* sources(folder) {
  if (!existsSync(folder)) return;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      if (!skipped.has(entry.name)) yield* sources(path);
    } else if (/\.(h|cpp|cu|cuh)$/.test(entry.name)) {
      yield relative(root, path);
    }
  }
}

const files = folders.flatMap((folder) => [...sources(join(root, folder))]).sort();
if (files.length === 0) process.exit(0);

const write = process.argv.includes("--write");
const { status, error } = spawnSync(
  process.execPath,
  [
    createRequire(import.meta.url).resolve("clang-format"),
    "--style=file",
    ...(write ? ["-i"] : ["--dry-run", "--Werror"]),
    ...files,
  ],
  { cwd: root, stdio: "inherit" },
);
if (error) throw error;
if (status === 0)
  console.log(`clang-format: ${files.length} files${write ? "" : ", all formatted"}`);
else console.error("clang-format: run `npm run format`");
process.exit(status ?? 1);
