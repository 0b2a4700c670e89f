// The speed of the CPU backend beside PyTorch's, in one run: ours and the peer take turns, and the ratio of
// each pair counts, because machines drift.
//
//   npm run bench -- [case ...] [--python python3] [--reference DIR] [--work DIR] [--threads N]
//                    [--rounds N] [--isa NAME] [--out FILE]
//
// --reference is the folder of the PyTorch reference implementation. Without PyTorch only our figures are
// printed. --work keeps the random checkpoints, one of which has 5 GB; without it a temporary folder is
// used and removed.
import { appendFileSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism, cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { randomCheckpoint } from "./checkpoints.mjs";
import { commit, median, seconds } from "./figures.mjs";
import { Peer } from "./peers.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const { UniFluid } = await import("../dist/index.mjs");
const testAddon = createRequire(import.meta.url)("../build/Release/unifluid_test.node");

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    python: { type: "string", default: "python3" },
    reference: { type: "string", default: "" },
    work: { type: "string" },
    threads: { type: "string", default: String(availableParallelism()) },
    rounds: { type: "string", default: "5" },
    isa: { type: "string" },
    out: { type: "string" },
  },
});
const threads = Number(options.threads);
const rounds = Number(options.rounds);
const work = options.work ?? mkdtempSync(join(tmpdir(), "unifluid-bench-"));
const tokenizer = join(root, "models", "shapes-64");
const load = (folder) => UniFluid.load(folder, { threads, isa: options.isa });
const checkpoint = (name) => randomCheckpoint(name, work, tokenizer);

/** The peer, which runs once each time it is asked; null where there is no PyTorch. */
async function startPeer(name, folder, extra) {
  const script = join(root, "bench", "peer.py");
  const args = [script, name, folder, "--threads", String(threads), ...extra];
  if (options.reference) args.push("--reference", options.reference);
  const peer = new Peer(options.python, args);
  return (await peer.next()) ? peer : null;
}

const report = [];
function print(line) {
  console.log(line);
  report.push(line);
}

/** Ours and the peer in turn. */
async function compare(title, run, peer, note = "") {
  await run();
  const ours = [];
  const theirs = [];
  for (let i = 0; i < rounds; i++) {
    ours.push(await seconds(run));
    // One that has ended meanwhile has no figure.
    if (peer) theirs.push((await peer.ask())?.seconds ?? Number.NaN);
  }
  const own = median(ours);
  const row = [title, `${(own * 1e3).toFixed(1)} ms`];
  if (peer) {
    const ratios = theirs.map((t, i) => t / ours[i]);
    row.push(`${(median(theirs) * 1e3).toFixed(1)} ms`, `${median(ratios).toFixed(2)}×`);
  } else row.push("not measured", "–");
  row.push(note);
  print(`| ${row.join(" | ")} |`);
}

async function generation(batch) {
  const model = await load("shapes-64");
  const peer = await startPeer("generate", join(root, "models", "shapes-64"), [
    "--batch",
    String(batch),
    "--steps",
    "25",
  ]);
  const prompts = Array(batch).fill("a red circle left of a blue square");
  await compare(
    `shapes-64, 25 steps, batch ${batch}`,
    () => model.generate(prompts, { seed: 7, steps: 25 }),
    peer,
  );
  await peer?.end();
  await model.dispose();
}

const CASES = {
  async "generate-1"() {
    await generation(1);
  },
  async "generate-8"() {
    await generation(8);
  },
  // One row through a Gemma-2-2B-shaped decoder: bound by reading the weights.
  async decode() {
    const folder = checkpoint("gemma-2-2b");
    const bytes = statSync(join(folder, "model.safetensors")).size;
    const before = peakBytes();
    const model = await load(folder);
    const write = async (count) => {
      const start = await seconds(() => model.complete("a red circle", { maxNewTokens: 1 }));
      const all = await seconds(() => model.complete("a red circle", { maxNewTokens: count + 1 }));
      return (all - start) / count;
    };
    await write(1);
    const peak = peakBytes() - before;
    const rates = [];
    const ratios = [];
    for (let i = 0; i < rounds; i++) {
      const limit = testAddon.readBandwidth(1 << 30, threads, 2).bytesPerSecond;
      const rate = bytes / (await write(6));
      rates.push(rate);
      ratios.push(rate / limit);
    }
    const gb = (x) => `${(x / 1e9).toFixed(1)} GB/s`;
    print(
      `| Gemma-2-2B shape, bf16, one row | ${((bytes / median(rates)) * 1e3).toFixed(1)} ms a token | ` +
        `reads ${gb(median(rates))} | ${(median(ratios) * 100).toFixed(0)} % | of the read bandwidth measured on the same threads |`,
    );
    print(
      `| the same, peak resident memory | ${(peak / 2 ** 20).toFixed(0)} MiB | weights ${(bytes / 2 ** 20).toFixed(0)} MiB | ` +
        `${(peak / bytes).toFixed(3)}× | mapped weights count as resident |`,
    );
    await model.dispose();
  },
  async prefill() {
    const folder = checkpoint("gemma-2-two-layers");
    const model = await load(folder);
    const peer = await startPeer("prefill", folder, ["--rows", "256"]);
    const tokens = Int32Array.from({ length: 256 }, (_, i) => (i % 500) + 4);
    await compare(
      "256-row prefill, two Gemma-2-2B layers, f32",
      () => model.logits({ tokens }),
      peer,
    );
    await peer?.end();
    await model.dispose();
  },
  async vae() {
    const folder = checkpoint("sd-vae");
    const model = await load(folder);
    const peer = await startPeer("vae", folder, []);
    const latents = Float32Array.from({ length: 32 * 32 * 4 }, (_, i) => Math.sin(i));
    await compare("SD-VAE shape, decode at 256²", () => model.decodeLatents(latents), peer);
    await peer?.end();
    await model.dispose();
  },
  async vision() {
    const folder = checkpoint("siglip-so400m");
    const model = await load(folder);
    const peer = await startPeer("vision", folder, []);
    const image = {
      pixels: new Uint8Array(224 * 224 * 3).map((_, i) => i % 251),
      width: 224,
      height: 224,
    };
    await compare(
      "SigLIP-So400m shape, encode at 224²",
      () => model.logits({ image, task: "caption", suffix: [] }),
      peer,
      "ours includes preprocessing and a one-layer decoder",
    );
    await peer?.end();
    await model.dispose();
  },
};

/** Peak resident bytes of this process so far. */
function peakBytes() {
  const line = readFileSync("/proc/self/status", "utf8").match(/VmHWM:\s+(\d+) kB/);
  return line ? Number(line[1]) * 1024 : process.resourceUsage().maxRSS * 1024;
}

const names = positionals.length ? positionals : Object.keys(CASES);
for (const name of names) {
  if (!CASES[name]) {
    console.error(`unknown case ${name}; there are ${Object.keys(CASES).join(", ")}`);
    process.exit(2);
  }
}
const probe = await load("shapes-64");
print(`Commit ${commit()}, ${cpus()[0].model}, ${probe.info.device}; medians of ${rounds} rounds.`);
await probe.dispose();
print("");
print("| what | ours | PyTorch, same threads | ratio | |");
print("| --- | --- | --- | --- | --- |");
for (const name of names) await CASES[name]();
if (options.out) appendFileSync(options.out, `${report.join("\n")}\n\n`);
if (!options.work) rmSync(work, { recursive: true, force: true });
