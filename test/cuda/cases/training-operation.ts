/** What cases of the operations of training share. */
import { type CudaCase, FLOAT32_SHARE } from "../../support/cuda-cases";
import type { Random } from "../../support/numbers";

/** Sums in another order, as of other operations in float32. */
export const SUMS = 4 * FLOAT32_SHARE;

/** Of results that are rounded to bfloat16, beside those that are not: half a unit of the last place is up to 2^-8. */
export const ROUNDED = 2 + SUMS;

export type Arguments = { name: string; [argument: string]: unknown };

export interface Options {
  tolerance?: number;
  deviceOnly?: boolean;
}

/** A case for each result. */
export function operation(
  name: string,
  results: string[],
  draw: (random: Random) => Arguments,
  { tolerance = SUMS, ...options }: Options = {},
): CudaCase[] {
  return results.map((result) => ({
    ...{ name: results.length > 1 ? `${name}: ${result}` : name, tolerance, ...options },
    run: (backend, random) => {
      const args = draw(random);
      // The CPU's stays float32, so that one rounding lies between the two.
      if (backend.description().startsWith("cpu ")) delete args.rounded;
      const found = backend.training(args)[result]!;
      return typeof found === "number" ? Float32Array.of(found) : found;
    },
  }));
}
