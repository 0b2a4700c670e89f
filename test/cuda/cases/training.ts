/**
 * The operations of training (core/training_backend.h) in float32 against the CPU's, but for products
 * (training-products.ts): every kernel of cuda/kernels/training_*.cu and of attention's gradients in float32, each result
 * a case of its own.
 */
import type { CudaCase, Invariant } from "../../support/cuda-cases";
import type { Random } from "../../support/numbers";
import type { AttentionSettings } from "./attention-gradients";
import { type Arguments, type Options, operation, ROUNDED, SUMS } from "./training-operation";

/**
 * 3e-4 in units of bfloat16's roundoff, as test/ops/loss.test.ts has it against float64: the bound divides differences of
 * rounded tables by variances, and angles of up to 999 are known to 999 units of float32's roundoff.
 */
const TABLES = 3e-4 * 2 ** 9;

// ---- activations, gates, sums ----

const ACTIVATIONS = ["silu", "gelu_tanh", "gelu_erf", "none"];

function elementwise(activation: string): CudaCase[] {
  const [rows, cols] = [9, 133];
  const like = (random: Random) => random.matrix(rows, cols, 2);
  return [
    ...operation(activation, ["out"], (random) => ({
      ...{ name: "activation", activation, x: like(random) },
    })),
    ...operation(`${activation}, backwards and added`, ["dx"], (random) => ({
      ...{ name: "activationBackward", activation, x: like(random) },
      ...{ dout: like(random), start: like(random) },
    })),
    ...operation(`gated by ${activation}`, ["out", "dgate", "dup"], (random) => ({
      ...{ name: "gated", activation, gate: like(random), up: like(random), dout: like(random) },
    })),
  ];
}

/** What only products take is bfloat16. Rows of whole vectors, and others. */
const keptRounded = [72, 131].flatMap((cols) => {
  const kept = (name: string, results: string[], draw: (random: Random) => object) =>
    operation(
      `${name} of ${cols}, in bfloat16`,
      results,
      (random) => ({
        ...{ rounded: true, eps: 1e-6, x: random.matrix(9, cols, 2) },
        dout: random.matrix(9, cols),
        ...(draw(random) as Arguments),
      }),
      { tolerance: ROUNDED },
    );
  return [
    ...kept("silu", ["out"], () => ({ name: "activation", activation: "silu" })),
    ...kept("silu, backwards", ["dx"], () => ({
      ...{ name: "activationBackward", activation: "silu" },
    })),
    ...kept("gated by gelu_tanh", ["out", "dgate", "dup"], (random) => ({
      ...{ name: "gated", activation: "gelu_tanh" },
      ...{ gate: random.matrix(9, cols, 2), up: random.matrix(9, cols) },
    })),
    ...kept("gated_add", ["dgate", "dy"], (random) => ({
      ...{ name: "gatedAdd", gate: random.matrix(9, cols), y: random.matrix(9, cols) },
    })),
    ...kept("rms_norm", ["out", "dx"], (random) => ({
      ...{ name: "rmsNormBackward", weight: random.floats(cols, 0.5) },
      startWeight: random.floats(cols),
    })),
    ...kept("modulated norm", ["out", "dshift", "dscale"], (random) => ({
      ...{ name: "modulatedNorm", shift: random.matrix(9, cols), scale: random.matrix(9, cols) },
    })),
  ];
});

// ---- norms; more rows than a run of sums has ----

const EPS = 1e-6;
const ROWS = 70;

function norms(n: number): CudaCase[] {
  const like = (random: Random) => random.matrix(ROWS, n);
  const layer = (random: Random, affine: boolean, modulated: boolean): Arguments => ({
    ...{ name: "modulatedNorm", eps: EPS, x: like(random), dout: like(random) },
    ...(affine && { weight: random.floats(n, 0.3, 1), bias: random.floats(n) }),
    ...(affine && { startWeight: random.floats(n), startBias: random.floats(n) }),
    ...(modulated && { shift: like(random), scale: random.matrix(ROWS, n, 0.5) }),
  });
  return [
    ...operation(`rms_norm of ${n}, backwards and added`, ["dx", "dweight"], (random) => ({
      ...{ name: "rmsNormBackward", eps: EPS, x: like(random), weight: random.floats(n, 0.5) },
      ...{ dout: like(random), start: like(random), startWeight: random.floats(n) },
    })),
    ...operation(
      `layer norm of ${n}, affine and modulated`,
      ["out", "dx", "dweight", "dbias", "dshift", "dscale"],
      (random) => layer(random, true, true),
    ),
    ...operation(`layer norm of ${n}, modulated`, ["out", "dx", "dshift", "dscale"], (random) =>
      layer(random, false, true),
    ),
    ...operation(`layer norm of ${n}, affine`, ["out", "dx", "dweight", "dbias"], (random) =>
      layer(random, true, false),
    ),
  ];
}

