// The speed of the CUDA backend on the GPU of this machine, beside PyTorch on the same device in the same run;
// `npm run gpu` runs it after the checks. Writes bench/results/<device>.md, with commit and driver.
//
//   node bench/gpu.mjs [--reference DIR] [--python python3] [--work DIR] [--rounds N] [--small]
//
// --reference is the folder of the PyTorch reference implementation, which runs in bfloat16 with
// scaled_dot_product_attention, eager and compiled. Without PyTorch only our figures are written. --small: tiny
// sizes and nothing written, to try the program itself, also on the simulated library.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { randomCheckpoint } from "./checkpoints.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const { UniFluid } = await import("../dist/index.mjs");
const require = createRequire(import.meta.url);
const native = require(process.env.UNIFLUID_NATIVE ?? "../build/Release/unifluid.node");
const tests = require(process.env.UNIFLUID_TEST_ADDON ?? "../build/Release/unifluid_test.node");
const library =
  process.env.UNIFLUID_CUDA_LIBRARY ?? join(root, "build", "Release", "unifluid_cuda.so");
process.env.UNIFLUID_CUDA_LIBRARY = library;

const { values: options } = parseArgs({
  options: {
    python: { type: "string", default: "python3" },
    reference: { type: "string", default: "" },
    work: { type: "string" },
    rounds: { type: "string", default: "5" },
    small: { type: "boolean", default: false },
  },
});
const { small } = options;
const rounds = small ? 1 : Number(options.rounds);
const work = options.work ?? mkdtempSync(join(tmpdir(), "unifluid-gpu-"));
const model2b = randomCheckpoint(
  small ? "unifluid-small" : "unifluid-2b",
  work,
  join(root, "models", "shapes-64"),
);
const [device] = await native.cudaDevices(library);
const backend = new tests.TestBackend({ library, compute: "bf16" });
/** On Hopper: a backend that does without its products of warpgroups, to see what they bring. */
const plain = backend.description().endsWith(", wgmma")
  ? await withoutWarpgroups(() => new tests.TestBackend({ library, compute: "bf16" }))
  : null;

/** What is opened meanwhile does without them. */
async function withoutWarpgroups(run) {
  process.env.UNIFLUID_CUDA_WARPGROUPS = "0";
  try {
    return await run();
  } finally {
    delete process.env.UNIFLUID_CUDA_WARPGROUPS;
  }
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};
const several = async (run) => {
  const values = [];
  for (let i = 0; i < rounds; i++) values.push(await run());
  return median(values);
};
/** Seconds of an operation, the median of rounds. */
const time = (args, repeats, on = backend) =>
  several(() => on.time({ ...args, repeats: small ? 2 : repeats }));
const seconds = async (run) => {
  const begin = process.hrtime.bigint();
  await run();
  return Number(process.hrtime.bigint() - begin) / 1e9;
};

/** Batches at which compiled PyTorch is tried. */
const BATCHES = [16, 64, 128];

/** Whether a figure of PyTorch's is wanting. */
let peerMissing = options.reference === "";
/** Seconds of the peer's case, one figure for each way that it runs; null where there is none. */
async function peer(name, extra = []) {
  if (!options.reference) return null;
  const args = [join(root, "bench", "gpu_peer.py"), name, "--reference", options.reference];
  args.push("--checkpoint", model2b, "--rounds", String(rounds), ...extra.map(String));
  const child = spawn(options.python, args, { stdio: ["ignore", "pipe", "inherit"] });
  const figures = {};
  child.once("error", () => {});
  for await (const line of createInterface({ input: child.stdout })) {
    const [way, value] = line.split(" ");
    figures[way] = Number(value);
  }
  if (Object.keys(figures).length > 0) return figures;
  peerMissing = true;
  return null;
}

