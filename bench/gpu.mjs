// The speed of the CUDA backend on the GPU of this machine, beside PyTorch on the same device in the same run;
// `npm run gpu` runs it after the checks. Writes bench/results/<device>-run.md, with commit and driver, after each figure;
// where the environment's OUT names a folder, there too.
//
//   node bench/gpu.mjs [--reference DIR] [--python python3] [--work DIR] [--rounds N] [--budget SECONDS]
//                      [--only ops,head,images,vae] [--small] [--peer-device cuda] [--prepare SECONDS] [--wait]
//
// --reference is the folder of the PyTorch reference implementation (bench/gpu_peer.py says how it runs). Without it
// only our figures are written. Its programs compile first, all at once, for at most --prepare seconds, and do nothing
// while ours are taken. Ours come first, then PyTorch's, the most telling ones first, while --budget lasts, and ours
// with other kernels of the same device.
// --wait: while they compile, other programs may use the device; a line on standard input says that it is free, and how
// many seconds are left. --only: those alone, into a file of their own. --small: tiny sizes and nothing written but into
// OUT, to try the program itself, also on the simulated library.
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { randomCheckpoint } from "./checkpoints.mjs";
import { commit, median, seconds } from "./figures.mjs";
import { Peer } from "./peers.mjs";
import { fileName, inCell, Table } from "./table.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const { UniFluid } = await import("../dist/index.mjs");
const require = createRequire(import.meta.url);
const native = require(process.env.UNIFLUID_NATIVE ?? "../build/Release/unifluid.node");
const tests = require(process.env.UNIFLUID_TEST_ADDON ?? "../build/Release/unifluid_test.node");
const library =
  process.env.UNIFLUID_CUDA_LIBRARY ?? join(root, "build", "Release", "unifluid_cuda.so");
process.env.UNIFLUID_CUDA_LIBRARY = library;

const SECTIONS = ["ops", "head", "images", "vae"];
const { values: options } = parseArgs({
  options: {
    python: { type: "string", default: "python3" },
    "peer-device": { type: "string", default: "cuda" },
    reference: { type: "string", default: "" },
    work: { type: "string" },
    rounds: { type: "string", default: "5" },
    budget: { type: "string", default: "Infinity" },
    prepare: { type: "string", default: "120" },
    wait: { type: "boolean", default: false },
    only: { type: "string", default: SECTIONS.join(",") },
    small: { type: "boolean", default: false },
  },
});
const { small } = options;
const wanted = options.only.split(",");
if (!wanted.every((name) => SECTIONS.includes(name)))
  throw new Error(`expected --only to name some of ${SECTIONS} but received ${options.only}`);
const rounds = small ? 1 : Number(options.rounds);
let end = performance.now() + 1000 * Number(options.budget);
const secondsLeft = () => (end - performance.now()) / 1000;

const work = options.work ?? mkdtempSync(join(tmpdir(), "unifluid-gpu-"));
const checkpoint = (name) => randomCheckpoint(name, work, join(root, "models", "shapes-64"));

// ---- the table ----

const [device] = await native.cudaDevices(library);
const table = new Table({
  title: device.name,
  name:
    `${fileName(device.name)}-run` +
    (wanted.length < SECTIONS.length ? `-${wanted.join("-")}` : ""),
  folders: [small ? "" : join(root, "bench", "results"), process.env.OUT].filter(Boolean),
  columns: ["what", "measured", "aim", "eager PyTorch takes", "compiled PyTorch takes"],
});
const basis =
  `Commit ${commit()}, ${device.name}, compute capability ${device.capability}, driver for CUDA ${device.driver}, ` +
  `library for ${device.runtime}; medians of ${rounds} rounds, fewer where they take long`;
table.heading = `${basis}.`;

/** The row is there at once; PyTorch's figures come into it later. `seconds`: ours, for the ratios. */
function record(what, value, aim = "", seconds = 0) {
  const row = { cells: [what, value, aim, "–", "–"], seconds };
  table.add(row.cells);
  return row;
}

const ms = (s) => `${(s * 1e3).toFixed(s < 0.01 ? 3 : 1)} ms`;
const rate = (taken, flops) => `${ms(taken)}, ${(flops / taken / 1e12).toFixed(0)} TFLOP/s`;

/** PyTorch's seconds for the same work, and the ratio. */
function setPeer(row, way, seconds, note = "") {
  row.cells[way === "eager" ? 3 : 4] =
    `${ms(seconds)}${note}: ${(seconds / row.seconds).toFixed(2)}×`;
  table.show(row.cells);
}
function setFailed(row, way, reason) {
  row.cells[way === "eager" ? 3 : 4] = inCell(reason);
  table.show(row.cells);
}

