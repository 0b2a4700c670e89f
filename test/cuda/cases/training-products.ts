/**
 * The matrix products of training in float32 and bfloat16 against the CPU's. Operands are rounded on both sides alike, and
 * sums are float32.
 */
import type { CudaCase, Invariant } from "../../support/cuda-cases";
import type { Random } from "../../support/numbers";
import type { Matrix } from "../../support/ops";
import { type Arguments, type Options, operation, ROUNDED } from "./training-operation";

const TYPES = [
  { type: "f32", bf16: false },
  { type: "bf16", bf16: true },
];

// ---- gemm ----

/**
 * [m, n, k]: one element; nothing whole; several tiles; one row; a sum over many; one that is taken in parts, and one whose
 * last part is short; tiles of 256 and of 128 columns.
 */
const PRODUCTS: [number, number, number][] = [
  [1, 1, 1],
  [13, 7, 33],
  [70, 136, 72],
  [1, 200, 64],
  [24, 40, 1000],
  [24, 40, 5000],
  [9, 3, 2900],
  [130, 300, 136],
  [120, 500, 72],
];
const LARGE_PRODUCT: [number, number, number] = [2048, 1024, 1536];

function gemm([m, n, k]: [number, number, number], options: Options = {}): CudaCase[] {
  const forms = [
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ] as const;
  return forms.flatMap(([transposeA, transposeB]) =>
    TYPES.flatMap(({ type, bf16 }) => {
      const letters = `${transposeA ? "a'" : "a"} ${transposeB ? "b'" : "b"}`;
      const name = `gemm ${letters}, [${m}, ${k}] by ${n}, ${type}`;
      const operands = (random: Random) => ({
        ...{ name: "gemm", transposeA, transposeB, bf16 },
        a: transposeA ? random.matrix(k, m, 1, m + 3) : random.matrix(m, k, 1, k + 3),
        b: transposeB ? random.matrix(n, k) : random.matrix(k, n, 1, n + 1),
      });
      return [
        ...operation(name, ["out"], operands, options),
        ...operation(
          `${name}, added to what is there, and a bias`,
          ["out"],
          (random) => ({
            ...operands(random),
            bias: random.floats(n),
            start: random.matrix(m, n),
          }),
          options,
        ),
      ];
    }),
  );
}

// ---- the gradients of a linear layer ----

/** Rows, outputs, inputs: the same; then two whose sums over rows are taken in parts, and one of many outputs. */
const LAYERS: [number, number, number][] = [
  [1, 1, 1],
  [33, 7, 13],
  [70, 136, 72],
  [5000, 24, 40],
  [2900, 3, 9],
  [40, 3000, 16],
];
const LARGE_LAYER: [number, number, number] = [8600, 1024, 2816];

/** Of a part of wider rows, as `Tape::columns` makes them: vectors of 16 bytes, or none. */
const wider = (random: Random, rows: number, cols: number, apart: number): Matrix =>
  random.matrix(rows, cols, 1, cols + apart);

function layer([rows, n, k]: [number, number, number], options: Options = {}): CudaCase[] {
  return TYPES.flatMap(({ type, bf16 }) => {
    const name = `linear backwards, ${rows} rows, ${k} to ${n}, ${type}`;
    const weights = (random: Random) => ({
      x: random.matrix(rows, k),
      startWeight: random.matrix(n, k),
    });
    const draw = (random: Random, apart: number): Arguments => ({
      ...{ name: "linearBackward", bf16, dout: wider(random, rows, n, apart) },
    });
    return [
      ...operation(
        name,
        ["dweight", "dbias", "dx"],
        (random) => ({
          ...draw(random, 0),
          ...weights(random),
          ...{ startBias: random.floats(n), weight: random.matrix(n, k) },
        }),
        options,
      ),
      ...operation(
        `${name}, frozen, added to what is there, with gaps`,
        ["dx"],
        (random) => ({
          ...draw(random, 8),
          ...{ weight: random.matrix(n, k), start: wider(random, rows, k, 4) },
        }),
        options,
      ),
      ...operation(
        `${name}, of inputs without a gradient, with odd gaps`,
        ["dweight"],
        (random) => ({ ...draw(random, 5), ...weights(random) }),
        options,
      ),
    ];
  });
}

export const cases: CudaCase[] = [
  ...PRODUCTS.flatMap((sizes) => gemm(sizes)),
  ...gemm(LARGE_PRODUCT, { deviceOnly: true }),
  ...LAYERS.flatMap((sizes) => layer(sizes)),
  ...layer(LARGE_LAYER, { deviceOnly: true }),
  // The CPU sums what is not rounded for a bias.
  ...operation(
    "operands in bfloat16",
    ["dweight", "dx", "dbias"],
    (random) => ({
      ...{ name: "linearBackward", bf16: true, rounded: true, dout: random.matrix(2900, 20) },
      ...{ x: random.matrix(2900, 13), weight: random.matrix(20, 13) },
      ...{ startWeight: random.matrix(20, 13), startBias: random.floats(20) },
    }),
    { tolerance: ROUNDED },
  ),
  ...operation("a left operand in bfloat16", ["out"], (random) => ({
    ...{ name: "gemm", bf16: true, rounded: true, transposeB: true },
    ...{ a: random.matrix(70, 133), b: random.matrix(40, 133) },
  })),
  ...TYPES.flatMap(({ type, bf16 }) =>
    operation(`a bias alone, ${type}`, ["dbias"], (random) => ({
      ...{ name: "linearBackward", bf16, dout: random.matrix(70, 135) },
      startBias: random.floats(135),
    })),
  ),
];

/** The way forward keeps to its rows; gradients are sums over all of them, and the same again. */
export const invariants: Invariant[] = [
  ...([
    [0, 1],
    [17, 70],
  ].map(([first, count]) => ({
    name: `rows ${first} to ${first! + count!} of 130`,
    run: (backend, random) => {
      const [k, n] = [264, 100];
      const x = random.matrix(130, k);
      const rest = { name: "gemm", transposeB: true, bf16: true, b: random.matrix(n, k) };
      const part = {
        rows: count!,
        cols: k,
        data: x.data.slice(first! * k, (first! + count!) * k),
      };
      const whole = backend.training({ ...rest, a: x }).out!;
      return {
        whole: whole.slice(first! * n, (first! + count!) * n),
        alone: backend.training({ ...rest, a: part }).out!,
      };
    },
  })) satisfies Invariant[]),
  {
    name: "the gradients of a layer again",
    run: (backend, random) => {
      const [rows, n, k] = [3000, 40, 24];
      const args = {
        ...{ name: "linearBackward", bf16: true, dout: random.matrix(rows, n) },
        ...{ x: random.matrix(rows, k), weight: random.matrix(n, k) },
        ...{ startWeight: random.matrix(n, k), startBias: random.floats(n) },
      };
      const all = () => {
        const { dweight, dbias, dx } = backend.training(args);
        return Float32Array.from([...dweight!, ...dbias!, ...dx!]);
      };
      return { whole: all(), alone: all() };
    },
  },
];

/** Activations are float32. */
export const training = true;
