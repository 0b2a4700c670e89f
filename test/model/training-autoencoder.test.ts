/** The autoencoder's training against PyTorch, and against its own slopes. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { initCheckpoint } from "../../lib/init/init";
import { trainingBytes, vaeTrainingActivations } from "../../lib/memory";
import type { NativeModelSpec, NativeVaeExample } from "../../lib/native";
import { FIXTURES, fixtureJson, Tensors } from "../support/fixtures";
import { relativeError } from "../support/parity";
import {
  bfloats,
  GRADIENT,
  Numbers,
  norm,
  picturesOf,
  placeOf,
  readFloats,
  specOf,
  trained,
  trainersOfTests,
  trainingPlaces,
  writeFloats,
} from "../support/training";

interface Expected {
  learning_rate: number;
  warmup: number;
  "vae-tiny": {
    kl_weight: number;
    /** Absolute error, square error, divergence and gradient norm of each step. */
    curve: [number, number, number, number][];
  };
  "latent-noise": {
    highest: number;
    absolute: number;
    square: number;
    kl: number;
    gradient_norm: number;
  };
}

const expected = fixtureJson<Expected>("training");
const want = expected["vae-tiny"];
const tensors = new Tensors(join(FIXTURES, "training", "vae-tiny.safetensors"));
const vae = { klWeight: want.kl_weight, latentNoise: 0 };

let spec: NativeModelSpec;
beforeAll(async () => {
  spec = await specOf("vae-tiny");
});
const trainer = trainersOfTests();

/** A tensor's name in the fixture, which has diffusers'. */
const stored = (name: string) => name.replace(/^vae\./, "");
/** Softmax does not see what is added to all keys: their gradient is rounding. */
const seen = (name: string) => !name.endsWith("to_k.bias");

test.each(trainingPlaces)(
  "losses and every gradient of one step are PyTorch's (%s)",
  async (place) => {
    const t = await trainer(spec, { vae, ...placeOf(place), optimizer: GRADIENT });
    const result = await t.step([picturesOf(spec, 1)], { step: 1, learningRate: 0 });
    const [absolute, square, kl, gradient] = want.curve[0]!;
    const close = (got: number, wanted: number, within: number) =>
      expect(Math.abs(got / wanted - 1)).toBeLessThan(within);
    close(result.vae!.absolute, absolute, 1e-5);
    close(result.vae!.square, square, 1e-5);
    close(result.vae!.kl, kl, 1e-5);
    close(result.vae!.loss, absolute + square + want.kl_weight * kl, 1e-5);
    close(result.gradientNorm, gradient, 1e-4);
    const names = trained(spec, true);
    expect(tensors.names.filter((n) => n.startsWith("gradient.")).sort()).toEqual(
      names.map((n) => `gradient.${stored(n)}`).sort(),
    );
    for (const name of names) {
      const wanted = tensors.floats(`gradient.${stored(name)}`);
      const miss = norm(readFloats(t, name, "first").map((v, i) => v - wanted[i]!));
      expect({ name, miss: miss < 1e-4 * norm(wanted) + 1e-7 * gradient }).toEqual({
        name,
        miss: true,
      });
    }
  },
);

test("latents are decoded with PyTorch's noise", async () => {
  const { highest, absolute, square, kl, gradient_norm } = expected["latent-noise"];
  const noisy = { ...vae, latentNoise: highest };
  const t = await trainer(spec, { vae: noisy, optimizer: { clipNorm: 0 } });
  const result = await t.step([picturesOf(spec, 1)], { step: 1, learningRate: 0 });
  expect(Math.abs(result.vae!.absolute / absolute - 1)).toBeLessThan(1e-5);
  expect(Math.abs(result.vae!.square / square - 1)).toBeLessThan(1e-5);
  expect(Math.abs(result.gradientNorm / gradient_norm - 1)).toBeLessThan(1e-4);
  // Further from the losses without noise than the two programs may differ; the divergence is without.
  expect(Math.abs(result.vae!.square / want.curve[0]![1] - 1)).toBeGreaterThan(1e-4);
  expect(Math.abs(result.vae!.kl / kl - 1)).toBeLessThan(1e-5);
  expect(kl).toBe(want.curve[0]![2]);
});

test("fifty steps follow PyTorch's losses, and end at its weights and their average", async () => {
  const t = await trainer(spec, { vae });
  for (const [i, [absolute, square, kl, gradient]] of want.curve.entries()) {
    const step = i + 1;
    const learningRate = expected.learning_rate * Math.min(1, step / expected.warmup);
    const result = await t.step([picturesOf(spec, step)], { step, learningRate });
    expect(result.finite).toBe(true);
    expect(Math.abs(result.vae!.absolute / absolute - 1)).toBeLessThan(1e-3);
    expect(Math.abs(result.vae!.square / square - 1)).toBeLessThan(1e-3);
    expect(Math.abs(result.vae!.kl / kl - 1)).toBeLessThan(1e-3);
    expect(Math.abs(result.gradientNorm / gradient - 1)).toBeLessThan(1e-2);
  }
  const names = trained(spec, true).filter(seen);
  const all = (what: "weights" | "ema") => names.flatMap((n) => Array.from(readFloats(t, n, what)));
  const wanted = names.flatMap((n) => Array.from(tensors.floats(`weights.${stored(n)}`)));
  expect(relativeError(all("weights"), wanted)).toBeLessThan(1e-3);
  // The fixture keeps the average in bfloat16.
  const average = names.flatMap((n) => bfloats(tensors, `ema.${stored(n)}`));
  const apart = all("ema").map((v, i) => v - average[i]!);
  expect(norm(apart) / norm(average)).toBeLessThan(2 ** -8);
});