const rows = [];
const ms = (s) => `${(s * 1e3).toFixed(s < 0.01 ? 3 : 1)} ms`;
/** `value`: ours in words; `ours` and `theirs` seconds for the ratios. */
function record(what, value, aim, ours, theirs) {
  const ratio = (way) => (theirs?.[way] ? `${(theirs[way] / ours).toFixed(2)}×` : "–");
  rows.push([what, value, aim, ratio("eager"), ratio("compiled")]);
  console.log(`| ${rows.at(-1).join(" | ")} |`);
}

const rate = (taken, flops) => `${ms(taken)}, ${(flops / taken / 1e12).toFixed(0)} TFLOP/s`;
async function recordPlain(what, args, flops) {
  if (!plain) return;
  const taken = await time(args, 20, plain);
  record(`${what}, without wgmma`, rate(taken, flops), "", taken);
}

console.log("| what | measured | aim | eager PyTorch | compiled PyTorch |");
console.log("| --- | --- | --- | --- | --- |");

// ---- operations ----
const copied = small ? { rows: 64, cols: 512 } : { rows: 1 << 16, cols: 1 << 13 };
const copy = await time({ operation: "copy", ...copied }, 20);
const bandwidth = (2 * 2 * copied.rows * copied.cols) / copy;
record("copy, bytes read and written a second", `${(bandwidth / 1e9).toFixed(0)} GB/s`, "", copy);

{
  const sizes = small ? { m: 1, k: 64, n: 512 } : { m: 1, k: 2304, n: 256000 };
  const taken = await time({ operation: "linear", ...sizes }, 50);
  const rate = (2 * sizes.k * sizes.n) / taken;
  record(
    `decode, 1 row: weights read, [${sizes.n}, ${sizes.k}]`,
    `${(rate / 1e9).toFixed(0)} GB/s, ${((100 * rate) / bandwidth).toFixed(0)} % of the copy`,
    "≥ 80 %",
    taken,
  );
}
{
  const head = small
    ? { channels: 16, condition: 64, width: 64, depth: 2, steps: 4, tokens: 1 }
    : { channels: 16, condition: 2304, width: 1280, depth: 8, steps: 100, tokens: 1 };
  for (const tokens of small ? [1] : [1, 64]) {
    const taken = await time({ operation: "head", ...head, tokens }, 20);
    const sizes = Object.entries({ ...head, tokens }).flatMap(([k, v]) => [`--${k}`, String(v)]);
    record(
      `head: ${head.steps} steps, depth ${head.depth}, width ${head.width}, ${tokens} token(s) with guidance`,
      ms(taken),
      tokens === 1 ? "≤ 1.5 ms" : "",
      taken,
      await peer("head", sizes),
    );
  }
}
{
  const sizes = small
    ? { rows: 128, heads: 2, kvHeads: 1, headDim: 64 }
    : { rows: 2048, heads: 8, kvHeads: 4, headDim: 256 };
  const args = { operation: "attention", ...sizes, softCap: 50 };
  const taken = await time(args, 20);
  const flops = 4 * sizes.rows ** 2 * sizes.heads * sizes.headDim;
  const what = `prefill attention, head ${sizes.headDim}, soft cap, ${sizes.rows} rows that all see each other`;
  record(
    what,
    rate(taken, flops),
    "≥ 400 TFLOP/s",
    taken,
    await peer("attention", [
      ...["--rows", sizes.rows, "--heads", sizes.heads],
      ...["--kv-heads", sizes.kvHeads, "--head-dim", sizes.headDim],
    ]),
  );
  await recordPlain(what, args, flops);
}
{
  const n = small ? 128 : 4096;
  const args = { operation: "linear", m: n, k: n, n };
  const taken = await time(args, 20);
  const what = `bf16 product ${n}³`;
  record(
    what,
    rate(taken, 2 * n ** 3),
    "≥ 0.80× PyTorch",
    taken,
    await peer("product", ["--size", String(n)]),
  );
  await recordPlain(what, args, 2 * n ** 3);
}
backend.close();
plain?.close();