function groupNorm(silu: boolean, channels: number, groups: number): CudaCase[] {
  const [images, pixels] = [3, 21];
  const like = (random: Random) => random.matrix(images * pixels, channels);
  return operation(
    `group norm of ${channels} in ${groups}${silu ? ", SiLU after it" : ""}`,
    ["dx", "dweight", "dbias"],
    (random) => ({
      ...{ name: "groupNormBackward", images, groups, silu, eps: EPS, x: like(random) },
      ...{ weight: random.floats(channels, 0.3, 1), bias: random.floats(channels) },
      ...{ dout: like(random), start: like(random) },
      ...{ startWeight: random.floats(channels), startBias: random.floats(channels) },
    }),
  );
}

// ---- attention in float32 ----

const ATTENTIONS: Record<string, AttentionSettings> = {
  "SigLIP's 72": { heads: 2, kvHeads: 2, headDim: 72, lengths: [49, 16], prefixes: [49, 16] },
  "grouped, window, causal prefix": {
    ...{ heads: 4, kvHeads: 2, headDim: 16, window: 11, ropeTheta: 100 },
    ...{ lengths: [40, 3, 33], prefixes: [0, 0, 0] },
  },
  "Gemma 2's: 256, soft cap, rotary": {
    ...{ heads: 2, kvHeads: 1, headDim: 256, softCap: 5, ropeTheta: 10000 },
    ...{ lengths: [20, 37], prefixes: [9, 30] },
  },
};

function attention([name, s]: [string, AttentionSettings]): CudaCase[] {
  const { lengths, prefixes, ...settings } = s;
  const rows = lengths.reduce((a, b) => a + b);
  const spans = lengths.map((length, i) => ({
    firstRow: lengths.slice(0, i).reduce((a, b) => a + b, 0),
    rows: length,
    prefixEnd: prefixes[i]!,
  }));
  return operation(
    `attention, ${name}`,
    ["out", "dq", "dk", "dv"],
    (random) => {
      const matrix = (heads: number) => random.matrix(rows, heads * s.headDim);
      return {
        ...{ name: "attentionBackward", ...settings, spans, scale: s.headDim ** -0.5 },
        ...{ firstPosition: 1, q: matrix(s.heads), k: matrix(s.kvHeads), v: matrix(s.kvHeads) },
        dout: matrix(s.heads),
      };
    },
    // A row's weights, its sums and what they are multiplied with are sums themselves.
    { tolerance: 4 * SUMS },
  );
}

// ---- rows and patches ----

/** kernel, stride, enlargement, padding before and after: a convolution's gradients are patches and products. */
const PATCHES: [number, number, number, number, number][] = [
  [3, 1, 1, 1, 1],
  [3, 2, 1, 0, 1],
  [3, 1, 2, 1, 1],
  [1, 1, 1, 0, 0],
];

function patches([kernel, stride, upsample, padBefore, padAfter]: (typeof PATCHES)[0]): CudaCase[] {
  const [images, height, width, channels] = [2, 6, 9, 5];
  const side = (n: number) =>
    Math.floor((n * upsample + padBefore + padAfter - kernel) / stride) + 1;
  const pixels = images * height * width;
  return operation(
    `patches of ${kernel}, stride ${stride}, enlarged ${upsample}`,
    ["out", "dx"],
    (random) => ({
      ...{ name: "patches", images, height, width, upsample, kernel, stride, padBefore, padAfter },
      x: random.matrix(pixels, channels),
      dout: random.matrix(images * side(height) * side(width), kernel * kernel * channels),
      start: random.matrix(pixels, channels),
    }),
  );
}

function gather(rows: number, table: number, cols: number): CudaCase[] {
  return operation(`gather and scatter ${rows} rows of ${table}`, ["out", "dtable"], (random) => ({
    ...{ name: "gatherRows", scale: 1.5, table: random.matrix(table, cols) },
    // Some leave a row out, and some rows are taken several times.
    index: Int32Array.from({ length: rows }, () => random.integer(table + 1) - 1),
    ...{ start: random.matrix(rows, cols), dout: random.matrix(rows, cols) },
    startTable: random.matrix(table, cols),
  }));
}

// ---- losses ----

