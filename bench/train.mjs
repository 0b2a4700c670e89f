// One training step, ours beside PyTorch's, in turn.
//
//   npm run build && npm run bench:train -- --python PYTHON --reference DIR [--rounds 10] [--threads 2]
//       [--size shipped|300m] [--device cpu|cuda]
//
// --size: the shipped model's, or about 300 million parameters. On a GPU products are in bfloat16, and PyTorch runs
// eager and compiled; UNIFLUID_CUDA_LIBRARY may name the library. Both take batches of the same sequences: 24
// drawings, 8 captions, 8 answers, 8 edits, each image token at 4 timesteps. PyTorch is the reference's training step
// (padded batches); --reference is its folder.
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadAddon } from "../dist/addon.js";
import { initCheckpoint } from "../dist/init/init.js";

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
  },
});
const SIZES = { shipped: "examples/train/model.yaml", "300m": "bench/train-300m.yaml" };
if (!(values.size in SIZES) || !["cpu", "cuda"].includes(values.device))
  throw new Error("expected --size shipped or 300m and --device cpu or cuda");
const onGpu = values.device === "cuda";
const library =
  process.env.UNIFLUID_CUDA_LIBRARY ?? join(root, "build", "Release", "unifluid_cuda.so");
const rounds = Number(values.rounds);
const threads = Number(values.threads);

const BATCH = {
  multiplier: 4,
  generate: { count: 24, prefix: 16 },
  caption: { count: 8, prefix: 5, words: 16 },
  answer: { count: 8, prefix: 13, words: 2 },
  edit: { count: 8, prefix: 10 },
};
const EXAMPLES = 48;

const folder = await mkdtemp(join(tmpdir(), "bench-train-"));
try {
  const checkpoint = join(folder, "model");
  const options = { seed: 1n, tokenizer: shapes, vae: shapes };
  const { spec } = await initCheckpoint(join(root, SIZES[values.size]), checkpoint, options);
  const results = [];
  for (const [compute, way] of onGpu
    ? [
        ["bf16", "eager"],
        ["bf16", "compiled"],
      ]
    : [
        ["f32", "eager"],
        ["bf16", "eager"],
      ]) {
    const ours = await ourStep(spec, compute);
    const theirs = values.python ? await peerStep(checkpoint, compute, way) : undefined;
    const times = { ours: [], theirs: [] };
    for (let i = 0; i < rounds; i++) {
      times.ours.push(await ours.step());
      if (theirs) times.theirs.push(await theirs.step());
    }
    results.push([
      compute,
      way,
      ours.description,
      median(times.ours),
      theirs && median(times.theirs),
    ]);
    ours.close();
    theirs?.close();
  }
  const machine = onGpu ? results[0][2] : `${cpus()[0].model}, ${threads} threads`;
  console.log(`${machine}, size ${values.size}, median of ${rounds} steps in turn`);
  console.log("| products | ours | examples a second | PyTorch | | PyTorch / ours |");
  console.log("| --- | --- | --- | --- | --- | --- |");
  for (const [compute, way, , ours, theirs] of results) {
    const peer = theirs ? `${(1000 * theirs).toFixed(0)} ms` : "-";
    const ratio = theirs ? (theirs / ours).toFixed(2) : "-";
    console.log(
      `| ${compute} | ${(1000 * ours).toFixed(0)} ms | ${(EXAMPLES / ours).toFixed(0)} | ${way} | ${peer} | ${ratio} |`,
    );
  }
} finally {
  await rm(folder, { recursive: true, force: true });
}

function median(list) {
  const sorted = [...list].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

async function ourStep(spec, compute) {
  const trainer = await loadAddon().createTrainer(spec, {
    threads,
    maxMemory: 0,
    compute,
    recompute: false,
    seed: 1n,
    textWeight: 0.5,
    batchMultiplier: BATCH.multiplier,
    noiseWeightCap: 1,
    contextNoise: 0,
    order: "random",
    frozen: [],
    beta1: 0.9,
    beta2: 0.98,
    epsilon: 1e-8,
    weightDecay: 0.02,
    clipNorm: 1,
    emaDecay: 0.998,
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
  const run = async () => {
    const begun = performance.now();
    await trainer.step([batch], { step: ++step, learningRate: 1e-4 });
    return (performance.now() - begun) / 1000;
  };
  await run(); // memory is allocated
  const description = trainer.description();
  return { description, step: run, close: () => trainer.dispose() };
}

async function peerStep(checkpoint, compute, way) {
  const args = [
    join(root, "bench", "train_peer.py"),
    checkpoint,
    "--reference",
    values.reference,
    "--threads",
    String(threads),
    "--dtype",
    compute,
    "--device",
    values.device,
    "--batch",
    JSON.stringify(BATCH),
    ...(way === "compiled" ? ["--compile"] : []),
  ];
  const child = spawn(values.python, args, { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error("the peer ended");
    return value;
  };
  if ((await next()) !== "ready") throw new Error("the peer did not start");
  return {
    step: async () => {
      child.stdin.write("\n");
      return Number(await next());
    },
    close: () => child.stdin.end(),
  };
}
