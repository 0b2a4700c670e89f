// One training step of the shipped model's size, ours beside PyTorch's, in turn.
//
//   npm run build && npm run bench:train -- --python PYTHON --reference DIR [--rounds 10] [--threads 2]
//
// Both take batches of the same sequences: 24 drawings, 8 captions, 8 answers, 8 edits, each image token at 4
// timesteps. PyTorch is the reference's training step (padded batches); --reference is its folder.
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { cpus, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const require = createRequire(import.meta.url);
const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "../dist");
const { initCheckpoint } = require(join(dist, "init/init.js"));
const { loadAddon } = require(join(dist, "addon.js"));

const { values } = parseArgs({
  options: {
    python: { type: "string" },
    reference: { type: "string" },
    rounds: { type: "string", default: "10" },
    threads: { type: "string", default: "2" },
  },
});
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
  const options = { seed: 1n, tokenizer: "shapes-64", vae: "shapes-64" };
  const { spec } = await initCheckpoint(
    join(here, "../examples/train/model.yaml"),
    checkpoint,
    options,
  );
  const results = {};
  for (const compute of ["f32", "bf16"]) {
    const ours = await ourStep(spec, compute);
    const theirs = values.python ? await peerStep(checkpoint, compute) : undefined;
    const times = { ours: [], theirs: [] };
    for (let i = 0; i < rounds; i++) {
      times.ours.push(await ours.step());
      if (theirs) times.theirs.push(await theirs.step());
    }
    ours.close();
    theirs?.close();
    results[compute] = { ours: median(times.ours), theirs: theirs && median(times.theirs) };
  }
  console.log(`${cpus()[0].model}, ${threads} threads, median of ${rounds} steps in turn`);
  console.log("| products | ours | examples a second | PyTorch | PyTorch / ours |");
  console.log("| --- | --- | --- | --- | --- |");
  for (const [compute, { ours, theirs }] of Object.entries(results)) {
    const peer = theirs ? `${(1000 * theirs).toFixed(0)} ms` : "-";
    const ratio = theirs ? (theirs / ours).toFixed(2) : "-";
    console.log(
      `| ${compute} | ${(1000 * ours).toFixed(0)} ms | ${(EXAMPLES / ours).toFixed(0)} | ${peer} | ${ratio} |`,
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
    order: "random",
    frozen: [],
    beta1: 0.9,
    beta2: 0.98,
    epsilon: 1e-8,
    weightDecay: 0.02,
    clipNorm: 1,
    emaDecay: 0.998,
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
  return { step: run, close: () => trainer.dispose() };
}

async function peerStep(checkpoint, compute) {
  const args = [
    join(here, "train_peer.py"),
    checkpoint,
    "--reference",
    values.reference,
    "--threads",
    String(threads),
    "--dtype",
    compute,
    "--batch",
    JSON.stringify(BATCH),
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
