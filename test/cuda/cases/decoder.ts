/**
 * Whole steps of decoders of few rows: beside the CPU, and at once beside operation by operation, which must have the same
 * bits, in what they append to the caches too.
 */
import { type CudaCase, Inputs, type Invariant } from "../../support/cuda-cases";
import { Random } from "../../support/numbers";
import type { Backend, DecoderSizes } from "../../support/ops";

interface Shape {
  name: string;
  width: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  mlp: number;
  /** Of each layer; 0: none. */
  windows: number[];
  softCap?: number;
  rotary?: boolean;
  activation?: DecoderSizes["activation"];
  /** Rows of each sequence, and how many it has cached. */
  spans: { rows: number; cached: number; prefixEnd?: number }[];
  steps?: number;
  deviceOnly?: boolean;
}

const SHAPES: Shape[] = [
  // The first is of few enough tiles for a simulation's four processors.
  {
    name: "two rows, heads of 256, keys of several rounds",
    width: 72,
    heads: 2,
    kvHeads: 1,
    headDim: 256,
    mlp: 88,
    windows: [0],
    softCap: 30,
    spans: [
      { rows: 1, cached: 3 },
      { rows: 1, cached: 600 },
    ],
  },
  {
    name: "Gemma 2's of one row",
    width: 144,
    heads: 8,
    kvHeads: 4,
    headDim: 16,
    mlp: 576,
    windows: [64, 0],
    softCap: 50,
    spans: [{ rows: 1, cached: 150 }],
  },
  {
    name: "many layers, little in each",
    width: 40,
    heads: 2,
    kvHeads: 2,
    headDim: 8,
    mlp: 24,
    windows: [0, 5, 0, 3, 0, 1, 0, 2, 0, 9, 0, 4],
    activation: "silu",
    spans: [{ rows: 1, cached: 7 }],
  },
  {
    name: "sequences of several rows, in a prefix and behind it, windows",
    width: 264,
    heads: 4,
    kvHeads: 1,
    headDim: 64,
    mlp: 200,
    windows: [33, 0],
    spans: [
      { rows: 3, cached: 0, prefixEnd: 3 },
      { rows: 2, cached: 127 },
      { rows: 1, cached: 63 },
    ],
  },
  {
    name: "eight rows, heads of 128, without rotation",
    width: 320,
    heads: 2,
    kvHeads: 1,
    headDim: 128,
    mlp: 72,
    windows: [0],
    rotary: false,
    activation: "gelu_erf",
    spans: Array.from({ length: 8 }, (_, i) => ({ rows: 1, cached: 20 * i })),
  },
  {
    name: "a group of several tiles",
    width: 64,
    heads: 20,
    kvHeads: 1,
    headDim: 24,
    mlp: 64,
    windows: [0],
    spans: [{ rows: 1, cached: 64 }],
  },
  {
    name: "three steps, of which the last are graphs",
    width: 64,
    heads: 4,
    kvHeads: 2,
    headDim: 32,
    mlp: 136,
    windows: [0, 16],
    spans: [
      { rows: 1, cached: 62 },
      { rows: 1, cached: 5 },
    ],
    steps: 3,
  },
  // Of 17 to 22 processors each has more columns than a slot holds so deep.
  {
    name: "products of several slots",
    width: 456,
    heads: 2,
    kvHeads: 1,
    headDim: 32,
    mlp: 424,
    windows: [0, 0],
    spans: [
      { rows: 1, cached: 9 },
      { rows: 1, cached: 70 },
    ],
  },
  // Two layers of the size that it is for, of many keys.
  ...[1, 2, 4].map((rows) => ({
    name: `Gemma-2-2B's, of ${rows}`,
    width: 2304,
    heads: 8,
    kvHeads: 4,
    headDim: 256,
    mlp: 9216,
    windows: [4096, 0],
    softCap: 50,
    spans: Array.from({ length: rows }, (_, i) => ({ rows: 1, cached: 700 + 100 * i })),
    steps: 3,
    deviceOnly: true,
  })),
];

function run(backend: Backend, random: Random, shape: Shape, whole: boolean) {
  const inputs = new Inputs(random);
  const { width, heads, kvHeads, headDim, mlp, spans, windows, steps = 1 } = shape;
  const rows = spans.reduce((sum, span) => sum + span.rows, 0);
  const norm = () => random.floats(width, 0.3);
  const x = inputs.matrix(rows, width, 2);
  const layers = windows.map((window) => ({
    inputNorm: norm(),
    postAttentionNorm: norm(),
    preMlpNorm: norm(),
    postMlpNorm: norm(),
    q: inputs.weight(heads * headDim, width),
    k: inputs.weight(kvHeads * headDim, width),
    v: inputs.weight(kvHeads * headDim, width),
    o: inputs.weight(width, heads * headDim),
    gate: inputs.weight(mlp, width),
    up: inputs.weight(mlp, width),
    down: inputs.weight(width, mlp),
    window,
  }));
  let firstRow = 0;
  const result = backend.decoderStep({
    x,
    layers,
    finalNorm: norm(),
    eps: 1e-6,
    activation: shape.activation ?? "gelu_tanh",
    heads,
    kvHeads,
    headDim,
    scale: 1 / Math.sqrt(headDim),
    softCap: shape.softCap ?? 0,
    ropeTheta: shape.rotary === false ? 0 : 10000,
    firstPosition: 1,
    spans: spans.map(({ rows, cached, prefixEnd = 0 }) => {
      const capacity = cached + steps * rows + 1;
      const cache = inputs.matrix(windows.length * 2 * kvHeads * capacity, headDim);
      const span = { firstRow, rows, index: cached, prefixEnd, capacity, cache };
      firstRow += rows;
      return span;
    }),
    steps,
    whole,
  });
  // Where a backend has products of warpgroups it has whole steps.
  if (whole && !result.whole && backend.description().endsWith(", wgmma"))
    throw new Error("the step was not taken as a whole");
  if (whole && result.whole && result.graphs !== Math.max(0, steps - 1))
    throw new Error(`${result.graphs} of ${steps} steps ran as graphs`);
  return Float32Array.from([result.out, ...result.caches].flatMap((part) => [...part]));
}

export const cases: CudaCase[] = SHAPES.map((shape) => ({
  name: `decoder_step: ${shape.name}`,
  deviceOnly: shape.deviceOnly,
  bf16Only: shape.deviceOnly,
  // As tolerancesOf counts them: roundings that reach the row, whose squares add.
  tolerance: 4 * Math.sqrt(2 + 10 * shape.windows.length),
  run: (backend, random) => run(backend, random, shape, true),
}));

export const invariants: Invariant[] = SHAPES.map((shape) => ({
  name: `at once and operation by operation: ${shape.name}`,
  deviceOnly: shape.deviceOnly,
  bf16Only: true,
  run: (backend, random) => {
    const { seed } = random;
    return {
      whole: run(backend, new Random(seed), shape, true),
      alone: run(backend, new Random(seed), shape, false),
    };
  },
}));
