/** read_pixels of bfloat16: rows side by side and with gaps, whole pieces and not; more than one transfer. */
import { type CudaCase, Inputs } from "../../support/cuda-cases";

const SHAPES: [rows: number, cols: number, stride?: number][] = [
  [1, 1],
  [64, 3],
  [1000, 3],
  [7, 3],
  [90, 24, 32],
  [90, 3, 5],
  [33, 12, 12],
];

/** Bytes are equal or wrong: there is one way to round, and both sides have the same elements. */
export const cases: CudaCase[] = [...SHAPES, [3 << 20, 3] as const].map(
  ([rows, cols, stride]): CudaCase => ({
    name: `${rows} pixels of ${cols}${stride ? `, ${stride} apart` : ""}`,
    tolerance: 0,
    deviceOnly: rows > 1 << 20,
    run(backend, random) {
      const x = new Inputs(random).matrix(rows, cols, 0.6, stride);
      return Float32Array.from(backend.readPixels({ x })!);
    },
  }),
);

export const invariants = [];