function crossEntropy(vocab: number, cap: number): CudaCase[] {
  const rows = 6;
  return operation(
    `cross-entropy over ${vocab}, cap ${cap}`,
    ["losses", "dlogits"],
    (random) => ({
      ...{ name: "crossEntropy", cap, scale: 0.25, logits: random.matrix(rows, vocab, 4) },
      targets: Int32Array.from({ length: rows }, () => random.integer(vocab)),
    }),
    // The exponential is good to two units in the last place, and logits of 16 lose four bits under it.
    { tolerance: 4 * SUMS },
  );
}

function diffusionLoss(flow: boolean, cap: number): CudaCase[] {
  const [rows, tokens, channels] = [30, 11, 21];
  return operation(
    `diffusion loss, ${flow ? "flow" : `ddpm, cap ${cap}`}`,
    ["noised", "losses", "doutput"],
    (random) => {
      const noise = random.matrix(rows, channels);
      const output = random.matrix(rows, (flow ? 1 : 2) * channels, 0.5);
      // Near the noise, or the bound's exponentials leave float32.
      if (!flow)
        for (let r = 0; r < rows; r++)
          for (let c = 0; c < channels; c++)
            output.data[r * 2 * channels + c] =
              noise.data[r * channels + c]! + 0.05 * random.normal();
      const timesteps = Array.from({ length: rows }, (_, i) =>
        flow ? 1000 * random.uniform() : ([0, 1, 980][i] ?? random.integer(980)),
      );
      return {
        ...{ name: "diffusionLoss", flow, cap, scale: 0.5, timesteps, output, noise },
        index: Int32Array.from({ length: rows }, () => random.integer(tokens)),
        x0: random.matrix(tokens, channels, 0.8),
      };
    },
    { tolerance: flow ? SUMS : TABLES },
  );
}

// ---- the optimizer ----

function adamw(count: number, options: Options = {}): CudaCase[] {
  return operation(
    `AdamW of ${count}`,
    ["value", "first", "second", "average", "squares"],
    (random) => ({
      ...{ name: "adamw", value: random.floats(count), first: random.floats(count, 0.1) },
      ...{ second: random.floats(count, 0.1).map(Math.abs), average: random.floats(count) },
      ...{ gradient: random.floats(count), gradientScale: 0.5, rate: 0.01 },
      ...{ beta1: 0.9, beta2: 0.98, epsilon: 1e-8, decay: 0.1 },
      ...{ correction1: 0.3, correction2: 0.1, averageKeep: 0.75 },
    }),
    options,
  );
}

export const cases: CudaCase[] = [
  ...ACTIVATIONS.flatMap(elementwise),
  ...keptRounded,
  ...operation("gated_add", ["out", "dgate", "dy"], (random) => {
    const like = () => random.matrix(ROWS, 35);
    return { name: "gatedAdd", x: like(), gate: like(), y: like(), dout: like() };
  }),
  ...[ROWS, 1].flatMap((rows) =>
    operation(`sums over ${rows} rows`, ["out"], (random) => ({
      ...{ name: "columnSum", x: random.matrix(rows, 135), start: random.floats(135) },
    })),
  ),
  ...[3, 130, 1152].flatMap(norms),
  ...groupNorm(false, 24, 4),
  ...groupNorm(true, 64, 32),
  ...Object.entries(ATTENTIONS).flatMap(attention),
  ...PATCHES.flatMap(patches),
  ...gather(9, 4, 70),
  ...gather(200, 31, 24),
  ...crossEntropy(3, 0),
  ...crossEntropy(1100, 5),
  ...crossEntropy(2049, 0),
  ...diffusionLoss(true, 1),
  ...diffusionLoss(false, 1),
  ...diffusionLoss(false, 5),
  ...operation(
    "time features",
    ["out"],
    (random) => ({
      name: "timeFeatures",
      times: Array.from({ length: 9 }, () => 999 * random.uniform()),
    }),
    { tolerance: TABLES },
  ),
  ...operation("training noise", ["out"], (random) => ({
    ...{ name: "trainingNoise", seed: (BigInt(random.bits()) << 32n) | 7n, channels: 13 },
    counters: Array.from({ length: 12 }, (_, i) => i * 2 ** 30 + random.integer(1000)),
  })),
  ...[1, 4099].flatMap((count) => adamw(count)),
  ...adamw(3_000_001, { deviceOnly: true }),
];

/** Gradients of weights are sums over all rows; none of these has rows of its own beside them. */
export const invariants: Invariant[] = [];

/** Activations are float32. */
export const training = true;