// ---- taking time ----

/** Once to warm up, then rounds; after 8 s no new one begins. */
async function several(run) {
  await run();
  const begin = performance.now();
  const values = [];
  while (values.length < rounds && (values.length === 0 || performance.now() - begin < 8_000))
    values.push(await run());
  return median(values);
}

/** Calls between two waits, of ours and of PyTorch's. */
const CALLS = small ? 2 : 20;
/** Seconds a call of an operation. */
const time = (args, on = backend()) => median(on.time({ ...args, repeats: CALLS, rounds }));

// ---- what is measured, by both ----

const PRODUCT = small ? 128 : 4096;
const ATTENTION = small
  ? { rows: 128, heads: 2, kvHeads: 1, headDim: 64 }
  : { rows: 2048, heads: 8, kvHeads: 4, headDim: 256 };
const SOFT_CAPS = [50, 0];
const HEAD = small
  ? { channels: 16, condition: 64, width: 64, depth: 2, steps: 4 }
  : { channels: 16, condition: 2304, width: 1280, depth: 8, steps: 100 };
const TOKENS = small ? [1] : [1, 64];
const PICTURES = small ? "unifluid-small" : "unifluid-2b";
const PICTURE_STEPS = small ? 2 : 100;
/** Of PyTorch's pictures so many of the 256 cells are drawn, and stand for all. */
const PEER_CELLS = small ? 2 : 16;
/** PyTorch may be best in larger batches than ours. */
const BATCHES = small ? [1] : [1, 64, 128];

const openBackend = () => new tests.TestBackend({ library, compute: "bf16" });
let opened;
const backend = () => {
  opened ??= openBackend();
  return opened;
};

// ---- with and without Hopper's products of warpgroups ----

const SETTING = "UNIFLUID_CUDA_WARPGROUPS";
/** What else the kernels of this device may be, as a value of SETTING and words; null: nothing. */
function otherKernels() {
  const description = backend().description();
  if (description.endsWith(", wgmma")) return { value: "0", words: "without wgmma" };
  // Where they round otherwise they are not used, and may still be compared.
  if (description.includes(", no wgmma")) return { value: "1", words: "with wgmma, forced" };
  return null;
}
/** What is opened meanwhile has this setting. */
async function withSetting(setting, value, run) {
  const before = process.env[setting];
  process.env[setting] = value;
  try {
    return await run();
  } finally {
    if (before === undefined) delete process.env[setting];
    else process.env[setting] = before;
  }
}
const withOtherKernels = ({ value }, run) => withSetting(SETTING, value, run);

/** Whether steps of few rows are one launch where they can be. */
const PERSISTENT = "UNIFLUID_CUDA_PERSISTENT";

// ---- our figures; each leaves what is to be done with other kernels, and what PyTorch is to do ----

/** { name, run } each: the same with the other kernels. A fault there must not take the other figures. */
const others = [];

/** Each figure fails alone. */
async function ops() {
  await tryTo("copy and decode", memory);
  const n = PRODUCT;
  await tensorCores(`bf16 product ${n}³`, "≥ 0.80× PyTorch", 2 * n ** 3, {
    ours: { operation: "linear", m: n, k: n, n },
    peer: "product",
  });
  const sizes = ATTENTION;
  const flops = 4 * sizes.rows ** 2 * sizes.heads * sizes.headDim;
  for (const softCap of SOFT_CAPS) {
    const cap = softCap ? "soft cap" : "no soft cap";
    await tensorCores(
      `prefill attention, head ${sizes.headDim}, ${cap}, ${sizes.rows} rows that all see each other`,
      softCap ? "≥ 400 TFLOP/s" : "",
      flops,
      {
        ours: { operation: "attention", ...sizes, softCap },
        peer: `attention ${softCap}`,
      },
    );
  }
}

/** Bytes that a copy reads and writes a second. */
let copied;
function copyBandwidth() {
  const { rows, cols } = small ? { rows: 64, cols: 512 } : { rows: 1 << 14, cols: 1 << 13 };
  copied ??= (2 * 2 * rows * cols) / time({ operation: "copy", rows, cols });
  return copied;
}

function memory() {
  const bandwidth = copyBandwidth();
  record("copy, bytes read and written a second", `${(bandwidth / 1e9).toFixed(0)} GB/s`);

  // The easiest of a step's matrices; the whole step is among the pictures' figures (`decode`).
  const product = small ? { m: 1, k: 64, n: 512 } : { m: 1, k: 2304, n: 256000 };
  const read = (2 * product.k * product.n) / time({ operation: "linear", ...product });
  record(
    `one product of 1 row: weights read, [${product.n}, ${product.k}]`,
    share(read, bandwidth),
  );
}

