/**
 * Gradients of attention in training with rounded operands, on tensor cores, against the CPU's in float32: each size
 * of head that has a kernel, sequences longer than a tile, everything that decides who sees whom.
 */
import { type CudaCase, Inputs, type Invariant } from "../../support/cuda-cases";
import { Random, rowsOf } from "../../support/numbers";
import type { Backend } from "../../support/ops";

/** Who attends to whom in training. */
export interface AttentionSettings {
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Of sequences, and of their prefixes that see themselves in both directions. */
  lengths: number[];
  prefixes: number[];
  softCap?: number;
  window?: number;
  ropeTheta?: number;
}

const SETTINGS: Record<string, AttentionSettings> = {
  "one head of 64": { heads: 1, kvHeads: 1, headDim: 64, lengths: [150], prefixes: [0] },
  "a head of 8, prefixes and a window": {
    ...{ heads: 2, kvHeads: 2, headDim: 8, window: 21, ropeTheta: 100 },
    ...{ lengths: [70, 3, 95], prefixes: [30, 0, 80] },
  },
  "SigLIP's 72": { heads: 2, kvHeads: 2, headDim: 72, lengths: [49, 49], prefixes: [49, 49] },
  "128, grouped, window": {
    ...{ heads: 4, kvHeads: 2, headDim: 128, window: 37, ropeTheta: 10000 },
    ...{ lengths: [66, 40], prefixes: [0, 0] },
  },
  "Gemma 2's: 256, grouped, soft cap, rotary": {
    ...{ heads: 4, kvHeads: 2, headDim: 256, softCap: 5, ropeTheta: 10000 },
    ...{ lengths: [20, 100, 1], prefixes: [9, 40, 0] },
  },
  "multi-query, 136": {
    ...{ heads: 3, kvHeads: 1, headDim: 136, ropeTheta: 500 },
    ...{ lengths: [35], prefixes: [35] },
  },
};

const RESULTS = ["out", "dq", "dk", "dv"] as const;

/** Of all sequences, or of one alone; rows are drawn for all. */
function gradients(backend: Backend, random: Random, s: AttentionSettings, alone?: number) {
  const inputs = new Inputs(random);
  const { lengths, prefixes, ...settings } = s;
  const starts = lengths.map((_, i) => lengths.slice(0, i).reduce((a, b) => a + b, 0));
  const all = lengths.reduce((a, b) => a + b);
  const [first, rows] = alone === undefined ? [0, all] : [starts[alone]!, lengths[alone]!];
  const matrix = (heads: number) => rowsOf(inputs.matrix(all, heads * s.headDim), first, rows);
  const kept = lengths.map((_, i) => i).filter((i) => alone === undefined || i === alone);
  return backend.training({
    name: "attentionBackward",
    ...settings,
    // The CPU, which may round as well, stays the exact side.
    bf16: backend.description().startsWith("cuda") ? 1 : 0,
    scale: s.headDim ** -0.5,
    firstPosition: 1,
    q: matrix(s.heads),
    k: matrix(s.kvHeads),
    v: matrix(s.kvHeads),
    dout: matrix(s.heads),
    spans: kept.map((i) => ({
      firstRow: starts[i]! - first,
      rows: lengths[i]!,
      prefixEnd: prefixes[i]!,
    })),
  });
}

export const cases: CudaCase[] = Object.entries(SETTINGS).flatMap(([name, s]) =>
  RESULTS.map(
    (result): CudaCase => ({
      name: `${name}: ${result}`,
      // Weights and the gradients of scores are rounded to 8 bits on the way.
      tolerance: 8,
      run: (backend, random) => gradients(backend, random, s)[result]!,
    }),
  ),
);

export const invariants: Invariant[] = Object.entries(SETTINGS)
  .filter(([, s]) => s.lengths.length > 1)
  .map(([name, s]) => ({
    name: `${name}: the second sequence`,
    run(backend, random) {
      const { seed } = random;
      const whole = gradients(backend, new Random(seed), s);
      const alone = gradients(backend, new Random(seed), s, 1);
      const part = RESULTS.map((result) => {
        const width = (result === "dk" || result === "dv" ? s.kvHeads : s.heads) * s.headDim;
        const first = s.lengths[0]!;
        return whole[result]!.slice(first * width, (first + s.lengths[1]!) * width);
      });
      const flat = (pieces: Float32Array[]) => Float32Array.from(pieces.flatMap((p) => [...p]));
      return { whole: flat(part), alone: flat(RESULTS.map((result) => alone[result]!)) };
    },
  }));

/** Activations are float32, and products round their operands. */
export const training = true;
