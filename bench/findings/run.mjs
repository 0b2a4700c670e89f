// The runs behind docs/findings.md: small models that differ in one thing each, trained and measured.
//
//   npm run build && node bench/findings/run.mjs --work DIR [--jobs 2] [--seeds 1,2,3]
//
// Goes on where it stopped: a run that has its figures is left alone, one that was stopped is taken up again. Writes
// bench/findings/results.json, which plot.mjs draws.
import { spawn } from "node:child_process";
import { mkdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parse, stringify } from "yaml";

const here = dirname(fileURLToPath(import.meta.url));
const cli = join(here, "../../dist/cli/main.js");

const { values } = parseArgs({
  options: {
    work: { type: "string" },
    jobs: { type: "string", default: "2" },
    seeds: { type: "string", default: "1,2,3" },
  },
});
if (values.work === undefined) throw new Error("expected --work DIR, a folder for data and runs");
const { work } = values;
const seeds = values.seeds.split(",").map(Number);

const READING = ["caption", "answer"];

/**
 * What a variant changes: settings of run.yaml, tasks, the model's fields, its drawing settings, or the variant whose
 * decoder of the same seed it starts from. Those that others start from come first.
 */
const VARIANTS = {
  understanding: { tasks: READING },
  unified: {},
  generation: { tasks: ["generate"] },
  raster: { run: { order: "raster" }, drawing: { order: "raster" } },
  gemma1: {
    // Gemma 1 has neither soft caps nor norms behind its blocks.
    text: {
      model_type: "gemma",
      query_pre_attn_scalar: undefined,
      sliding_window: undefined,
      attn_logit_softcapping: undefined,
      final_logit_softcapping: undefined,
    },
  },
  pretrained: { decoderOf: "understanding" },
  // Without a bound a short-trained head leaves the numbers (docs/draw.md).
  ddpm: { head: { objective: "ddpm" }, drawing: { x0_limit: 5 } },
  "lambda-0.02": { run: { lambda: 0.02 } },
  "lambda-0.1": { run: { lambda: 0.1 } },
  "lambda-2.5": { run: { lambda: 2.5 } },
  "lambda-12.5": { run: { lambda: 12.5 } },
};

const exists = (path) =>
  stat(path).then(
    () => true,
    () => false,
  );

async function writeWhole(path, text) {
  await writeFile(`${path}.partial`, text);
  await rename(`${path}.partial`, path);
}

/** Runs the command line in the work folder; fails as it fails. */
function unifluid(...args) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [cli, ...args, "--quiet"], { cwd: work });
    let told = "";
    child.stdout.resume();
    child.stderr.on("data", (text) => {
      told += text;
    });
    child.on("error", reject);
    child.on("close", (code) =>
      code === 0 ? resolve() : reject(new Error(`unifluid ${args.join(" ")}: ${told}`)),
    );
  });
}

const base = parse(await readFile(join(here, "run.yaml"), "utf8"));
const model = parse(await readFile(join(here, "model.yaml"), "utf8"));
const nameOf = (variant, seed) => `${variant}-${seed}`;
const checkpointOf = (run) =>
  join("runs", run, "checkpoints", `step-${String(base.steps).padStart(8, "0")}`);

/** Scenes to learn from, others to be measured on, and the latents of both. */
async function prepare() {
  await mkdir(join(work, "starts"), { recursive: true });
  const scenes = ["scenes", "--seed", "1"];
  if (!(await exists(join(work, "data"))))
    await unifluid(...scenes, "--out", "data", "--count", "4000");
  if (!(await exists(join(work, "test"))))
    await unifluid(...scenes, "--out", "test", "--count", "1000", "--split", "test");
  await start("unified", 1);
  await writeFile(
    join(work, "prepare.yaml"),
    stringify({
      ...base,
      model: "./starts/unified-1",
      sources: ["data", "test"].map((folder) => ({
        manifest: `${folder}/generate.jsonl`,
        examples: 1,
      })),
    }),
  );
  await unifluid("prepare", "prepare.yaml");
}

/** The fresh model of a run. */
async function start(variant, seed) {
  const { text, head, drawing, decoderOf } = VARIANTS[variant];
  const out = join("starts", nameOf(variant, seed));
  if (await exists(join(work, out, "ready"))) return;
  const fields = {
    ...model,
    text_config: { ...model.text_config, ...text },
    diffusion_head: { ...model.diffusion_head, ...head },
  };
  const file = `${out}.yaml`;
  await writeFile(join(work, file), stringify(fields));
  const from = decoderOf ? ["--text", checkpointOf(nameOf(decoderOf, seed))] : [];
  if (!(await exists(join(work, out))))
    await unifluid("init", file, "--out", out, "--vae", "shapes-64", "--seed", `${seed}`, ...from);
  const settings = join(work, out, "generation_config.json");
  const generation = JSON.parse(await readFile(settings, "utf8"));
  Object.assign(generation.image, drawing);
  await writeWhole(settings, JSON.stringify(generation, null, 2));
  await writeFile(join(work, out, "ready"), "");
}