const share = (read, bandwidth) =>
  `${(read / 1e9).toFixed(0)} GB/s, ${((100 * read) / bandwidth).toFixed(0)} % of the copy`;

async function tensorCores(what, aim, flops, { ours, peer }) {
  await tryTo(what, () => {
    const taken = time(ours);
    answers[peer] = inRow(record(what, rate(taken, flops), aim, taken));
  });
  others.push({
    what,
    run: () => {
      const other = openBackend();
      try {
        return rate(time(ours, other), flops);
      } finally {
        other.close();
      }
    },
  });
}

function head() {
  for (const tokens of TOKENS) {
    const taken = time({ operation: "head", ...HEAD, tokens });
    const what = `head: ${HEAD.steps} steps, depth ${HEAD.depth}, width ${HEAD.width}, ${tokens} token(s) with guidance`;
    answers[`head ${tokens}`] = inRow(
      record(what, ms(taken), tokens === 1 ? "≤ 1.5 ms" : "", taken),
    );
  }
}

/** Tokens of a short and of a long text: what the long one takes more is its further steps. */
const TEXTS = small ? [1, 2] : [8, 72];

/**
 * A whole step of the decoder at one row, as a text is written: every layer, the matrix of logits, the choice of the next
 * token and its way to the host. Weights read: the decoder's matrices, each of them once.
 */
async function decode(model, folder, way = "") {
  const { size } = model.info.image;
  const [few, many] = TEXTS;
  /** Tokens that the text has; less than the limit where the model ends it. */
  const write = async (shade, maxNewTokens) => {
    const pixels = new Uint8Array(3 * size * size).fill(shade);
    const text = model.captionStream({ pixels, width: size, height: size }, { maxNewTokens });
    let piece = await text.next();
    while (!piece.done) piece = await text.next();
    return piece.value.newTokens;
  };
  // Random weights rarely choose the word that ends a text: then not with another picture.
  let shade = 0;
  while (shade < 8 && (await write(shade, many)) < many) shade++;
  if (shade === 8) throw new Error(`no picture has a text of ${many} tokens`);
  const taken = await several(async () => {
    const short = await seconds(() => write(shade, few));
    return ((await seconds(() => write(shade, many))) - short) / (many - few);
  });
  const bytes = decoderBytes(folder);
  record(
    `decode, 1 row${way}: a step of unifluid-2b, ${(bytes / 1e9).toFixed(2)} GB of weights in ${ms(taken)}`,
    share(bytes / taken, copyBandwidth()),
    "≥ 80 %",
  );
}

/** Of the decoder's matrices in bfloat16; the table of words is the matrix of logits. */
function decoderBytes(folder) {
  const file = openSync(join(folder, "model.safetensors"), "r");
  try {
    const size = Buffer.alloc(8);
    readSync(file, size, 0, 8, 0);
    const header = Buffer.alloc(Number(size.readBigUInt64LE()));
    readSync(file, header, 0, header.length, 8);
    return Object.entries(JSON.parse(header.toString()))
      .filter(([name, { shape }]) => name.includes("language_model.") && shape.length === 2)
      .reduce((sum, [, { shape }]) => sum + 2 * shape[0] * shape[1], 0);
  } finally {
    closeSync(file);
  }
}

async function images() {
  const folder = checkpoint(PICTURES);
  const model = await UniFluid.load(folder, { device: "cuda", maxSequences: 64 });
  await tryTo("decode, 1 row", () => decode(model, folder));
  const settings = { steps: PICTURE_STEPS };
  // The autoencoder of this size is more than a simulation can do in a test.
  const draw = (seed, by = model) =>
    small
      ? by.generateLatents("a red circle", { ...settings, seed })
      : by.generate("a red circle", { ...settings, seed });
  const rows = {};
  for (const batch of small ? [1] : [1, 64]) {
    const taken = await several(() =>
      seconds(() => Promise.all(Array.from({ length: batch }, (_, i) => draw(7 + i)))),
    );
    rows[batch] = record(
      `256² images, unifluid-2b, guidance, batch ${batch}; PyTorch: ${PEER_CELLS} of 256 cells, scaled`,
      batch === 1 ? `${taken.toFixed(3)} s` : `${(batch / taken).toFixed(1)} images/s`,
      batch === 1 ? "≤ 1.0 s; 15× eager, 5× compiled" : "≥ 30 images/s; 5× compiled",
      taken,
    );
  }
  await model.dispose();
  // Elsewhere than on Hopper there is no other way.
  if (model.info.device.endsWith(", wgmma"))
    await tryTo("steps operation by operation", () =>
      withSetting(PERSISTENT, "0", async () => {
        const other = await UniFluid.load(folder, { device: "cuda", maxSequences: 1 });
        try {
          await decode(other, folder, ", operation by operation");
          const taken = await several(() => seconds(() => draw(7, other)));
          record("256² image, batch 1, steps operation by operation", `${taken.toFixed(3)} s`);
        } finally {
          await other.dispose();
        }
      }),
    );
  const answer = pictures(rows);
  for (const [key] of PICTURE_PROGRAMS) answers[key] = answer;
}