/** The gradient of each tensor against differences of the loss along it. */
async function expectSlopes(spec: NativeModelSpec, batch: NativeVaeExample[], names: string[]) {
  const t = await trainer(spec, { vae, optimizer: GRADIENT });
  const start = await t.step([batch], { step: 1, learningRate: 0 });
  const loss = async () => (await t.evaluate([batch], { step: 1, ema: false })).vae!.loss;
  expect(await loss()).toBeCloseTo(start.vae!.loss, 6);
  for (const name of names) {
    const gradient = readFloats(t, name, "first");
    const slope = norm(gradient);
    expect(slope).toBeGreaterThan(0);
    const weights = readFloats(t, name, "weights");
    const step = Math.max(3e-4 * norm(weights), 1e-3);
    const along = async (h: number) => {
      const moved = weights.map((w, i) => w + (h * gradient[i]!) / slope);
      writeFloats(t, name, "weights", moved);
      return loss();
    };
    const found = ((await along(step)) - (await along(-step))) / (2 * step);
    writeFloats(t, name, "weights", weights);
    // Central differences in float32: the loss is known to 1e-7 of itself, and the absolute error's
    // kinks bend it.
    expect({ name, close: Math.abs(found / slope - 1) < 0.04 }).toEqual({ name, close: true });
  }
  return start.vae!;
}

const noisy = (side: number): NativeVaeExample[] => {
  const r = new Numbers(9);
  return [0, 1, 2].map(() => ({ pixels: r.values(3 * side * side) }));
};

test("an autoencoder of other than RGB pictures is refused", async () => {
  for (const channels of [{ inChannels: 4 }, { outChannels: 1 }])
    await expect(
      trainer({ ...spec, vae: { ...spec.vae!, ...channels } }, { vae }),
    ).rejects.toMatchObject({
      code: "INVALID_CHECKPOINT",
      message: "configuration: the autoencoder must have 3 input and 3 output channels",
    });
});

test("gradients are the slopes of the loss, and it learns", async () => {
  const batch = noisy(32);
  const start = await expectSlopes(spec, batch, trained(spec, true).filter(seen));
  const learner = await trainer(spec, { vae });
  let last = start;
  for (let step = 1; step <= 30; step++)
    last = (await learner.step([batch], { step, learningRate: 2e-3 })).vae!;
  expect(last.square).toBeLessThan(0.8 * start.square);
  await expect(
    learner.step([[{ pixels: new Float32Array(3 * 30 * 30) }]], { step: 1, learningRate: 0 }),
  ).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
});

test("so are those of attention in the blocks", async () => {
  const folder = await mkdtemp(join(tmpdir(), "train-attention-"));
  try {
    await writeFile(
      join(folder, "sizes.yaml"),
      stringify({ vae: { norm_num_groups: 4, scaling_factor: 1 } }),
    );
    const from = join(FIXTURES, "ldm-vae", "kl.safetensors");
    const options = { seed: 1n, vae: from };
    const made = await initCheckpoint(join(folder, "sizes.yaml"), join(folder, "made"), options);
    const names = trained(made.spec, true).filter((n) => /blocks.*attentions/.test(n) && seen(n));
    // One in the encoder and two in the decoder, each with a norm and four products.
    expect(names).toHaveLength(3 * 9);
    await expectSlopes(made.spec, noisy(16), names);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("a step needs more memory than the bound that runs are checked against, and not ten times as much", async () => {
  const [side, count] = [96, 8];
  const numbers = new Numbers(7);
  const pictures = Array.from({ length: count }, () => ({
    pixels: numbers.values(3 * side * side),
  }));
  const tensors = spec.tensors.filter(({ name }) => name.startsWith("vae."));
  const optimizer = { emaDecay: 0.9 };
  const bound =
    trainingBytes(tensors, { optimizer }).onHost + vaeTrainingActivations(spec.vae!, side, count);
  const step = async (maxMemory: number) => {
    const t = await trainer({ ...spec, tensors }, { vae, optimizer, maxMemory });
    return await t.step([pictures], { step: 1, learningRate: 0 });
  };
  await expect(step(bound)).rejects.toMatchObject({ code: "INSUFFICIENT_MEMORY" });
  expect(await step(10 * bound)).toMatchObject({ finite: true });
});