async function train(variant, seed) {
  const name = nameOf(variant, seed);
  if (await exists(join(work, checkpointOf(name)))) return;
  await start(variant, seed);
  const { run, tasks } = VARIANTS[variant];
  const sources = base.sources.filter(
    ({ manifest }) => !tasks || tasks.some((task) => manifest.includes(task)),
  );
  const config = { ...base, ...run, sources, seed, model: `./starts/${name}` };
  const file = `${name}.yaml`;
  await writeFile(join(work, file), stringify(config));
  const out = join("runs", name);
  const resume = (await exists(join(work, out))) ? ["--resume"] : [];
  await unifluid("train", file, "--out", out, ...resume);
}

const training = new Map();
function trained(variant, seed) {
  const name = nameOf(variant, seed);
  if (!training.has(name)) {
    const { decoderOf } = VARIANTS[variant];
    const before = decoderOf ? trained(decoderOf, seed) : Promise.resolve();
    training.set(
      name,
      before.then(() => train(variant, seed)),
    );
  }
  return training.get(name);
}

const figuresOf = (run) => join(work, "figures", `${run}.json`);

/** Losses on the test scenes, and how often what it writes and draws is right. */
async function measure(variant, seed) {
  const name = nameOf(variant, seed);
  if (await exists(figuresOf(name))) return;
  const checkpoint = checkpointOf(name);
  const tasks = VARIANTS[variant].tasks ?? ["generate", ...READING];
  const draws = tasks.includes("generate");
  const reads = tasks.includes("caption");
  const only = [...(draws ? ["generation"] : []), ...(reads ? ["captions", "answers"] : [])];
  const losses = join("figures", `${name}-loss.json`);
  const scenes = join("figures", `${name}-scenes.json`);
  const manifests = tasks.map((task) => `test/${task}.jsonl`);
  await unifluid(
    "eval",
    checkpoint,
    "--suite",
    "loss",
    "--manifest",
    ...manifests,
    "--out",
    losses,
    "--threads",
    "1",
  );
  await unifluid(
    "eval",
    checkpoint,
    "--scenes",
    "100",
    "--only",
    only.join(","),
    "--out",
    scenes,
    "--threads",
    "1",
  );
  const read = async (file) => JSON.parse(await readFile(join(work, file), "utf8"));
  const { image, text, byTask } = await read(losses);
  const { generation, captions, answers } = await read(scenes);
  await writeWhole(
    figuresOf(name),
    JSON.stringify({ variant, seed, image, text, byTask, generation, captions, answers }),
  );
}

const rate = (value) => value && { rate: value.rate, n: value.n };

/** Of a run the figures that docs/findings.md speaks of. */
function summary({ variant, seed, image, byTask, generation, captions, answers }) {
  return {
    variant,
    seed,
    imageLoss: image?.loss,
    captionLoss: byTask.caption?.loss,
    answerLoss: byTask.answer?.loss,
    generationScore: generation?.score,
    attributes:
      generation &&
      Object.fromEntries(
        ["background", "count", "color", "shape"].map((name) => [
          name,
          generation.attributes[name].rate,
        ]),
      ),
    captionsExact: rate(captions?.exact),
    answersRight: rate(answers?.all),
  };
}

/** What plot.mjs draws. */
async function gather() {
  const results = [];
  for (const variant of Object.keys(VARIANTS))
    for (const seed of seeds) {
      const f = JSON.parse(await readFile(figuresOf(nameOf(variant, seed)), "utf8"));
      results.push(summary(f));
    }
  await writeWhole(join(here, "results.json"), `${JSON.stringify(results, null, 2)}\n`);
}

await prepare();
await mkdir(join(work, "figures"), { recursive: true });
const left = seeds.flatMap((seed) => Object.keys(VARIANTS).map((variant) => [variant, seed]));
const worker = async () => {
  for (let next = left.shift(); next; next = left.shift()) {
    const [variant, seed] = next;
    const begun = performance.now();
    await trained(variant, seed);
    await measure(variant, seed);
    const seconds = (performance.now() - begun) / 1000;
    console.log(`${nameOf(variant, seed)}: ${seconds.toFixed(0)} s`);
  }
};
await Promise.all(Array.from({ length: Number(values.jobs) }, worker));
await gather();