// ---- models ----
{
  const model = await UniFluid.load(model2b, { device: "cuda", maxSequences: 64 });
  const settings = small ? { steps: 2 } : { steps: 100 };
  const draw = (batch) => () =>
    seconds(() =>
      Promise.all(
        Array.from({ length: batch }, (_, i) =>
          // The autoencoder of this size is more than a simulation can do in a test.
          small
            ? model.generateLatents("a red circle", { ...settings, seed: 7 + i })
            : model.generate("a red circle", { ...settings, seed: 7 + i }),
        ),
      ),
    );
  // A picture of PyTorch's takes long, and differs little from one time to the next.
  const few = ["--steps", settings.steps, "--rounds", 1, "--warm", 1];
  for (const batch of small ? [1] : [1, 64]) {
    await draw(batch)();
    const taken = await several(draw(batch));
    const alone = batch === 1;
    // PyTorch at the best of several batches, as seconds of as many pictures as ours.
    const theirs = alone ? await peer("generate", [...few, "--batch", 1]) : {};
    let best = "";
    for (const size of alone ? [] : BATCHES) {
      const found = await peer("generate", [...few, "--batch", size, "--ways", "compiled"]);
      const time = found && (found.compiled * batch) / size;
      if (!time || time >= (theirs.compiled ?? Infinity)) continue;
      theirs.compiled = time;
      best = `; PyTorch at its best batch of ${BATCHES.join(", ")}: ${size}`;
    }
    record(
      `256² images, unifluid-2b, guidance, batch ${batch}${best}`,
      alone ? `${taken.toFixed(3)} s` : `${(batch / taken).toFixed(1)} images/s`,
      alone ? "≤ 1.0 s; 15× eager, 5× compiled" : "≥ 30 images/s; 5× compiled",
      taken,
      theirs,
    );
  }
  await model.dispose();
}
if (!small) {
  const folder = randomCheckpoint("sd-vae", work);
  const latents = Float32Array.from({ length: 64 * 64 * 4 }, (_, i) => Math.sin(i));
  const decode = async () => {
    const model = await UniFluid.load(folder, { device: "cuda" });
    const run = () => seconds(() => model.decodeLatents(latents));
    await run();
    const taken = await several(run);
    await model.dispose();
    return taken;
  };
  const what = "SD-VAE shape, decode at 512², bf16";
  const taken = await decode();
  const theirs = await peer("vae", ["--checkpoint", folder]);
  record(what, ms(taken), "≤ compiled PyTorch", taken, theirs);
  if (plain) {
    const without = await withoutWarpgroups(decode);
    record(`${what}, without wgmma`, ms(without), "", without);
  }
}
if (!options.work) rmSync(work, { recursive: true, force: true });

/** Of the checkout, or of the pack that brought this program. */
function commit() {
  const packed = join(root, "build", "commit");
  if (existsSync(packed)) return readFileSync(packed, "utf8").trim();
  const { status, stdout } = spawnSync("git", ["rev-parse", "--short", "HEAD"], { cwd: root });
  return status === 0 ? stdout.toString().trim() : "unknown";
}

const heading =
  `Commit ${commit()}, ${device.name}, compute capability ${device.capability}, driver for CUDA ${device.driver}, ` +
  `library for ${device.runtime}; medians of ${rounds} rounds${peerMissing ? "; PyTorch was not there, or failed where a dash stands" : ""}.`;
console.log(`\n${heading}`);
if (!small) {
  const table = [
    ["what", "measured", "aim", "eager PyTorch takes", "compiled PyTorch takes"],
    ["---", "---", "---", "---", "---"],
    ...rows,
  ];
  const name = device.name
    .toLowerCase()
    .replace(/^nvidia /, "")
    .replace(/[^a-z0-9]+/g, "-");
  const file = join(root, "bench", "results", `${name}.md`);
  const text = `# ${device.name}\n\n${heading}\n\n${table.map((row) => `| ${row.join(" | ")} |`).join("\n")}\n`;
  writeFileSync(file, text);
  console.log(`${file} is written`);
}
