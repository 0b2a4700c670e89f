/** rms_norm and layer_norm in bfloat16: rows of whole pieces and not, of more pieces than threads. */
import { type CudaCase, Inputs, type Invariant } from "../../support/cuda-cases";
import { rowsOf } from "../../support/numbers";

const EPS = 1e-6;
/** Less than a piece; a piece; not whole pieces; several warps; more pieces than the most threads. */
const WIDTHS = [3, 8, 37, 1152, 4100, 8200];

export const cases: CudaCase[] = WIDTHS.flatMap((n): CudaCase[] => [
  {
    name: `rms_norm of ${n}, with a residual`,
    run(backend, random) {
      const inputs = new Inputs(random);
      return backend.rmsNorm({
        x: inputs.matrix(3, n, 4),
        weight: random.floats(n),
        eps: EPS,
        residual: inputs.matrix(3, n),
      });
    },
  },
  {
    name: `rms_norm of ${n} and of what it becomes`,
    run(backend, random) {
      const inputs = new Inputs(random);
      const weights = { weight: random.floats(n), nextWeight: random.floats(n) };
      const x = inputs.matrix(3, n, 4);
      const both = backend.rmsNorms({ x, ...weights, eps: EPS, residual: inputs.matrix(3, n) });
      return Float32Array.from([...both.out, ...both.next]);
    },
  },
  {
    name: `rms_norm of ${n}, in place and with gaps`,
    run(backend, random) {
      const inputs = new Inputs(random);
      const x = inputs.matrix(3, n, 4, n + 8 - (n % 8));
      return backend.rmsNorm({ x, weight: random.floats(n), eps: EPS, inPlace: "x" });
    },
  },
  {
    name: `layer_norm of ${n}`,
    run(backend, random) {
      const inputs = new Inputs(random);
      const x = inputs.matrix(3, n, 4);
      for (let i = 0; i < x.data.length; i++) x.data[i] = 8 + Math.round(4 * x.data[i]!) / 4;
      return backend.layerNorm({ x, weight: random.floats(n), bias: random.floats(n), eps: EPS });
    },
  },
  {
    name: `layer_norm of ${n}, without weight and bias, with gaps`,
    run(backend, random) {
      const x = new Inputs(random).matrix(2, n, 1, n + 3);
      return backend.layerNorm({ x, eps: EPS, outStride: n + 1 });
    },
  },
]);

export const invariants: Invariant[] = [8, 301, 1000].flatMap((n): Invariant[] =>
  [
    [0, 1],
    [13, 5],
    [39, 1],
  ].map(([first, count]) => ({
    name: `rows of ${n}, ${first} to ${first! + count!} of 40`,
    run(backend, random) {
      const inputs = new Inputs(random);
      const x = inputs.matrix(40, n);
      const part = rowsOf(x, first!, count!);
      const weight = random.floats(n);
      const slice = (all: Float32Array) => all.slice(first! * n, (first! + count!) * n);
      const [rms, layer] = [
        backend.rmsNorm({ x, weight, eps: EPS }),
        backend.layerNorm({ x, weight, eps: EPS }),
      ];
      return {
        whole: Float32Array.from([...slice(rms), ...slice(layer)]),
        alone: Float32Array.from([
          ...backend.rmsNorm({ x: part, weight, eps: EPS }),
          ...backend.layerNorm({ x: part, weight, eps: EPS }),
        ]),
      };
    },
  })),
);