/** PyTorch's answers beside ours: alone, and of many the batch at which it is best, as seconds of as many as ours. */
function pictures(rows) {
  const best = {};
  return ({ way, batch, seconds, failed }) => {
    if (batch === 1)
      return failed ? setFailed(rows[1], way, failed) : setPeer(rows[1], way, seconds);
    const row = rows[64];
    if (!row) return;
    if (failed) {
      if (!best[way]) setFailed(row, way, failed);
      return;
    }
    const taken = (seconds * 64) / batch;
    if (taken >= (best[way] ?? Infinity)) return;
    best[way] = taken;
    setPeer(row, way, taken, ` in batches of ${batch}`);
  };
}

async function vae() {
  if (small) return;
  const folder = checkpoint("sd-vae");
  const latents = Float32Array.from({ length: 64 * 64 * 4 }, (_, i) => Math.sin(i));
  const decode = async () => {
    const model = await UniFluid.load(folder, { device: "cuda" });
    const taken = await several(() => seconds(() => model.decodeLatents(latents)));
    await model.dispose();
    return taken;
  };
  const what = "SD-VAE shape, decode at 512², bf16";
  const taken = await decode();
  answers.vae = inRow(record(what, ms(taken), "≤ compiled PyTorch", taken));
  others.push({ what, run: async () => ms(await decode()) });
}

// ---- PyTorch's figures ----

const BOTH = ["eager", "compiled"];
/** Several, since each has much to compile. */
const PICTURE_PROGRAMS = [
  ["pictures eager", "eager", BATCHES],
  ["a picture compiled", "compiled", BATCHES.slice(0, 1)],
  ...(small ? [] : [["pictures compiled", "compiled", BATCHES.slice(1)]]),
];
/** Its programs. */
const PROGRAMS = {
  product: { of: "ops", name: "product", args: { size: PRODUCT, calls: CALLS } },
  ...Object.fromEntries(
    SOFT_CAPS.map((softCap) => [
      `attention ${softCap}`,
      { of: "ops", name: "attention", args: { ...ATTENTION, softCap, calls: CALLS } },
    ]),
  ),
  ...Object.fromEntries(
    TOKENS.map((tokens) => [
      `head ${tokens}`,
      // Its hundred steps take long enough that few calls tell.
      { of: "head", name: "head", args: { ...HEAD, tokens, calls: 4, warm: 1 } },
    ]),
  ),
  ...(!small && { vae: { of: "vae", name: "vae", checkpoint: "sd-vae" } }),
  ...Object.fromEntries(
    PICTURE_PROGRAMS.map(([key, way, batches]) => [
      key,
      {
        of: "images",
        name: "generate",
        ways: [way],
        batches,
        checkpoint: PICTURES,
        // A picture of PyTorch's takes long, and differs little from one time to the next.
        args: { steps: PICTURE_STEPS, cells: PEER_CELLS, rounds: 1, warm: 1 },
      },
    ]),
  ),
};
/** What becomes of the answers of each program, once our own figure is there. */
const answers = {};
const inRow = (row) => (found) =>
  found.failed ? setFailed(row, found.way, found.failed) : setPeer(row, found.way, found.seconds);

/** "kvHeads" is --kv-heads there. */
const asOption = ([name, value]) => [
  `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`,
  String(value),
];

const programs = Object.entries(PROGRAMS)
  .filter(([, { of }]) => options.reference && wanted.includes(of))
  .map(([key, { ways = BOTH, batches = [1], ...rest }]) => ({ key, ways, batches, ...rest }));

/** Each compiles with some of the processors, as many run at once. */
const env = {
  TORCHINDUCTOR_COMPILE_THREADS: String(Math.max(1, Math.floor(availableParallelism() / 4))),
};

