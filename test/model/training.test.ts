/** Training against PyTorch: gradients of every tensor, and fifty steps from the same batches and draws. */
import { readdirSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { loadAddon } from "../../lib/addon";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import { initCheckpoint } from "../../lib/init/init";
import { trainingBytes } from "../../lib/memory";
import type { NativeModelSpec, NativeTrainer } from "../../lib/native";
import { FIXTURES, fixtureJson, Tensors } from "../support/fixtures";
import { instructionSets } from "../support/ops";
import { relativeError } from "../support/parity";
import {
  batchOf,
  bf16Gradient,
  bfloats,
  byName,
  createTrainer,
  GRADIENT,
  MULTIPLIER,
  norm,
  placeOf,
  readFloats,
  specOf,
  TINY_MODEL,
  type TrainerChange,
  trained,
  trainerOptions,
  trainersOfTests,
  trainingPlaces,
  wrongGradients,
} from "../support/training";

interface Expected {
  multiplier: number;
  text_weight: number;
  learning_rate: number;
  warmup: number;
  "context-noise": {
    highest: number;
    models: Record<string, { image_loss: number; gradient_norm: number }>;
  };
  [model: string]: unknown;
}
interface ModelExpected {
  noise_weight_cap: number;
  first_step_by_task: Record<string, number>;
  /** Image loss, text loss and gradient norm of each step. */
  curve: [number, number, number][];
}

const expected = fixtureJson<Expected>("training");
const models = readdirSync(join(FIXTURES, "training"))
  .filter((f) => /^unifluid.*\.safetensors$/.test(f))
  .map((f) => f.replace(".safetensors", ""));

const trainer = trainersOfTests();

/**
 * Layers with the same inputs are one product where all of them are trained: freezing one of them takes them apart,
 * which must change neither losses nor the gradients of the others.
 */
async function expectApart(spec: NativeModelSpec, base: TrainerChange) {
  const options = { ...base, optimizer: GRADIENT };
  const frozen = trained(spec).filter((n) =>
    /(k_proj|up_proj|res_blocks\.0\.adaLN_modulation\.1)\.(weight|bias)$/.test(n),
  );
  expect(frozen.length).toBeGreaterThan(5);
  const together = await trainer(spec, options);
  const apart = await trainer(spec, { ...options, frozen });
  const at = { step: 1, learningRate: 0 };
  const one = await together.step([batchOf(spec, 1)], at);
  const other = await apart.step([batchOf(spec, 1)], at);
  expect(other.imageLoss).toBe(one.imageLoss);
  expect(other.textLoss).toBe(one.textLoss);
  for (const name of trained(spec)) {
    const a = readFloats(together, name, "first");
    const b = readFloats(apart, name, "first");
    if (frozen.includes(name)) expect(norm(b)).toBe(0);
    else
      expect(norm(a.map((v, i) => v - b[i]!))).toBeLessThan(
        1e-5 * norm(a) + 1e-7 * one.gradientNorm,
      );
  }
  // Of averages that are not the weights: both kinds take their place.
  const losses = [];
  for (const t of [together, apart]) {
    for (const name of trained(spec).filter((n) => /(q|k|gate)_proj\.weight$/.test(n))) {
      const doubled = readFloats(t, name, "weights").map((v) => 2 * v);
      // The average of a frozen tensor is its weights.
      const what = t === apart && frozen.includes(name) ? "weights" : "ema";
      t.write(name, what, new Uint8Array(doubled.buffer));
    }
    losses.push((await t.evaluate([batchOf(spec, 1)], { step: 1, ema: true })).textLoss);
  }
  expect(Math.abs(losses[1]! / losses[0]! - 1)).toBeLessThan(1e-6);
  expect(Math.abs(losses[0]! / one.textLoss - 1)).toBeGreaterThan(1e-4);
}

test("products of several layers of the shipped model give what each alone does", async () => {
  const { spec } = await readCheckpoint(join(__dirname, "..", "..", "models", "shapes-64"));
  await expectApart(spec, {});
});

test("the fixtures belong to these tests", () => {
  expect(models.sort()).toEqual(["unifluid-flow-tiny", "unifluid-tiny"]);
  expect(expected.multiplier).toBe(MULTIPLIER);
});

test("steps whose batches grow bit by bit take no more memory than the largest", async () => {
  const folder = await mkdtemp(join(tmpdir(), "train-growing-"));
  try {
    const inner = 4096;
    const text_config = { ...TINY_MODEL.text_config, intermediate_size: inner };
    const sizes = join(folder, "sizes.yaml");
    await writeFile(sizes, stringify({ ...TINY_MODEL, text_config }));
    const parts = { seed: 1n, tokenizer: "shapes-64", vae: "shapes-64" };
    const { spec } = await initCheckpoint(sizes, join(folder, "made"), parts);
    const tensors = spec.tensors.filter(({ name }) => !name.startsWith("vae."));
    const rows = 2400;
    // The gate, what it is of and what they make, in float32: together they are larger than what one step adds in reserve.
    const wide = 4 * rows * 3 * inner;
    const maxMemory = trainingBytes(tensors, {}).onHost + 1.5 * wide;
    const t = await trainer({ ...spec, tensors }, { optimizer: null, maxMemory });
    for (const more of [0, 3, 6]) {
      const sequences = Array.from({ length: 12 }, (_, i) => ({
        task: "caption",
        tokens: new Int32Array(200 + (i === 0 ? more : 0)).fill(7),
        targetTokens: Int32Array.of(8),
      }));
      const result = await t.evaluate([sequences], { step: 1, ema: false });
      expect(result).toMatchObject({ finite: true, rows: rows + more });
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});

describe.each(models)("%s", (model) => {
  const want = expected[model] as ModelExpected;
  const tensors = new Tensors(join(FIXTURES, "training", `${model}.safetensors`));
  let spec: NativeModelSpec;
  beforeAll(async () => {
    spec = await specOf(model);
  });
  const unified = { noiseWeightCap: want.noise_weight_cap, textWeight: expected.text_weight };
  const base = { unified };

  test.each(trainingPlaces)(
    "losses and every gradient of one step are PyTorch's (%s)",
    async (place) => {
      const t = await trainer(spec, { ...base, ...placeOf(place), optimizer: GRADIENT });
      const result = await t.step([batchOf(spec, 1)], { step: 1, learningRate: 0 });
      const [image, text, gradient] = want.curve[0]!;
      expect(Math.abs(result.imageLoss / image - 1)).toBeLessThan(1e-5);
      expect(Math.abs(result.textLoss / text - 1)).toBeLessThan(1e-5);
      expect(Math.abs(result.gradientNorm / gradient - 1)).toBeLessThan(1e-4);
      for (const [task, loss] of Object.entries(want.first_step_by_task))
        expect(Math.abs(result.byTask[task]!.loss / loss - 1)).toBeLessThan(1e-5);
      const names = byName(tensors, "unifluid", "gradient");
      expect([...names.keys()].sort()).toEqual(trained(spec).sort());
      expect(wrongGradients(t, tensors, names, gradient)).toEqual([]);
    },
  );

  test("tokens that others follow are read with PyTorch's noise, and are drawn without", async () => {
    const { highest, models: noisy } = expected["context-noise"];
    const { image_loss, gradient_norm } = noisy[model]!;
    const t = await trainer(spec, {
      unified: { ...unified, contextNoise: highest },
      optimizer: { clipNorm: 0 },
    });
    const at = { step: 1, learningRate: 0 };
    const result = await t.step([batchOf(spec, 1)], at);
    expect(Math.abs(result.imageLoss / image_loss - 1)).toBeLessThan(1e-5);
    expect(Math.abs(result.gradientNorm / gradient_norm - 1)).toBeLessThan(1e-4);
    // Ten times further from the loss without noise than the two programs may differ; texts have none.
    const [image, text] = want.curve[0]!;
    expect(Math.abs(result.imageLoss / image - 1)).toBeGreaterThan(1e-4);
    expect(Math.abs(result.textLoss / text - 1)).toBeLessThan(1e-5);
  });

  test("fifty steps follow PyTorch's losses, and end at its weights and their average", async () => {
    const t = await trainer(spec, base);
    for (const [i, [image, text, gradient]] of want.curve.entries()) {
      const step = i + 1;
      const learningRate = expected.learning_rate * Math.min(1, step / expected.warmup);
      const result = await t.step([batchOf(spec, step)], { step, learningRate });
      expect(result.finite).toBe(true);
      expect(Math.abs(result.imageLoss / image - 1)).toBeLessThan(1e-3);
      expect(Math.abs(result.textLoss / text - 1)).toBeLessThan(1e-3);
      expect(Math.abs(result.gradientNorm / gradient - 1)).toBeLessThan(1e-2);
    }
    const weights = byName(tensors, "unifluid", "weights");
    expect([...weights.keys()].sort()).toEqual(trained(spec).sort());
    // All weights as one vector: where a gradient is nothing but rounding (biases of keys), AdamW
    // makes whole steps of it, and no two programs agree.
    const all = [...weights.keys()].filter((n) => !n.endsWith("k_proj.bias"));
    const got = all.flatMap((n) => Array.from(readFloats(t, n, "weights")));
    const wanted = all.flatMap((n) => Array.from(tensors.floats(weights.get(n)!)));
    expect(relativeError(got, wanted)).toBeLessThan(1e-3);
    const averages = byName(tensors, "unifluid", "ema");
    const average = all.flatMap((n) => Array.from(readFloats(t, n, "ema")));
    const stored = all.flatMap((n) => bfloats(tensors, averages.get(n)!));
    // The fixture keeps the average in bfloat16.
    expect(norm(average.map((v, i) => v - stored[i]!)) / norm(stored)).toBeLessThan(2 ** -8);
  });

  test("the same bits on one thread, with recomputed activations and after a stop", async () => {
    const run = async (threads: number, recompute: boolean) => {
      const t = await trainer(spec, { threads, unified: { ...unified, recompute } });
      for (let step = 1; step <= 3; step++)
        await t.step([batchOf(spec, step)], { step, learningRate: 1e-3 });
      return t;
    };
    const a = await run(2, false);
    const b = await run(1, true);
    const kinds = ["weights", "ema", "first", "second", "updates"] as const;
    const same = (x: NativeTrainer, y: NativeTrainer) => {
      for (const name of trained(spec))
        for (const kind of kinds)
          expect(Buffer.compare(x.read(name, kind, "F32"), y.read(name, kind, "F32"))).toBe(0);
    };
    same(a, b);
    // Stopped after three steps and taken up by another trainer.
    const c = await trainer(spec, base);
    for (const name of trained(spec))
      for (const kind of kinds) c.write(name, kind, a.read(name, kind, "F32"));
    for (const t of [a, c]) await t.step([batchOf(spec, 4)], { step: 4, learningRate: 1e-3 });
    same(a, c);
  });

  test("gradients of several batches add up to those of one", async () => {
    const batch = batchOf(spec, 7);
    const options = { ...base, optimizer: GRADIENT };
    const whole = await trainer(spec, options);
    const parts = await trainer(spec, options);
    const at = { step: 1, learningRate: 0 };
    const one = await whole.step([batch], at);
    const three = await parts.step([batch.slice(0, 1), batch.slice(1, 4), batch.slice(4)], at);
    expect(Math.abs(three.imageLoss / one.imageLoss - 1)).toBeLessThan(1e-6);
    expect(Math.abs(three.textLoss / one.textLoss - 1)).toBeLessThan(1e-6);
    for (const name of trained(spec)) {
      const a = readFloats(whole, name, "first");
      const b = readFloats(parts, name, "first");
      expect(norm(a.map((v, i) => v - b[i]!))).toBeLessThan(
        1e-5 * norm(a) + 1e-7 * one.gradientNorm,
      );
    }
  });

  test.each(trainingPlaces)(
    "with bfloat16 products losses and every gradient stay near PyTorch's in float32 (%s)",
    async (place) => {
      const options = { ...base, ...placeOf(place), optimizer: GRADIENT };
      const t = await trainer(spec, { ...options, compute: "bfloat16" });
      const result = await t.step([batchOf(spec, 1)], { step: 1, learningRate: 0 });
      const [image, text, gradient] = want.curve[0]!;
      // Eight bits of mantissa through a few layers: a per cent, where float32 gives 1e-6.
      expect(Math.abs(result.imageLoss / image - 1)).toBeLessThan(1e-2);
      expect(Math.abs(result.textLoss / text - 1)).toBeLessThan(1e-2);
      const names = byName(tensors, "unifluid", "gradient");
      expect(wrongGradients(t, tensors, names, gradient, bf16Gradient(spec))).toEqual([]);
      // And they are rounded.
      expect(wrongGradients(t, tensors, names, gradient)).not.toEqual([]);
    },
  );

  test("frozen tensors stay, and so do all where a loss is not finite", async () => {
    const frozen = trained(spec).filter((n) => n.startsWith("vision_tower."));
    const t = await trainer(spec, { ...base, frozen });
    const before = new Map(trained(spec).map((n) => [n, t.read(n, "weights", "F32")]));
    await t.step([batchOf(spec, 1)], { step: 1, learningRate: 1e-3 });
    for (const [name, bytes] of before) {
      const same = Buffer.compare(bytes, t.read(name, "weights", "F32")) === 0;
      expect({ name, same }).toEqual({ name, same: frozen.includes(name) });
    }
    const now = new Map(trained(spec).map((n) => [n, t.read(n, "weights", "F32")]));
    const broken = batchOf(spec, 2);
    broken[0]!.targetLatents![0] = Number.NaN;
    const result = await t.step([broken], { step: 2, learningRate: 1e-3 });
    expect(result.finite).toBe(false);
    for (const [name, bytes] of now)
      expect(Buffer.compare(bytes, t.read(name, "weights", "F32"))).toBe(0);
  });

  test.each([instructionSets.at(-1)!, "cuda-simulated"])(
    "what no example of a step uses stays as it is, and is updated for the first time later (%s)",
    async (place) => {
      const optimizer = { weightDecay: 0.5 };
      const t = await trainer(spec, { ...base, ...placeOf(place), optimizer });
      const kinds = ["weights", "ema", "first", "second", "updates"] as const;
      const bytes = () =>
        trained(spec).map((n): [string, Buffer] => [
          n,
          Buffer.concat(kinds.map((kind) => t.read(n, kind, "F32"))),
        ]);
      const before = new Map(bytes());
      const learningRate = 1e-3;
      const texts = batchOf(spec, 1).filter(({ targetTokens }) => targetTokens);
      for (const step of [1, 2, 3]) await t.step([texts], { step, learningRate });
      const unused = trained(spec).filter((n) => /^(image_|diffusion_head\.)/.test(n));
      expect(unused.length).toBeGreaterThan(10);
      for (const [name, now] of bytes()) {
        const same = Buffer.compare(now, before.get(name)!) === 0;
        expect({ name, same }).toEqual({ name, same: unused.includes(name) });
        expect(readFloats(t, name, "updates")).toEqual(Float32Array.of(same ? 0 : 3));
      }
      // In any batch of the step.
      const drawings = batchOf(spec, 4).filter(({ targetLatents }) => targetLatents);
      const name = "diffusion_head.final_layer.linear.bias";
      const old = readFloats(t, name, "weights");
      await t.step([drawings, texts], { step: 4, learningRate });
      expect(readFloats(t, name, "updates")).toEqual(Float32Array.of(1));
      // AdamW's first update is the rate, but for its epsilon.
      for (const [i, value] of readFloats(t, name, "weights").entries())
        expect(Math.abs(value - old[i]!) / learningRate).toBeCloseTo(1, 1);
    },
  );

  test("products of several layers give what each alone does", async () => {
    await expectApart(spec, base);
  });

  test("a tensor that is trained alone has the gradient that it has among all", async () => {
    const options = { ...base, optimizer: GRADIENT };
    const at = { step: 1, learningRate: 0 };
    const whole = await trainer(spec, options);
    const { gradientNorm } = await whole.step([batchOf(spec, 1)], at);
    const names = trained(spec).filter((name) => /layers\.0\.|res_blocks\.0\./.test(name));
    expect(names.length).toBeGreaterThan(20);
    for (const name of names) {
      const frozen = trained(spec).filter((other) => other !== name);
      const alone = await createTrainer(spec, { ...options, frozen });
      await alone.step([batchOf(spec, 1)], at);
      const wanted = readFloats(whole, name, "first");
      const miss = norm(readFloats(alone, name, "first").map((v, i) => v - wanted[i]!));
      alone.dispose();
      const most = 1e-5 * norm(wanted) + 1e-7 * gradientNorm;
      expect({ name, near: miss < most }).toEqual({ name, near: true });
    }
  });

  test("where one sequence brings its noise, that of another is drawn as ever", async () => {
    const t = await trainer(spec, base);
    const drawings = batchOf(spec, 3).filter(({ task }) => task === "generate");
    const own = drawings.map(({ noise: _, ...rest }) => ({ ...rest, task: "own" }));
    const lossOfOwn = async (beside: (typeof drawings)[number]) => {
      const at = { step: 1, ema: false };
      const { byTask } = await t.evaluate([[own[0]!, beside]], at);
      return byTask.own!.loss;
    };
    const bare = { ...own[1]!, task: "generate" };
    expect(await lossOfOwn(drawings[1]!)).toBe(await lossOfOwn(bare));
  });

  test("a checkpoint that has a tensor twice is refused by its name", async () => {
    const tensors = [...spec.tensors, spec.tensors[0]!];
    await expect(createTrainer({ ...spec, tensors }, {})).rejects.toMatchObject({
      code: "INVALID_CHECKPOINT",
      message: `tensor ${spec.tensors[0]!.name} occurs twice`,
    });
  });

  test("draws of its own: named by seed, step and place, and new at each step", async () => {
    const bare = () =>
      batchOf(spec, 3).map(({ order: _o, timesteps: _t, noise: _n, ...rest }) => rest);
    const loss = async (seed: bigint, step: number, order: "random" | "raster" = "random") => {
      const t = await trainer(spec, { seed, unified: { ...unified, order } });
      return (await t.evaluate([bare()], { step, ema: false })).imageLoss;
    };
    const first = await loss(1n, 1);
    expect(await loss(1n, 1)).toBe(first);
    expect(await loss(1n, 2)).not.toBe(first);
    expect(await loss(2n, 1)).not.toBe(first);
    expect(await loss(1n, 1, "raster")).not.toBe(first);
  });

  test("a trainer of losses alone computes the same ones, and cannot train", async () => {
    const t = await trainer(spec, base);
    const only = await trainer(spec, { ...base, optimizer: null });
    const at = { step: 1, ema: false };
    const losses = await only.evaluate([batchOf(spec, 1)], at);
    expect(losses).toEqual(await t.evaluate([batchOf(spec, 1)], at));
    expect(losses.byTask.generate).toMatchObject({ right: 0 });
    for (const { right, tokens } of Object.values(losses.byTask))
      expect(right).toBeLessThanOrEqual(tokens);
    const refused = { code: "INVALID_ARGUMENT", message: "this trainer computes losses only" };
    const step = only.step([batchOf(spec, 1)], { step: 1, learningRate: 0 });
    await expect(step).rejects.toMatchObject(refused);
    expect(() => only.read("image_begin", "first", "F32")).toThrow(
      expect.objectContaining(refused),
    );
    expect(only.read("image_begin", "weights", "F32")).toEqual(
      t.read("image_begin", "weights", "F32"),
    );
  });

  test("a frozen tensor takes the memory of its weights alone", async () => {
    const frozen = trained(spec).filter((n) => !n.startsWith("image_in."));
    const tensors = spec.tensors.filter(({ name }) => trained(spec).includes(name));
    const options = { ...base, optimizer: { emaDecay: 0.9 }, frozen };
    const { onHost } = trainingBytes(tensors, options);
    // Tensors begin at whole cache lines.
    const maxMemory = onHost + 64 * 5 * tensors.length;
    const t = await trainer(spec, { ...options, maxMemory });
    const [name] = frozen as [string];
    expect(norm(readFloats(t, name, "second"))).toBe(0);
    expect(t.read(name, "ema", "F32")).toEqual(t.read(name, "weights", "F32"));
    expect(() => t.write(name, "ema", t.read(name, "ema", "F32"))).toThrow(
      expect.objectContaining({ message: `${name} is frozen: it has weights alone` }),
    );
    await expect(trainer(spec, { ...options, frozen: [], maxMemory })).rejects.toMatchObject({
      code: "INSUFFICIENT_MEMORY",
    });
  });

  test("what does not fit the model is refused by name", async () => {
    const t = await trainer(spec, base);
    const at = { step: 1, learningRate: 1e-3 };
    const refused = (change: object, message: RegExp) => {
      const batch = batchOf(spec, 1);
      Object.assign(batch[0]!, change);
      return expect(t.step([batch], at)).rejects.toMatchObject({
        code: "INVALID_ARGUMENT",
        message,
      });
    };
    const named = (rest: string) =>
      expect.stringMatching(new RegExp(`^example 0 of the step: ${rest}`)) as unknown as RegExp;
    await refused({ tokens: Int32Array.of(1e6) }, named("token id 1000000 lies outside"));
    await refused({ tokens: Int32Array.of() }, named("expected prefix tokens"));
    await refused({ targetLatents: new Float32Array(3) }, named("expected \\d+ values of target"));
    await refused({ targetTokens: Int32Array.of(5) }, named("expected target tokens or"));
    await refused({ order: new Int32Array(spec.image!.grid ** 2) }, named("the order is no perm"));
    await refused({ noise: new Float32Array(1) }, named("expected \\d+ values of noise"));
    await refused({ visionPixels: new Float32Array(5) }, named("expected \\d+ values of vision"));
    // What a GPU stages for each row has its place.
    await refused(
      { tokens: new Int32Array(500_000) },
      expect.stringMatching(
        /^expected at most 500000 decoder rows in a batch but received \d{6}: raise accumulation$/,
      ) as unknown as RegExp,
    );
    await expect(t.step([], at)).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    await expect(t.step([[]], at)).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    await expect(createTrainer(spec, { frozen: ["nothing"] })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      message: "there is no tensor nothing to freeze",
    });
    await expect(createTrainer(spec, { frozen: trained(spec) })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
    await expect(createTrainer(spec, { maxMemory: 1000 })).rejects.toMatchObject({
      code: "INSUFFICIENT_MEMORY",
    });
    const { unified: _, ...neither } = trainerOptions();
    for (const options of [neither, { ...trainerOptions(), vae: { klWeight: 0, latentNoise: 0 } }])
      expect(() => loadAddon().createTrainer(spec, options)).toThrow(
        expect.objectContaining({
          code: "INVALID_ARGUMENT",
          message: "expected either unified or vae for the options",
        }),
      );
    // One call at a time; and nothing after the end.
    const batch = batchOf(spec, 1);
    // Long enough to be at work still when the second comes.
    const going = t.step(Array(100).fill(batch), at);
    expect(() => t.step([batch], at)).toThrow(
      expect.objectContaining({ code: "INVALID_ARGUMENT" }),
    );
    await going;
    t.dispose();
    expect(t.description()).toBe("disposed");
    expect(() => t.read("image_begin", "weights", "F32")).toThrow(
      expect.objectContaining({ code: "DISPOSED" }),
    );
  });
});
