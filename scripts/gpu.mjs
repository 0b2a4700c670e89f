// Checks and measures the CUDA library on the GPU of this machine, in one go:
//
//   npm run gpu -- [--no-build] [--no-checks] [--no-bench] [--no-training] [--no-sanitizer] [--budget SECONDS]
//                  [--reference DIR | --no-peer] [--compile SECONDS] [--python python3]
//                  [--only ops,head,images,vae] [--jobs N]
//   npm run gpu -- --simulated       the checks alone, on the simulated library: no GPU is needed
//   npm run gpu -- --pack DIR [--no-node] [--no-library] [--reference DIR]
//                                    what a machine with a GPU, but without npm, needs for the same
//
// It builds the library (nvcc), runs every operation, the tiny models and the reference's fixtures on the device (--jobs
// of them at a time), writes the benchmark (bench/gpu.mjs; --only: of its parts) and a step of training
// (bench/train.mjs) to bench/results/, and runs compute-sanitizer. PyTorch's sides of the former two start at the
// beginning: they compile beside the checks, at least --compile seconds (120, of a budget at most a third), and stand
// still while anything else is timed. Each step has a time limit and none is the end of the others; --budget: seconds
// for all of them, after which what is left is skipped. A summary at the end tells what failed, and so does the exit
// code.
//
// --reference: the folder of the PyTorch reference implementation, for the figures beside ours; default: what a pack
// brought; --no-peer: none. A pack holds the library that `npm run build:cuda` compiled, and uses it unless --build is
// given; with --no-library it has none, and the machine compiles it.
// Plain Node: neither jest nor npm is used after the bundle is made.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { pack } from "./gpu-pack.mjs";
import { Steps } from "./gpu-steps.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const release = join(root, "build", "Release");
// In build/, so that their parent is the repository's root as a source's is.
const checksBundle = join(root, "build", "gpu-checks.cjs");
const benchBundle = join(root, "build", "gpu-bench.mjs");
const trainingBundle = join(root, "build", "gpu-training.mjs");
const bundles = [checksBundle, benchBundle, trainingBundle];

const { values: options } = parseArgs({
  options: {
    build: { type: "boolean", default: false },
    "no-build": { type: "boolean", default: false },
    "no-sanitizer": { type: "boolean", default: false },
    "no-checks": { type: "boolean", default: false },
    "no-bench": { type: "boolean", default: false },
    "no-training": { type: "boolean", default: false },
    simulated: { type: "boolean", default: false },
    pack: { type: "string" },
    "no-node": { type: "boolean", default: false },
    "no-library": { type: "boolean", default: false },
    "no-peer": { type: "boolean", default: false },
    reference: { type: "string", default: "" },
    python: { type: "string", default: "python3" },
    budget: { type: "string", default: "Infinity" },
    compile: { type: "string", default: "120" },
    only: { type: "string" },
    jobs: { type: "string" },
  },
});

function fail(message) {
  console.error(`unifluid: ${message}`);
  process.exit(1);
}

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
    // Of a pack each MiB counts; names stay, for errors.
    minifyWhitespace: true,
    minifySyntax: true,
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

const addons = {
  UNIFLUID_NATIVE: join(release, "unifluid.node"),
  UNIFLUID_TEST_ADDON: join(release, "unifluid_test.node"),
};
for (const file of Object.values(addons))
  if (!existsSync(file)) fail(`${file} is missing: npm run build:native makes it`);
const budget = Number(options.budget);
if (!(budget > 0)) fail(`expected --budget to be seconds but received ${options.budget}`);
const compiling = Number(options.compile);
if (!(compiling >= 0)) fail(`expected --compile to be seconds but received ${options.compile}`);

const packed = join(root, "build", "reference");
const brought = existsSync(packed) ? packed : "";
const reference = options["no-peer"] ? "" : options.reference || brought;
if (reference && !existsSync(reference))
  fail(
    `expected --reference to be the reference's folder but received ${reference}: it is not there`,
  );

makeBundles();
const library = join(
  release,
  options.simulated ? "unifluid_cuda_simulated.so" : "unifluid_cuda.so",
);
const node = process.execPath;
const checks = [
  ...[checksBundle, library, join(root, "test", "fixtures"), join(root, "models", "shapes-64")],
  ...(options.simulated ? ["--quick", "--simulated"] : []),
];
/** Seconds of a budget that are kept for each size of training, in the way that is aimed at. */
const TRAINING = 25;
/** Of a step; a simulation is slow. */
const seconds = (count) => (options.simulated ? 10 : 1) * count;
const steps = new Steps({
  budget,
  cwd: root,
  env: { ...addons, UNIFLUID_CUDA_LIBRARY: library },
});

