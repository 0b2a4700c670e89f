/** Gradients against central differences of a float64 reference, which are exact to about 1e-9. */
import { dotBound, type Random } from "./numbers";
import type { Matrix } from "./ops";

const { abs, max, min } = Math;

export type Vector = Float64Array;
export type Inputs = Record<string, Float32Array>;

/** Elements of each input whose gradients are checked; all, where there are fewer. */
const CHECKED = 24;

/**
 * The gradients of `loss` (in float64) by central differences against what an operation gave. `terms`: how many
 * products a gradient sums up, about; `scale`: its size where it may cancel to less.
 */
export function expectGradients(
  random: Random,
  loss: (x: Record<string, Vector>) => number,
  inputs: Inputs,
  got: Record<string, Float32Array>,
  terms: number,
  scale = 1,
): void {
  const at: Record<string, Vector> = {};
  for (const [name, values] of Object.entries(inputs)) at[name] = Float64Array.from(values);
  for (const name of Object.keys(got)) {
    const [values, gradient] = [at[name]!, got[name]!];
    expect(gradient.length).toBe(values.length);
    const all = values.length <= CHECKED;
    for (let n = 0; n < min(CHECKED, values.length); n++) {
      const i = all ? n : random.integer(values.length);
      const [middle, h] = [values[i]!, 1e-5 * max(1, abs(values[i]!))];
      values[i] = middle + h;
      const up = loss(at);
      values[i] = middle - h;
      const down = loss(at);
      values[i] = middle;
      const slope = (up - down) / (2 * h);
      // Intermediate values are rounded a few times each, beside the sum itself.
      const bound = 4 * dotBound(terms, max(abs(slope), scale));
      if (!(abs(gradient[i]! - slope) <= bound))
        throw new Error(`d ${name}[${i}] is ${gradient[i]}, expected ${slope} within ${bound}`);
    }
  }
}

export const weighted = (out: ArrayLike<number>, dout: ArrayLike<number>) => {
  let sum = 0;
  for (let i = 0; i < out.length; i++) sum += out[i]! * dout[i]!;
  return sum;
};
export const matrix = (data: Float32Array, rows: number, cols: number): Matrix => ({
  data,
  rows,
  cols,
});
export const difference = (a: Float32Array, b: Float32Array) => a.map((v, i) => v - b[i]!);
