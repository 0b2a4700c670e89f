// Checks and measures the CUDA library on the GPU of this machine, in one go:
//
//   npm run gpu -- [--no-build] [--no-checks] [--no-sanitizer] [--no-bench] [--no-training] [--reference DIR]
//                  [--python python3]
//   npm run gpu -- --simulated       the checks alone, on the simulated library: no GPU is needed
//   npm run gpu -- --pack DIR [--no-node] [--reference DIR]
//                                    what a machine with a GPU and nvcc, but without npm, needs for the same
//
// --reference: the folder of the PyTorch reference implementation, for the figures beside ours; default: what a pack
// brought.
// It builds the library (nvcc), runs every operation and the tiny models on the device beside the CPU, runs
// compute-sanitizer where it is on PATH, and writes the benchmark to bench/results/ (bench/gpu.mjs). Plain Node:
// neither jest nor npm is used after the bundle is made.
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { delimiter, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const release = join(root, "build", "Release");
// In build/, so that their parent is the repository's root as a source's is.
const checksBundle = join(root, "build", "gpu-checks.cjs");
const benchBundle = join(root, "build", "gpu-bench.mjs");
const trainingBundle = join(root, "build", "gpu-training.mjs");
const bundles = [checksBundle, benchBundle, trainingBundle];
const fixtures = join(root, "test", "fixtures");

const MEBIBYTE = 2 ** 20;
/** Packs travel beside the repository's files, and the way that they take has room for 64 MiB in all. */
const LARGEST_LOAD = 62 * MEBIBYTE;

const { values: options } = parseArgs({
  options: {
    "no-build": { type: "boolean", default: false },
    "no-sanitizer": { type: "boolean", default: false },
    "no-checks": { type: "boolean", default: false },
    "no-bench": { type: "boolean", default: false },
    "no-training": { type: "boolean", default: false },
    simulated: { type: "boolean", default: false },
    pack: { type: "string" },
    "no-node": { type: "boolean", default: false },
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

/** The checks and the benchmarks as one file each, with all that they need but the addons. */
function makeBundles() {
  if (!existsSync(join(root, "node_modules", "esbuild"))) {
    if (bundles.every((file) => existsSync(file))) return; // they came with a pack
    fail("esbuild is not there: run npm install first");
  }
  const { buildSync } = createRequire(import.meta.url)("esbuild");
  const common = {
    absWorkingDir: root,
    bundle: true,
    platform: "node",
    target: "node20",
    external: ["*.node"],
    // No image file is read or written, and sharp's libraries weigh more than everything else.
    alias: { sharp: "./scripts/no-sharp.mjs" },
    logLevel: "error",
  };
  buildSync({ ...common, entryPoints: ["test/cuda/gpu-checks.ts"], outfile: checksBundle });
  const banner = {
    js: [
      'import { createRequire as requireOf } from "node:module";',
      'import { dirname as folderOf } from "node:path";',
      'import { fileURLToPath as pathOf } from "node:url";',
      "const require = requireOf(import.meta.url);",
      "const __filename = pathOf(import.meta.url);",
      "const __dirname = folderOf(__filename);",
    ].join("\n"),
  };
  const esm = { ...common, format: "esm", banner };
  buildSync({ ...esm, entryPoints: ["bench/gpu.mjs"], outfile: benchBundle });
  buildSync({ ...esm, entryPoints: ["bench/train.mjs"], outfile: trainingBundle });
}

const environment = {
  UNIFLUID_NATIVE: join(release, "unifluid.node"),
  UNIFLUID_TEST_ADDON: join(release, "unifluid_test.node"),
};
for (const file of Object.values(environment))
  if (!existsSync(file)) fail(`${file} is missing: npm run build:native makes it`);

const packed = join(root, "build", "reference");
const reference = options.reference || (existsSync(packed) ? packed : "");
if (reference && !existsSync(reference))
  fail(
    `expected --reference to be the reference's folder but received ${reference}: it is not there`,
  );

makeBundles();
if (options.pack) {
  pack(resolve(options.pack));
} else {
  const library = join(
    release,
    options.simulated ? "unifluid_cuda_simulated.so" : "unifluid_cuda.so",
  );
  if (!options.simulated && !options["no-build"])
    run("build", process.execPath, ["scripts/build-cuda.mjs", "--out", library]);
  const checks = [checksBundle, library, fixtures, join(root, "models", "shapes-64")];
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
    if (!options["no-checks"])
      run("every check on the device", process.execPath, checks, { env: environment });
    if (!options["no-sanitizer"]) sanitize(checks);
    if (!reference) console.log("\nno --reference: PyTorch's figures are left out");
    const peer = reference ? ["--reference", reference] : [];
    const env = { ...environment, UNIFLUID_CUDA_LIBRARY: library };
    if (!options["no-bench"])
      run("benchmark", process.execPath, [benchBundle, "--python", options.python, ...peer], {
        env,
      });
    if (!options["no-training"])
      for (const size of ["shipped", "300m"])
        run(
          `a step of training, ${size}`,
          process.execPath,
          [
            trainingBundle,
            ...["--device", "cuda", "--size", size],
            ...(reference ? ["--python", options.python, ...peer] : []),
          ],
          { env },
        );
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

function bytesOf(path) {
  if (!statSync(path).isDirectory()) return statSync(path).size;
  return readdirSync(path).reduce((sum, name) => sum + bytesOf(join(path, name)), 0);
}

/** Of the files in git, which travel beside a pack; 0 outside of a repository. */
function trackedBytes() {
  const { status, stdout } = spawnSync("git", ["ls-files", "-z"], { cwd: root, encoding: "utf8" });
  if (status !== 0) return 0;
  const paths = stdout.split("\0").map((path) => path && join(root, path));
  return paths.reduce((sum, path) => sum + (path && existsSync(path) ? bytesOf(path) : 0), 0);
}

/** Built files, bundles, the reference and Node itself; sources come with the repository. */
function pack(folder) {
  rmSync(folder, { recursive: true, force: true });
  const build = join(folder, "build");
  mkdirSync(join(build, "Release"), { recursive: true });
  for (const file of [...bundles, ...Object.values(environment)])
    cpSync(file, join(folder, file.slice(root.length)));
  if (reference) {
    const programs = readdirSync(reference).filter((name) => name.endsWith(".py"));
    if (programs.length === 0) fail(`there are no Python files in ${reference}`);
    for (const name of programs) cpSync(join(reference, name), join(build, "reference", name));
  } else console.log("unifluid: without --reference the pack brings no PyTorch figures");
  const { status, stdout } = spawnSync("git", ["rev-parse", "--short", "HEAD"], { cwd: root });
  if (status === 0) writeFileSync(join(build, "commit"), stdout);
  if (!options["no-node"]) {
    const node = join(folder, "node.xz");
    const command = `xz -3 --stdout "$0" > "$1"`;
    if (spawnSync("sh", ["-c", command, process.execPath, node]).status !== 0)
      fail("xz did not pack the node binary");
  }
  const script = join(folder, "run.sh");
  writeFileSync(
    script,
    `#!/bin/sh
# In a checkout of the repository: sh PACK/run.sh [arguments of npm run gpu]
set -e
pack=$(cd "$(dirname "$0")" && pwd)
mkdir -p build
cp -r "$pack/build/." build/
node=node
if [ -f "$pack/node.xz" ]; then
  xz -dc "$pack/node.xz" > build/node
  chmod +x build/node
  node=build/node
fi
exec "$node" scripts/gpu.mjs "$@"
`,
  );
  chmodSync(script, 0o755);
  const bytes = bytesOf(folder);
  const mebibytes = (count) => `${(count / MEBIBYTE).toFixed(1)} MiB`;
  const size = mebibytes(bytes);
  const tracked = trackedBytes();
  if (bytes + tracked > LARGEST_LOAD)
    fail(
      `${folder} takes ${size} and the repository's files ${mebibytes(tracked)}: together more than ` +
        `${mebibytes(LARGEST_LOAD)}`,
    );
  console.log(
    `unifluid: ${folder} holds what a machine without npm needs, ${size}: run.sh says how`,
  );
}