if (options.pack) {
  try {
    pack({
      root,
      folder: resolve(options.pack),
      files: [...bundles, ...Object.values(addons)],
      library: options["no-library"] ? undefined : library,
      reference,
      node: !options["no-node"],
    });
  } catch (error) {
    fail(error.message);
  }
} else {
  if (!options.simulated && (options.build || !options["no-build"]))
    await steps.run("build", node, ["scripts/build-cuda.mjs", "--out", library], { limit: 600 });
  if (!existsSync(library)) steps.note("library", `FAILED: expected it at ${library}`);
  else if (await opens()) {
    const measured = options.simulated ? [] : prepareMeasuring();
    const begun = performance.now();
    const compile = measured.length > 0 && reference ? compiling : 0;
    const limit = Math.min(compile, steps.secondsLeft() / 3);
    if (!options["no-checks"]) await check();
    // Less where all of them have ended, such as without PyTorch.
    await Promise.race([
      pauseOf(limit - (performance.now() - begun) / 1000),
      Promise.all(measured.map(({ prepared }) => prepared.program.ended)),
    ]);
    for (const { prepared, limits } of measured) await steps.finish(prepared, limits);
    if (!options.simulated && !options["no-sanitizer"]) await sanitize();
  }
  steps.kill();
  // Not by itself: a program that could not be killed would be waited for.
  process.exit(steps.summarize() > 0 ? 1 : 0);
}

/**
 * Whether a backend opens and multiplies. On Hopper that tries its own kernels; where they fail or never end twice, all
 * that follows does without them. Twice, since a machine that has just started may be slow to make its first context.
 */
async function opens() {
  const open = (title) =>
    steps.run(title, node, [...checks, "--only", "open"], { limit: seconds(60) });
  if ((await open("opening")) || (await open("opening once more"))) return true;
  steps.env.UNIFLUID_CUDA_WARPGROUPS = "0";
  return open("opening, and all that follows, with UNIFLUID_CUDA_WARPGROUPS=0");
}

function check() {
  const jobs = options.jobs ? ["--jobs", options.jobs] : [];
  const own = (left) => ["--limit", String(seconds(60)), "--budget", String(left - 2), ...jobs];
  // Of a budget at most two fifths: a check that hangs must not take the figures.
  const limit = Math.min(seconds(240), 0.4 * steps.secondsLeft());
  return steps.run("checks", node, (left) => [...checks, ...own(left)], { limit });
}

function pauseOf(seconds) {
  return new Promise((done) => setTimeout(done, 1000 * Math.max(seconds, 0)));
}

/** Starts what is timed later, in the order in which its turn comes. */
function prepareMeasuring() {
  if (!reference) console.log("\nno reference: PyTorch's figures are left out");
  const peer = reference ? ["--python", options.python, "--reference", reference] : [];
  // What is aimed at is to be as fast as compiled PyTorch.
  const ways = reference ? ["compiled", "eager"] : ["eager"];
  const training = options["no-training"]
    ? []
    : ways.flatMap((way) => ["shipped", "300m"].map((size) => [size, way]));
  const keptFor = (list) => TRAINING * list.filter(([, way]) => way === ways[0]).length;
  const list = [];
  if (!options["no-bench"]) {
    const only = options.only ? ["--only", options.only] : [];
    const args = [benchBundle, ...only, ...peer, "--rounds", "3", "--prepare", "5", "--wait"];
    const keep = keptFor(training);
    list.push({
      prepared: steps.prepare("benchmark", node, args),
      limits: { limit: 450, least: 30, keep },
    });
  }
  training.forEach(([size, way], i) => {
    const args = [trainingBundle, "--device", "cuda", "--size", size, "--ways", way, ...peer];
    const title = `a step of training, ${size}, beside ${way} PyTorch`;
    list.push({
      prepared: steps.prepare(title, node, [...args, "--wait"]),
      limits: { limit: 120, keep: keptFor(training.slice(i + 1)) },
    });
  });
  return list;
}

/** Its tools on a case or two of each kernel, beside each other, since most of it is the processor's work. */
async function sanitize() {
  const name = "compute-sanitizer";
  const folders = (process.env.PATH ?? "").split(delimiter).concat("/usr/local/cuda/bin");
  const sanitizer = folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
  if (!sanitizer) {
    steps.note(name, "skipped: it is neither on PATH nor in /usr/local/cuda/bin");
    return;
  }
  // Not tried at each opening, which would take most of the time; the cases are compared all the same.
  const setting = "UNIFLUID_CUDA_WARPGROUPS";
  const env = { [setting]: steps.env[setting] ?? process.env[setting] ?? "1" };
  const programs = ["memcheck", "racecheck", "synccheck"].map((tool) => {
    const level = tool === "racecheck" ? ["--racecheck-detect-level", "error"] : [];
    const settings = ["--tool", tool, ...level, "--print-limit", "20", "--error-exitcode", "9"];
    return {
      title: `${name}, ${tool}`,
      args: [...settings, node, ...checks, "--only", "kernels"],
    };
  });
  // Kernels that begin before the one in front of them has ended.
  const model = ["--only", "bfloat16 unifluid-flow-tiny"];
  const settings = ["--tool", "memcheck", "--print-limit", "20", "--error-exitcode", "9"];
  programs.push({
    title: `${name}, memcheck of a model`,
    args: [...settings, node, ...checks, ...model],
  });
  await steps.runTogether(name, sanitizer, programs, { limit: 60, least: 30, env });
}