function startPeer(program) {
  const settings = {
    reference: options.reference,
    device: options["peer-device"],
    rounds: Math.min(rounds, 3),
    ways: program.ways,
    batches: program.batches,
    ...program.args,
    ...(program.checkpoint && { checkpoint: checkpoint(program.checkpoint) }),
  };
  const args = Object.entries(settings).flatMap(asOption);
  const peer = new Peer(
    options.python,
    [join(root, "bench", "gpu_peer.py"), program.name, ...args],
    Number.POSITIVE_INFINITY,
    env,
  );
  program.peer = peer;
  program.prepared = (async () => {
    for (let found = await peer.next(); found; found = await peer.next()) {
      if (found.torch) table.heading = `${basis}; PyTorch ${found.torch}.`;
      if (found.prepared) break;
    }
    program.ready = true; // or it has ended, which its answers tell
  })();
}

const pauseOf = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds).unref());

/** Until all have compiled, or so many seconds. */
async function waitForPeers(seconds) {
  const all = Promise.all(programs.map(({ prepared }) => prepared));
  await Promise.race([all, pauseOf(seconds)]);
  const late = programs.filter(({ ready }) => !ready).map(({ key }) => key);
  if (late.length > 0) console.log(`PyTorch still compiles: ${late.join(", ")}`);
}

/** Seconds that a question may take; that are kept to end in good order. */
const LONGEST = 45;
const SPARE = 4;

async function askPeer({ key, peer, prepared, ready }, way, batch) {
  const answer = answers[key];
  if (!answer) return; // ours has failed
  const left = secondsLeft() - SPARE;
  if (left < 3) return answer({ way, batch, failed: "no time is left" });
  peer.within(Math.min(ready ? LONGEST : 2 * LONGEST, left));
  peer.tell(`${way} ${batch}`);
  await prepared;
  const found = await peer.next();
  peer.within(Number.POSITIVE_INFINITY); // till it is asked again
  answer(found ?? { way, batch, failed: (await peer.end()) ?? "it ended" });
}

/**
 * The two batches that ours has come before the others; what has compiled, before what has not. One answers while the
 * others stand still, as long as it is one that has compiled.
 */
async function askPeers() {
  const questions = programs.flatMap((program) =>
    program.ways.flatMap((way) =>
      program.batches.map((batch) => {
        const turn = BATCHES.indexOf(batch);
        return { program, way, batch, turn, place: turn > 1 ? 2 : program.ready ? 0 : 1 };
      }),
    ),
  );
  questions.sort((a, b) => a.place - b.place || a.turn - b.turn);
  for (const { program, way, batch, place } of questions) {
    for (const { peer } of place > 0 ? programs : [program]) peer.resume();
    await tryTo(`PyTorch, ${program.key}, ${way}`, () => askPeer(program, way, batch));
    if (place === 0) program.peer.pause();
  }
}

// ---- all of it ----

/** What a fault of the device took; the driver gives this process no other context then. */
let lost;

/** What fails is in the table, and the rest goes on. */
async function tryTo(what, run) {
  try {
    if (lost) throw new Error(`not run: the device had failed at "${lost}"`);
    await run();
  } catch (error) {
    if (error.code === "DEVICE_ERROR") lost ??= what;
    console.error(error);
    record(what, inCell(error));
    process.exitCode = 1;
    opened?.close(); // which a fault has made useless
    opened = undefined;
  }
}

for (const program of programs) startPeer(program);
if (options.wait) {
  const [line] = await once(process.stdin.setEncoding("utf8"), "data");
  end = performance.now() + 1000 * Number(line);
  process.stdin.destroy();
}
await waitForPeers(Math.min(Number(options.prepare), secondsLeft() / 4));
for (const { peer } of programs) peer.pause();

const sections = { ops, head, images, vae };
for (const name of SECTIONS) if (wanted.includes(name)) await tryTo(name, sections[name]);
opened?.close();
lost = undefined; // for the peers, which are processes of their own
await askPeers();
await Promise.all(programs.map(({ peer }) => peer.kill()));
opened = undefined;
await tryTo("other kernels", async () => {
  const other = others.length > 0 && otherKernels();
  if (!other) return;
  for (const { what, run } of others) {
    const title = `${what}, ${other.words}`;
    await tryTo(title, async () => record(title, await withOtherKernels(other, run)));
  }
});
opened?.close();
if (!options.work) rmSync(work, { recursive: true, force: true });
table.write();
console.log(`\n${table.heading}`);
for (const folder of table.folders) console.log(`${join(folder, table.name)}.md is written`);
