// Checks and measures the CUDA library on the GPU of this machine, in one go:
//
//   npm run gpu -- [--no-build] [--no-sanitizer] [--no-bench] [--reference DIR] [--python python3]
//   npm run gpu -- --simulated       the checks alone, on the simulated library: no GPU is needed
//   npm run gpu -- --pack DIR        what a machine with a GPU and nvcc, but without npm, needs for the same
//
// It builds the library (nvcc), runs every operation and the tiny models on the device beside the CPU, runs
// compute-sanitizer where it is on PATH, and writes the benchmark to bench/results/ (bench/gpu.mjs). Plain Node:
// neither jest nor npm is used after the bundle is made.
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const release = join(root, "build", "Release");
const bundle = join(root, "build", "gpu", "gpu-checks.cjs");
const fixtures = join(root, "test", "fixtures");

const { values: options } = parseArgs({
  options: {
    "no-build": { type: "boolean", default: false },
    "no-sanitizer": { type: "boolean", default: false },
    "no-bench": { type: "boolean", default: false },
    simulated: { type: "boolean", default: false },
    pack: { type: "string" },
    reference: { type: "string", default: "" },
    python: { type: "string", default: "python3" },
  },
});

function fail(message) {
  console.error(`unifluid: ${message}`);
  process.exit(1);
}

function run(title, command, args, extra = {}) {
  console.log(`\n== ${title}`);
  const { status, error } = spawnSync(command, args, {
    cwd: root,
    stdio: "inherit",
    ...extra,
    env: { ...process.env, ...extra.env },
  });
  if (error) fail(`${command} did not start: ${error.message}`);
  if (status !== 0) fail(`${title}: failed`);
}

const onPath = (program) =>
  (process.env.PATH ?? "")
    .split(delimiter)
    .some((folder) => folder && existsSync(join(folder, program)));

/** The checks as one file; what comes from npm stays outside of it. */
function makeBundle() {
  if (!existsSync(join(root, "node_modules", "esbuild"))) {
    if (existsSync(bundle)) return; // it came with a pack
    fail("esbuild is not there: run npm install first");
  }
  const { buildSync } = createRequire(import.meta.url)("esbuild");
  buildSync({
    absWorkingDir: root,
    entryPoints: ["test/cuda/gpu-checks.ts"],
    bundle: true,
    platform: "node",
    target: "node20",
    packages: "external",
    external: ["*.node"],
    outfile: bundle,
    logLevel: "warning",
  });
}

const environment = {
  UNIFLUID_NATIVE: join(release, "unifluid.node"),
  UNIFLUID_TEST_ADDON: join(release, "unifluid_test.node"),
};
for (const file of Object.values(environment))
  if (!existsSync(file)) fail(`${file} is missing: npm run build:native makes it`);

if (options.pack) {
  pack(resolve(options.pack));
} else {
  makeBundle();
  const library = join(
    release,
    options.simulated ? "unifluid_cuda_simulated.so" : "unifluid_cuda.so",
  );
  if (!options.simulated && !options["no-build"])
    run("build", process.execPath, ["scripts/build-cuda.mjs", "--out", library]);
  const checks = [bundle, library, fixtures];
  if (options.simulated) {
    run(
      "checks on the simulated library",
      process.execPath,
      [...checks, "--quick", "--simulated"],
      {
        env: environment,
      },
    );
  } else {
    run("every check on the device", process.execPath, checks, { env: environment });
    if (!options["no-sanitizer"]) sanitize(checks);
    if (!options["no-bench"]) {
      const args = ["bench/gpu.mjs", "--python", options.python];
      if (options.reference) args.push("--reference", options.reference);
      run("benchmark", process.execPath, args, {
        env: { ...environment, UNIFLUID_CUDA_LIBRARY: library },
      });
    }
  }
}

/** Each of its tools on a short run of the checks. */
function sanitize(checks) {
  if (!onPath("compute-sanitizer")) {
    console.log("\ncompute-sanitizer is not on PATH: its checks are left out");
    return;
  }
  for (const tool of ["memcheck", "racecheck", "synccheck"])
    run(
      `compute-sanitizer, ${tool}`,
      "compute-sanitizer",
      ["--tool", tool, "--error-exitcode", "9", process.execPath, ...checks, "--quick"],
      { env: environment },
    );
}

/** Built files, production packages and Node itself; sources come with the repository. */
function pack(folder) {
  makeBundle();
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(join(folder, "build"), { recursive: true });
  const take = (path) => {
    if (!existsSync(join(root, path))) fail(`${path} is missing: build it first`);
    cpSync(join(root, path), join(folder, path), { recursive: true, dereference: true });
  };
  for (const path of [
    "dist",
    "build/gpu",
    "build/Release/unifluid.node",
    "build/Release/unifluid_test.node",
  ])
    take(path);
  const { stdout } = spawnSync("npm", ["ls", "--omit=dev", "--all", "--parseable"], {
    cwd: root,
    encoding: "utf8",
  });
  for (const path of stdout.split("\n"))
    if (path.startsWith(join(root, "node_modules"))) take(path.slice(root.length));
  const xz = spawnSync("sh", [
    "-c",
    `xz -3 --stdout "$0" > "$1"`,
    process.execPath,
    join(folder, "node.xz"),
  ]);
  if (xz.status !== 0) fail("xz did not pack the node binary");
  writeFileSync(
    join(folder, "run.sh"),
    `#!/bin/sh
# In a checkout of the repository: sh ${"$"}PACK/run.sh [arguments of npm run gpu]
set -e
pack=$(cd "$(dirname "$0")" && pwd)
cp -r "$pack/dist" "$pack/build" "$pack/node_modules" .
xz -dc "$pack/node.xz" > build/node && chmod +x build/node
exec build/node scripts/gpu.mjs "$@"
`,
  );
  console.log(`unifluid: ${folder} holds what a machine without npm needs; its run.sh says how`);
}
