// One training step, ours beside PyTorch's.
//
//   npm run build && npm run bench:train -- --python PYTHON --reference DIR [--rounds 10] [--threads 2]
//       [--size shipped|300m] [--device cpu|cuda] [--ways eager,compiled] [--peer-limit SECONDS] [--wait]
//
// --size: the shipped model's, or about 300 million parameters. Both take batches of the same sequences: 24 drawings,
// 8 captions, 8 answers, 8 edits, half of that for 300m, each image token at 4 timesteps. PyTorch is the reference's
// training step (padded batches); --reference is its folder; it may take --peer-limit seconds in all.
//
// On the CPU the two take turns, since what else the machine does changes. On a GPU, which may not have the memory for
// both, ours comes first; products are in bfloat16, --ways says how PyTorch runs, UNIFLUID_CUDA_LIBRARY may name the
// library, and the table is written to bench/results/ too. --wait: for a line on standard input, which says how many
// seconds are left; PyTorch, of the first of --ways, starts and compiles before it, and stands still while ours is
// timed. Where the environment's OUT names a folder, also there.
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadAddon } from "../dist/addon.js";
import { readCheckpoint } from "../dist/checkpoint/checkpoint.js";
import { initCheckpoint } from "../dist/init/init.js";
import { median, seconds } from "./figures.mjs";
import { Peer } from "./peers.mjs";
import { fileName, inCell, Table } from "./table.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const shapes = join(root, "models", "shapes-64");

const { values } = parseArgs({
  options: {
    python: { type: "string" },
    reference: { type: "string" },
    rounds: { type: "string", default: "10" },
    threads: { type: "string", default: "2" },
    size: { type: "string", default: "shipped" },
    device: { type: "string", default: "cpu" },
    ways: { type: "string", default: "eager" },
    "peer-limit": { type: "string", default: "600" },
    wait: { type: "boolean", default: false },
  },
});
/** What is trained, as a checkpoint: the shipped model itself, or a fresh one, made in `folder`. */
const SIZES = {
  shipped: () => readCheckpoint(shapes),
  "300m": (folder) =>
    initCheckpoint(join(root, "bench", "train-300m.yaml"), join(folder, "model"), {
      seed: 1n,
      tokenizer: shapes,
      vae: shapes,
    }),
};
if (!(values.size in SIZES) || !["cpu", "cuda"].includes(values.device))
  throw new Error("expected --size shipped or 300m and --device cpu or cuda");
if (!/^(eager|compiled)(,(eager|compiled))*$/.test(values.ways))
  throw new Error(`expected --ways to name eager, compiled or both but received ${values.ways}`);
const onGpu = values.device === "cuda";
const library =
  process.env.UNIFLUID_CUDA_LIBRARY ?? join(root, "build", "Release", "unifluid_cuda.so");
const rounds = Number(values.rounds);
const threads = Number(values.threads);

const share = values.size === "300m" ? 1 / 2 : 1;
const BATCH = {
  multiplier: 4,
  generate: { count: 24 * share, prefix: 16 },
  caption: { count: 8 * share, prefix: 5, words: 16 },
  answer: { count: 8 * share, prefix: 13, words: 2 },
  edit: { count: 8 * share, prefix: 10 },
};
const EXAMPLES = 48 * share;

const device = onGpu ? (await loadAddon().cudaDevices(library))[0].name : cpus()[0].model;
const machine = onGpu ? device : `${device}, ${threads} threads`;
const table = new Table({
  name: `${fileName(device)}-training-${values.size}-${values.ways.replace(",", "-")}`,
  folders: [onGpu ? join(root, "bench", "results") : "", process.env.OUT].filter(Boolean),
  title: `A step of training: ${device}`,
  columns: ["products", "ours", "examples a second", "PyTorch", "", "PyTorch / ours"],
});
const basis = `${machine}, size ${values.size}, median of ${rounds} steps${onGpu ? "" : " in turn"}`;
table.heading = `${basis}.`;
console.log(table.heading);

/** A peer that has started before its turn; seconds that it has. */
let early = null;
let peerLimit = Number(values["peer-limit"]);

const folder = await mkdtemp(join(tmpdir(), "bench-train-"));
try {
  const { spec, directory } = await SIZES[values.size](folder);
  const cases = onGpu
    ? values.ways.split(",").map((way) => ["bf16", way])
    : ["f32", "bf16"].map((compute) => [compute, "eager"]);
  if (values.wait) await myTurn(directory, ...cases[0]);
  for (const [compute, way] of cases) await measure(spec, directory, compute, way);
} finally {
  await rm(folder, { recursive: true, force: true });
}

/** Starts PyTorch, and waits for the line that says that the device is free. */
async function myTurn(checkpoint, compute, way) {
  early = startPeer(checkpoint, compute, way);
  const [line] = await once(process.stdin.setEncoding("utf8"), "data");
  process.stdin.destroy();
  peerLimit = Math.min(peerLimit, Number(line) - 2);
  early?.pause();
  early?.within(peerLimit);
}

