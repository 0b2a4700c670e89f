/**
 * diffusion_head and diffusion_sample in bfloat16 of one row or two, which have a kernel of their own where each
 * processor has few columns: its results, and that they are those of the same tokens in company.
 */
import { type CudaCase, Inputs, type Invariant } from "../../support/cuda-cases";
import { rowOf } from "../../support/diffusion";
import type { DiffusionToken } from "../../support/ops";
import { bf16Head, middleSteps, pathRoundings, randomTokens, type Shape } from "./diffusion";

interface Few extends Shape {
  deviceOnly?: boolean;
}

/**
 * Of a row's four parts one may have more than the others, and there may be more parts than a row fills. Of the
 * matrices some do not stay in shared memory.
 */
const SHAPES: Few[] = [
  { width: 256, depth: 2, channels: 16, condition: 24, flow: true, rows: 1 },
  { width: 512, depth: 4, channels: 12, condition: 24, flow: false, rows: 1 },
  { width: 1280, depth: 3, channels: 16, condition: 24, flow: false, rows: 1, deviceOnly: true },
  { width: 1536, depth: 2, channels: 16, condition: 24, flow: true, rows: 1, deviceOnly: true },
];

export const cases: CudaCase[] = SHAPES.map(
  ({ deviceOnly, ...shape }): CudaCase => ({
    name: `diffusion_sample of a guided token: width ${shape.width}, ${shape.flow ? "flow" : "ddpm"}`,
    deviceOnly,
    bf16Only: deviceOnly,
    tolerance: 6 * pathRoundings(shape.depth),
    run(backend, random) {
      const z = new Inputs(random).matrix(6, shape.condition);
      return backend.diffusionSample({
        head: bf16Head(random, shape),
        z,
        steps: middleSteps(shape.flow, 3),
        tokens: randomTokens(random, shape.rows, z.rows),
      });
    },
  }),
);

interface Company {
  shape: Omit<Shape, "rows">;
  tokens: number;
  steps: number;
  alone: number[][];
  guided: boolean;
}

const COMPANIES: Company[] = [
  {
    shape: { width: 256, depth: 1, channels: 5, condition: 24, flow: false },
    tokens: 6,
    steps: 3,
    alone: [[0], [1], [5]],
    guided: true,
  },
  // Two tokens that share a pass.
  {
    shape: { width: 256, depth: 1, channels: 16, condition: 24, flow: true },
    tokens: 6,
    steps: 2,
    alone: [[0, 1], [3], [4, 5]],
    guided: false,
  },
  {
    shape: { width: 1280, depth: 1, channels: 16, condition: 24, flow: false },
    tokens: 5,
    steps: 2,
    alone: [[0], [4]],
    guided: true,
  },
];

export const invariants: Invariant[] = COMPANIES.map(
  ({ shape, tokens: count, steps: stepCount, alone, guided }): Invariant => ({
    name: `tokens alone and among ${count}: width ${shape.width}${guided ? "" : ", without guidance"}`,
    run(backend, random) {
      const head = bf16Head(random, { ...shape, rows: count });
      const z = new Inputs(random).matrix(9, shape.condition);
      const steps = middleSteps(shape.flow, stepCount);
      const tokens = randomTokens(random, count, z.rows).map(
        (token): DiffusionToken => (guided ? token : { ...token, zEmpty: -1 }),
      );
      const all = backend.diffusionSample({ head, z, steps, tokens });
      const matrix = { data: all, rows: count, cols: shape.channels };
      return {
        whole: Float32Array.from(alone.flat().flatMap((i) => [...rowOf(matrix, i)])),
        alone: Float32Array.from(
          alone.flatMap((some) => [
            ...backend.diffusionSample({
              head,
              z,
              steps,
              tokens: some.map((i) => tokens[i]!),
            }),
          ]),
        ),
      };
    },
  }),
);
