/** linear and gated_linear in bfloat16: every tile, edges in every direction, all that is fused. */
import { type CudaCase, Inputs, type Invariant } from "../../support/cuda-cases";
import { rowsOf } from "../../support/numbers";
import type { Activation } from "../../support/ops";

const ACTIVATIONS: Activation[] = ["none", "silu", "gelu_tanh", "gelu_erf"];

/**
 * [m, k, n]: one element, tails of k, sizes at which rows cannot be copied in vectors; one of each tile, as they are
 * chosen for the simulation's four processors.
 */
const SHAPES: [number, number, number][] = [
  [1, 1, 1],
  [1, 17, 9],
  [1, 8, 16],
  [3, 264, 40],
  [16, 1000, 24],
  [17, 128, 33],
  [64, 72, 96],
  [65, 40, 130],
  [130, 160, 136],
  [200, 456, 328],
  [77, 40, 2304],
  [250, 136, 286],
  [256, 200, 288],
  [2, 32, 8200],
  [5, 2632, 88],
  [3, 1304, 2300],
];
/** So many that a device's processors all have a tile of the larger ones. */
const LARGE_SHAPES: [number, number, number][] = [
  [2048, 200, 2304],
  [4096, 136, 4096],
];

export const cases: CudaCase[] = [
  ...[...SHAPES, ...LARGE_SHAPES].map(
    ([m, k, n]): CudaCase => ({
      name: `linear [${m}, ${k}] by ${n}`,
      deviceOnly: m > 1000,
      run(backend, random) {
        const inputs = new Inputs(random);
        return backend.linear({ x: inputs.matrix(m, k), weight: inputs.weight(n, k) });
      },
    }),
  ),
  ...ACTIVATIONS.flatMap((activation) =>
    // Columns one by one, in pairs, and by 16 bytes.
    [
      { n: 44, residualStride: 47, outStride: 50 },
      { n: 44, residualStride: 46, outStride: 50 },
      { n: 72, residualStride: 74, outStride: 80 },
    ].map(
      ({ n, residualStride, outStride }): CudaCase => ({
        name: `linear with bias, ${activation}, residual and gaps, ${n} columns, ${residualStride} apart`,
        run(backend, random) {
          const inputs = new Inputs(random);
          return backend.linear({
            x: inputs.matrix(70, 48, 1, 56),
            weight: inputs.weight(n, 48),
            bias: random.floats(n),
            activation,
            residual: inputs.matrix(70, n, 1, residualStride),
            outStride,
          });
        },
      }),
    ),
  ),
  // One launch for rows that can be copied in vectors, of more than 64 on Hopper only and where columns come in pairs;
  // a launch each otherwise.
  ...[
    { m: 1, k: 264, columns: [40, 16, 9] },
    { m: 16, k: 72, columns: [40, 16, 9] },
    { m: 40, k: 264, columns: [40, 16, 9] },
    { m: 3, k: 37, columns: [40, 16, 9] },
    { m: 70, k: 48, columns: [40, 16, 9] },
    { m: 70, k: 48, columns: [64, 24, 24] },
    { m: 128, k: 200, columns: [72, 34, 40, 8] },
    { m: 300, k: 136, columns: [130, 300] },
    { m: 128, k: 520, columns: [2048, 1024, 1000] },
    { m: 600, k: 520, columns: [2048, 1024, 1000] },
  ].map(
    ({ m, k, columns }): CudaCase => ({
      name: `grouped_linear [${m}, ${k}] by ${columns.join(", ")}`,
      deviceOnly: columns[0] === 2048,
      run(backend, random) {
        const inputs = new Inputs(random);
        const products = columns.map((n, i) => ({
          weight: inputs.weight(n, k),
          bias: i === 1 ? random.floats(n) : undefined,
          activation: i === 2 ? ("gelu_tanh" as const) : undefined,
          residual: i === 0 ? inputs.matrix(m, n) : undefined,
        }));
        const results = backend.groupedLinear({ x: inputs.matrix(m, k), products });
        return Float32Array.from(results.flatMap((result) => [...result]));
      },
    }),
  ),
  ...[...SHAPES, ...LARGE_SHAPES].map(
    ([m, k, n]): CudaCase => ({
      name: `gated_linear [${m}, ${k}] by ${n}`,
      deviceOnly: m > 1000,
      run(backend, random) {
        const inputs = new Inputs(random);
        const x = inputs.matrix(m, k);
        return backend.gatedLinear({ x, gate: inputs.weight(n, k), up: inputs.weight(n, k) });
      },
    }),
  ),
];

/** 130 rows take the large tile; the few alone take each of the others. All 130 are grouped too. */
export const invariants: Invariant[] = [
  [0, 1],
  [17, 9],
  [100, 30],
  [3, 66],
].map(([first, count]) => ({
  name: `rows ${first} to ${first! + count!} of 130`,
  run(backend, random) {
    const inputs = new Inputs(random);
    const [k, n] = [264, 100];
    const x = inputs.matrix(130, k);
    const rest = { weight: inputs.weight(n, k), bias: random.floats(n) };
    const gated = { gate: rest.weight, up: inputs.weight(n, k) };
    const products = [rest, { weight: gated.up }];
    const part = rowsOf(x, first!, count!);
    const slice = (all: Float32Array) => all.slice(first! * n, (first! + count!) * n);
    const whole = slice(backend.linear({ x, ...rest }));
    const gatedWhole = slice(backend.gatedLinear({ x, ...gated }));
    const other = slice(backend.linear({ x, weight: gated.up }));
    const together = backend.groupedLinear({ x, products }).flatMap((result) => [...slice(result)]);
    const grouped = backend.groupedLinear({ x: part, products });
    return {
      whole: Float32Array.from([...whole, ...gatedWhole, ...whole, ...other, ...together]),
      alone: Float32Array.from([
        ...backend.linear({ x: part, ...rest }),
        ...backend.gatedLinear({ x: part, ...gated }),
        ...grouped.flatMap((result) => [...result]),
        ...grouped.flatMap((result) => [...result]),
      ]),
    };
  },
}));