/** The one that has started; else another. */
function peerFor(checkpoint, compute, way) {
  const peer = early ?? startPeer(checkpoint, compute, way);
  early = null;
  peer?.resume();
  return peer;
}

/** One row of the table. What fails is in it, and the rest goes on. */
async function measure(spec, checkpoint, compute, way) {
  const cells = [compute, "-", "-", way, "-", "-"];
  let peer = null;
  try {
    const times = [];
    const ours = await ourStep(spec, compute);
    try {
      if (!onGpu) peer = peerFor(checkpoint, compute, way);
      await peer?.ready;
      for (let i = 0; i < rounds; i++) {
        times.push(await ours.step());
        await peer?.step();
      }
    } finally {
      ours.close();
    }
    const taken = median(times);
    cells[1] = `${(1000 * taken).toFixed(0)} ms`;
    cells[2] = (EXAMPLES / taken).toFixed(0);
    table.add(cells);
    if (onGpu) peer = peerFor(checkpoint, compute, way);
    if (!peer) return;
    await peer.ready;
    if (onGpu) for (let i = 0; i < rounds; i++) await peer.step();
    const theirs = await peer.end();
    cells[4] = `${(1000 * theirs).toFixed(0)} ms`;
    cells[5] = (theirs / taken).toFixed(2);
  } catch (error) {
    console.error(error);
    const oursFailed = cells[1] === "-";
    cells[oursFailed ? 1 : 4] = inCell(error);
    if (oursFailed) process.exitCode = 1;
    await (peer ?? early)?.kill();
    early = null;
  }
  if (table.rows.includes(cells)) table.show(cells);
  else table.add(cells);
}

async function ourStep(spec, compute) {
  const trainer = await loadAddon().createTrainer(spec, {
    threads,
    maxMemory: 0,
    compute: { f32: "float32", bf16: "bfloat16" }[compute],
    seed: 1n,
    frozen: [],
    unified: {
      recompute: false,
      textWeight: 0.5,
      batchMultiplier: BATCH.multiplier,
      noiseWeightCap: 1,
      contextNoise: 0,
      order: "random",
    },
    optimizer: {
      beta1: 0.9,
      beta2: 0.98,
      epsilon: 1e-8,
      weightDecay: 0.02,
      clipNorm: 1,
      emaDecay: 0.998,
    },
    ...(onGpu && { cuda: { library, device: 0, dtype: "float32" } }),
  });
  const floats = (n) => Float32Array.from({ length: n }, () => 2 * Math.random() - 1);
  const ids = (n) => Int32Array.from({ length: n }, () => 4 + Math.floor(470 * Math.random()));
  const image = () => floats(spec.image.grid ** 2 * spec.image.tokenChannels);
  const pixels = () => floats(3 * spec.vision.imageSize ** 2);
  const make = {
    generate: (b) => ({ tokens: ids(b.prefix), targetLatents: image() }),
    caption: (b) => ({
      tokens: ids(b.prefix),
      visionPixels: pixels(),
      targetTokens: ids(b.words),
    }),
    edit: (b) => ({
      tokens: ids(b.prefix),
      visionPixels: pixels(),
      sourceLatents: image(),
      targetLatents: image(),
    }),
  };
  make.answer = make.caption;
  const batch = Object.keys(make).flatMap((task) =>
    Array.from({ length: BATCH[task].count }, () => ({ task, ...make[task](BATCH[task]) })),
  );
  let step = 0;
  const run = () => seconds(() => trainer.step([batch], { step: ++step, learningRate: 1e-4 }));
  await run(); // memory is allocated
  return { step: run, close: () => trainer.dispose() };
}

/** null without --python. */
function startPeer(checkpoint, compute, way) {
  if (!values.python) return null;
  const args = [
    ...[join(root, "bench", "train_peer.py"), checkpoint, "--reference", values.reference],
    ...["--threads", String(threads), "--dtype", compute, "--device", values.device],
    ...["--batch", JSON.stringify(BATCH), ...(way === "compiled" ? ["--compile"] : [])],
  ];
  // Each of several that may compile at once has some of the processors.
  const env = onGpu && { TORCHINDUCTOR_COMPILE_THREADS: "4" };
  const peer = new Peer(values.python, args, peerLimit, env || {});
  const times = [];
  let dead = false;
  const ready = peer.next().then((answer) => {
    dead = !answer;
    if (answer) table.heading = `${basis}; PyTorch ${answer.ready}.`;
  });
  return {
    ready,
    within: (limit) => peer.within(limit),
    pause: () => peer.pause(),
    resume: () => peer.resume(),
    /** A peer that has died is noticed at the end. */
    step: async () => {
      const answer = dead ? null : await peer.ask();
      dead = !answer;
      if (answer && !answer.compiled) times.push(answer.seconds);
    },
    end: async () => {
      const reason = await peer.end();
      if (reason) throw new Error(reason);
      if (times.length === 0) throw new Error("it compiles anew in every step");
      return median(times);
    },
    kill: () => peer.kill(),
  };
}
