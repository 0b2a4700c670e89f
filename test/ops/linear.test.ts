/** linear and gated_linear: against float64 in every stored type, and row by row the same bits. */
import { activate, activationBound } from "../support/activations";
import {
  dotBound,
  expectClose,
  misaligned,
  packed,
  type Random,
  rowsOf,
  UNIT_ROUNDOFF,
  valuesOf,
  withRandom,
} from "../support/numbers";
import {
  type Activation,
  describeBackends,
  expectSameBits,
  expectSameEverywhere,
  type Matrix,
  type Weight,
} from "../support/ops";

// Looked up once: jest makes every mention of a global slow, and these stand in inner loops.
const { abs, sqrt } = Math;

const TYPES = ["f32", "f16", "bf16"] as const;
const ACTIVATIONS: Activation[] = ["none", "silu", "gelu_tanh", "gelu_erf"];

/**
 * [m, k, n]: one element; less than a vector, a tile and a block; remainders of each kind; enough weights
 * for fetching ahead with 1 to 4 rows; k in several blocks; several blocks of rows.
 */
const SHAPES: [number, number, number][] = [
  [1, 1, 1],
  [1, 17, 9],
  [3, 5, 7],
  [4, 16, 6],
  [7, 33, 13],
  [33, 100, 50],
  [1, 2310, 120],
  [2, 2304, 61],
  [3, 2061, 50],
  [4, 1300, 110],
  [9, 1030, 49],
  [13, 2500, 20],
  [66, 1100, 25],
  [130, 40, 30],
];

/** x weight^T in float64, and a bound for the error of each element. */
function product(x: Matrix, weight: Weight) {
  const a = packed(x);
  const b = valuesOf(weight);
  const k = x.cols;
  const out = new Float64Array(x.rows * weight.rows);
  const bound = new Float64Array(out.length);
  for (let i = 0; i < x.rows; i++)
    for (let j = 0; j < weight.rows; j++) {
      let sum = 0;
      let magnitude = 0;
      for (let c = 0; c < k; c++) {
        const term = a[i * k + c]! * b[j * k + c]!;
        sum += term;
        magnitude += abs(term);
      }
      out[i * weight.rows + j] = sum;
      bound[i * weight.rows + j] = dotBound(k, magnitude);
    }
  return { out, bound };
}

interface Extras {
  bias?: Float32Array;
  activation?: Activation;
  residual?: Matrix;
}

function reference(x: Matrix, weight: Weight, { bias, activation, residual }: Extras) {
  const { out, bound } = product(x, weight);
  const added = residual && packed(residual);
  out.forEach((dot, i) => {
    const before = dot + (bias?.[i % weight.rows] ?? 0);
    const error = bound[i]! + UNIT_ROUNDOFF * abs(before);
    out[i] = activate(before, activation) + (added?.[i] ?? 0);
    bound[i] = activationBound(before, error, activation) + UNIT_ROUNDOFF * abs(out[i]!);
  });
  return { out, bound };
}

function gatedReference(x: Matrix, gate: Weight, up: Weight, activation: Activation) {
  const left = reference(x, gate, { activation });
  const right = product(x, up);
  const out = left.out.map((value, i) => value * right.out[i]!);
  const bound = left.bound.map(
    (error, i) =>
      error * (abs(right.out[i]!) + right.bound[i]!) +
      abs(left.out[i]!) * right.bound[i]! +
      UNIT_ROUNDOFF * abs(out[i]!),
  );
  return { out, bound };
}

const scaled = (random: Random, type: (typeof TYPES)[number], n: number, k: number) =>
  random.weight(type, n, k, 1 / sqrt(k));

/** The columns that belong to the matrix, after a check that the gaps between rows were left alone. */
function withoutGaps(out: Float32Array, rows: number, cols: number, stride: number): Float32Array {
  const inner = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++) {
    inner.set(out.subarray(r * stride, r * stride + cols), r * cols);
    const gap = out.subarray(r * stride + cols, (r + 1) * stride);
    if (!gap.every(Number.isNaN)) throw new Error(`row ${r} was written beyond its end`);
  }
  return inner;
}

