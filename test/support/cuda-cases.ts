/**
 * Operations on CUDA in bfloat16, against the CPU in float32: a table of cases that runs in jest on the
 * simulated library and, from `npm run gpu`, on a device.
 *
 * Inputs are rounded to bfloat16 first, so that both sides compute with the same numbers. What is left is the
 * rounding of intermediate activations and of results to 8 bits, and another order of sums.
 */
import type { Random } from "./numbers";
import type { Backend, Matrix, Weight } from "./ops";

export interface CudaCase {
  name: string;
  /** Draws its inputs and runs the operation. Called once for each backend with equal random draws. */
  run(backend: Backend, random: Random): Float32Array;
  /**
   * The largest difference in units of bfloat16's roundoff (2^-9) of the largest magnitude of the result; default 4:
   * results rounded once, after at most a few roundings of inputs to them.
   */
  tolerance?: number;
  /** Too large for the simulation. */
  deviceOnly?: boolean;
  /** Of kernels that float32 has none of: it takes the same ones as a smaller case. */
  bf16Only?: boolean;
}

/** One row's bits must not depend on its company: the same row computed in a large call and alone. */
export interface Invariant {
  name: string;
  /** Too much for the simulation, or of a device's own choices. */
  deviceOnly?: boolean;
  bf16Only?: boolean;
  run(backend: Backend, random: Random): { whole: Float32Array; alone: Float32Array };
}

const BF16_ROUNDOFF = 2 ** -9;
/** In float32 sums have another order, over up to some thousand terms: that much is left of a tolerance. */
export const FLOAT32_SHARE = 1 / 512;
const bits = new Uint32Array(1);
const value = new Float32Array(bits.buffer);

/** To the nearest bfloat16, ties to even. */
export function roundToBf16(x: number): number {
  value[0] = x;
  bits[0] = (bits[0]! + 0x7fff + ((bits[0]! >>> 16) & 1)) & 0xffff0000;
  return value[0]!;
}

/** Inputs that bfloat16 holds exactly. */
export class Inputs {
  constructor(readonly random: Random) {}

  floats(count: number, scale = 1): Float32Array {
    const out = this.random.floats(count, scale);
    for (let i = 0; i < count; i++) out[i] = roundToBf16(out[i]!);
    return out;
  }
  matrix(rows: number, cols: number, scale = 1, stride?: number): Matrix {
    const data = this.floats(rows * (stride ?? cols), scale);
    return stride === undefined ? { data, rows, cols } : { data, rows, cols, stride };
  }
  weight(rows: number, cols: number, scale = 1 / Math.sqrt(cols)): Weight {
    return { data: this.floats(rows * cols, scale), type: "f32", rows, cols };
  }
}

export interface Comparison {
  /** The largest difference, in units of bfloat16's roundoff of the largest magnitude. */
  error: number;
  tolerance: number;
  /** Where it is, for people. */
  where: string;
}

/** Runs a case on both; `again` makes equal generators. */
export function compare(
  { run, tolerance = 4 }: CudaCase,
  actual: Backend,
  reference: Backend,
  again: () => Random,
): Comparison {
  const a = run(actual, again());
  const e = run(reference, again());
  if (a.length !== e.length) throw new Error(`${a.length} results for ${e.length}`);
  let scale = 0;
  for (const x of e) if (!Number.isNaN(x)) scale = Math.max(scale, Math.abs(x));
  let [error, where] = [0, ""];
  for (let i = 0; i < e.length; i++) {
    const [x, y] = [a[i]!, e[i]!];
    // A gap between rows, or equal: the magnitude that gaps are told in may be 0.
    if (Object.is(x, y) || x === y) continue;
    const gap = Math.abs(x - y) / (BF16_ROUNDOFF * scale);
    if (gap > error || Number.isNaN(gap)) {
      error = Number.isNaN(gap) ? Number.POSITIVE_INFINITY : gap;
      where = `element ${i}: ${x} and should be ${y}`;
    }
  }
  return { error, tolerance, where };
}
