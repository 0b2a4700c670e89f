/**
 * Training on CUDA, on the simulated device: steps beside PyTorch's, the same bits again, and whole runs.
 * Gradients of one step are held against PyTorch's with the CPU's own tests (test/model/training*.test.ts).
 */
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { type RunSettings, Trainer, UniFluid } from "../../lib";
import { evaluateLoss } from "../../lib/evaluate/loss-suite";
import { initCheckpoint } from "../../lib/init/init";
import type { NativeTrainer } from "../../lib/native";
import { writeDataset } from "../../lib/scenes/dataset";
import { fixtureJson } from "../support/fixtures";
import { simulate, simulatedLibrary } from "../support/ops";
import { batchOf, createTrainer, placeOf, specOf, TINY_MODEL, trained } from "../support/training";

interface Expected {
  text_weight: number;
  learning_rate: number;
  warmup: number;
  [model: string]: unknown;
}
interface ModelExpected {
  noise_weight_cap: number;
  curve: [number, number, number][];
}
const expected = fixtureJson<Expected>("training");
const cuda = placeOf("cuda-simulated");

let folder: string;
beforeAll(async () => {
  process.env.UNIFLUID_CUDA_LIBRARY = simulatedLibrary;
  folder = await mkdtemp(join(tmpdir(), "cuda-training-"));
  await writeFile(join(folder, "model.yaml"), stringify(TINY_MODEL));
  const options = { seed: 1n, tokenizer: "shapes-64", vae: "shapes-64" };
  await initCheckpoint(join(folder, "model.yaml"), join(folder, "start"), options);
  await writeDataset(join(folder, "data"), { count: 4, seed: 1n });
  // Latents are made once, by the CPU, which is faster than a simulation.
  const prepared = await Trainer.open({ ...config(), device: "cpu", steps: 4 }, { out: out() });
  await prepared.run();
  await prepared.close();
}, 120_000);
afterAll(() => rm(folder, { recursive: true }));
afterEach(() => simulate());

const config = (change: object = {}): RunSettings => ({
  model: join(folder, "start"),
  sources: ["generate", "caption"].map((task) => ({
    manifest: join(folder, "data", `${task}.jsonl`),
    examples: 1,
  })),
  steps: 2,
  learningRate: 1e-3,
  seed: 5,
  threads: 2,
  device: "cuda",
  checkpoint: { every: 1, keep: 1 },
  ...change,
});
let runs = 0;
const out = () => join(folder, `run-${runs++}`);

test.each(["unifluid-tiny", "unifluid-flow-tiny"])(
  "the first steps of %s follow PyTorch's losses",
  async (model) => {
    const want = expected[model] as ModelExpected;
    const spec = await specOf(model);
    const unified = { noiseWeightCap: want.noise_weight_cap, textWeight: expected.text_weight };
    const t = await createTrainer(spec, { unified, ...cuda });
    for (const [i, [image, text, gradient]] of want.curve.slice(0, 6).entries()) {
      const step = i + 1;
      const learningRate = expected.learning_rate * Math.min(1, step / expected.warmup);
      const result = await t.step([batchOf(spec, step)], { step, learningRate });
      expect(Math.abs(result.imageLoss / image - 1)).toBeLessThan(1e-4);
      expect(Math.abs(result.textLoss / text - 1)).toBeLessThan(1e-4);
      expect(Math.abs(result.gradientNorm / gradient - 1)).toBeLessThan(1e-3);
    }
    t.dispose();
  },
);

test.each([86, 90])("the same bits again, recomputed and after a stop: %d", async (capability) => {
  simulate({ capability });
  const spec = await specOf("unifluid-flow-tiny");
  const run = async (recompute: boolean) => {
    const t = await createTrainer(spec, { ...cuda, unified: { recompute }, compute: "bfloat16" });
    for (let step = 1; step <= 2; step++)
      await t.step([batchOf(spec, step)], { step, learningRate: 1e-3 });
    return t;
  };
  const kinds = ["weights", "ema", "first", "second", "updates"] as const;
  const same = (x: NativeTrainer, y: NativeTrainer) => {
    for (const name of trained(spec))
      for (const kind of kinds)
        expect(Buffer.compare(x.read(name, kind, "F32"), y.read(name, kind, "F32"))).toBe(0);
  };
  const [a, b] = [await run(false), await run(true)];
  same(a, b);
  const c = await createTrainer(spec, { ...cuda, compute: "bfloat16" });
  for (const name of trained(spec))
    for (const kind of kinds) c.write(name, kind, a.read(name, kind, "F32"));
  for (const t of [a, c]) await t.step([batchOf(spec, 3)], { step: 3, learningRate: 1e-3 });
  same(a, c);
  for (const t of [a, b, c]) t.dispose();
});

test("a run trains on the device, and its checkpoint is a model", async () => {
  const trainer = await Trainer.open(config(), { out: out() });
  expect(trainer.description).toMatch(/^cuda:0 simulated/);
  const { checkpoint, finished } = await trainer.run();
  await trainer.close();
  expect(finished).toBe(true);
  await using model = await UniFluid.load(checkpoint!, { device: "cpu" });
  expect(model.tasks).toContain("generate");
});

test("auto trains where the weights, gradients and moments have room", async () => {
  simulate({ memory: 1 << 20 });
  const trainer = await Trainer.open(config({ device: "auto" }), { out: out() });
  expect(trainer.description).toMatch(/^cpu/);
  await trainer.close();
  await expect(Trainer.open(config(), { out: out() })).rejects.toMatchObject({
    code: "INSUFFICIENT_MEMORY",
    message: expect.stringMatching(/^training .*start takes at least \d+ MiB on a GPU/),
  });
  await expect(Trainer.open(config({ device: "cuda:3" }), { out: out() })).rejects.toMatchObject({
    code: "DEVICE_UNAVAILABLE",
  });
  await expect(Trainer.open(config({ device: "gpu" }), { out: out() })).rejects.toMatchObject({
    code: "INVALID_CONFIG",
    message: expect.stringMatching(/device: expected auto, cpu, cuda/),
  });
});

test("a device that fails ends the run; its last checkpoint stays and is gone on from", async () => {
  const at = out();
  const trainer = await Trainer.open(config(), {
    out: at,
    onStep: ({ step }) => simulate({ fail: step === 2 ? "launches" : "nothing" }),
  });
  await expect(trainer.run()).rejects.toMatchObject({ code: "DEVICE_ERROR" });
  await trainer.close();
  simulate();
  expect(await readdir(join(at, "checkpoints"))).toEqual(["step-00000001"]);
  const again = await Trainer.open(config(), { out: at, resume: true });
  expect(await again.run()).toMatchObject({ step: 2, finished: true });
  await again.close();
});

test("the suite loss gives the CPU's losses", async () => {
  const few = join(folder, "data", "few.jsonl");
  const lines = (await readFile(join(folder, "data", "generate.jsonl"), "utf8")).split("\n");
  const more = (await readFile(join(folder, "data", "caption.jsonl"), "utf8")).split("\n");
  await writeFile(few, `${lines[0]}\n${more[0]}\n`);
  const losses = (device: "cpu" | "cuda") =>
    evaluateLoss(join(folder, "start"), { manifests: [few], seed: 3n, device, timesteps: 1 });
  const [cpu, gpu] = [await losses("cpu"), await losses("cuda")];
  expect(gpu.image!.loss / cpu.image!.loss).toBeCloseTo(1, 4);
  expect(gpu.text!.loss / cpu.text!.loss).toBeCloseTo(1, 4);
  expect(gpu.text!.accuracy).toBe(cpu.text!.accuracy);
});