describeBackends("linear", (backend) => {
  test("no rows", () => {
    withRandom((random) => {
      const x = random.matrix(0, 9);
      expect(backend().linear({ x, weight: scaled(random, "f32", 5, 9) })).toHaveLength(0);
    })();
  });

  describe.each(TYPES)("%s weights", (type) => {
    test.each(SHAPES)("[%d, %d] by %d outputs", (m, k, n) => {
      withRandom((random) => {
        const x = random.matrix(m, k);
        const weight = scaled(random, type, n, k);
        const { out, bound } = reference(x, weight, {});
        const actual = backend().linear({ x, weight });
        expectClose(actual, out, bound);
        expectSameBits(backend().linear({ x, weight: misaligned(weight) }), actual, "misaligned");
      })();
    });
  });

  test.each(ACTIVATIONS)(
    "bias, %s and residual, with gaps between rows and in place",
    (activation) => {
      withRandom((random) => {
        for (const [m, k, n] of [
          [1, 19, 21],
          [6, 37, 53],
          [70, 24, 31],
        ] as const) {
          const x = random.matrix(m, k, 1, k + 3);
          const weight = scaled(random, "bf16", n, k);
          const bias = random.floats(n, 2);
          const residual = random.matrix(m, n, 1, n + 2);
          for (const extras of [
            { activation },
            { bias, activation },
            { activation, residual },
            { bias, activation, residual },
          ]) {
            const { out, bound } = reference(x, weight, extras);
            const stride = n + 5;
            const wide = backend().linear({ x, weight, ...extras, outStride: stride });
            const inner = withoutGaps(wide, m, n, stride);
            expectClose(inner, out, bound);
            if (!extras.residual) continue;
            const onto = { ...residual, data: residual.data.slice() };
            const result = backend().linear({
              x,
              weight,
              ...extras,
              residual: onto,
              inPlace: true,
            });
            for (let r = 0; r < m; r++)
              expectSameBits(
                result.slice(r * (n + 2), r * (n + 2) + n),
                inner.slice(r * n, (r + 1) * n),
              );
          }
        }
      })();
    },
  );

  test.each(TYPES)("a row has the same bits alone and among others, %s", (type) => {
    withRandom((random) => {
      for (const [k, n] of [
        [45, 30],
        [1100, 19],
        [2304, 100],
      ] as const) {
        const x = random.matrix(70, k);
        const weight = scaled(random, type, n, k);
        const bias = random.floats(n);
        const options = { weight, bias, activation: "gelu_tanh" } as const;
        const all = backend().linear({ x, ...options });
        for (const [first, count] of [
          [0, 1],
          [17, 1],
          [5, 2],
          [66, 3],
          [31, 4],
          [2, 9],
          [1, 65],
        ] as const)
          expectSameBits(
            backend().linear({ x: rowsOf(x, first, count), ...options }),
            all.slice(first * n, (first + count) * n),
            `rows ${first} to ${first + count}`,
          );
      }
    })();
  });
});

describeBackends("gated_linear", (backend) => {
  test.each(TYPES)("every activation, %s weights", (type) => {
    withRandom((random) => {
      for (const activation of ACTIVATIONS)
        for (const [m, k, n] of [
          [1, 23, 9],
          [2, 1500, 70],
          [5, 64, 50],
          [67, 30, 29],
        ] as const) {
          const x = random.matrix(m, k, 1, k + 1);
          const [gate, up] = [scaled(random, type, n, k), scaled(random, type, n, k)];
          const { out, bound } = gatedReference(x, gate, up, activation);
          const stride = n + 4;
          const wide = backend().gatedLinear({ x, gate, up, activation, outStride: stride });
          expectClose(withoutGaps(wide, m, n, stride), out, bound);
        }
    })();
  });

  test("a row has the same bits alone and among others", () => {
    withRandom((random) => {
      const [k, n] = [1200, 60];
      const x = random.matrix(66, k);
      const [gate, up] = [scaled(random, "bf16", n, k), scaled(random, "bf16", n, k)];
      const all = backend().gatedLinear({ x, gate, up });
      for (const [first, count] of [
        [0, 1],
        [65, 1],
        [10, 3],
        [20, 11],
      ] as const)
        expectSameBits(
          backend().gatedLinear({ x: rowsOf(x, first, count), gate, up }),
          all.slice(first * n, (first + count) * n),
          `rows ${first} to ${first + count}`,
        );
    })();
  });
});

test.each([1, 3, 70])("%d row(s) on every instruction set and thread count", (m) => {
  withRandom((random) => {
    // Large enough to be shared among threads.
    const x = random.matrix(m, 1000);
    const weight = random.weight("bf16", 301, 1000, 0.03);
    const up = random.weight("f16", 301, 1000, 0.03);
    const bias = random.floats(301);
    expectSameEverywhere(
      (backend) => backend.linear({ x, weight, bias, activation: "silu" }),
      1e-5,
    );
    expectSameEverywhere((backend) => backend.gatedLinear({ x, gate: weight, up }), 1e-5);
  })();
});
