/** rms_norm, layer_norm and group_norm against float64, statistics that are hard to take included. */
import { activate, activationBound } from "../support/activations";
import {
  expectClose,
  packed,
  type Random,
  rowsOf,
  UNIT_ROUNDOFF,
  withRandom,
} from "../support/numbers";
import {
  describeBackends,
  expectSameBits,
  expectSameEverywhere,
  type Matrix,
} from "../support/ops";

// Looked up once: jest makes every mention of a global slow, and these stand in inner loops.
const { abs, floor, max, sqrt } = Math;

/** Below, at and above a vector's width, and none a multiple of all of them but the last. */
const WIDTHS = [1, 3, 8, 19, 37, 64, 1152];
/** A float32 constant, as the operations get it. */
const EPS = Math.fround(1e-6);

/** Mean and variance about it. */
function moments(values: Float64Array): { mean: number; variance: number } {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  return { mean, variance: values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length };
}

function unwritten(out: Float32Array, rows: number, cols: number, stride: number): boolean {
  for (let r = 0; r < rows; r++)
    if (!out.subarray(r * stride + cols, (r + 1) * stride).every(Number.isNaN)) return false;
  return true;
}

const rowsWithoutGaps = (out: Float32Array, rows: number, cols: number, stride: number) =>
  packed({ data: out, rows, cols, stride });

/**
 * The relative error of a scale 1 / sqrt(mean of n squares) in float32: half that of the mean, whose terms
 * are all positive.
 */
const scaleBound = (n: number) => UNIT_ROUNDOFF * (sqrt(n) / 2 + 8);

describeBackends("rms_norm", (backend) => {
  test.each(WIDTHS)("rows of %d and the norm of what they become, as one after another", (n) => {
    withRandom((random) => {
      const x = random.matrix(7, n, 3, n + 3);
      const [weight, nextWeight] = [random.floats(n, 0.5), random.floats(n, 0.5)];
      const residual = random.matrix(7, n, 1);
      const first = backend().rmsNorm({ x, weight, eps: EPS, residual });
      const second = backend().rmsNorm({
        x: { ...residual, data: first },
        weight: nextWeight,
        eps: EPS,
      });
      const both = backend().rmsNorms({ x, weight, eps: EPS, residual, nextWeight });
      expectSameBits(both.out, first, "the rows");
      expectSameBits(both.next, second, "their norm");
    })();
  });

  test.each(WIDTHS)("rows of %d, with a residual and without, in place and apart", (n) => {
    withRandom((random) => {
      for (const rows of [1, 7]) {
        const stride = n + 3;
        const x = random.matrix(rows, n, 3, stride);
        const weight = random.floats(n, 0.5);
        const residual = random.matrix(rows, n, 1, stride);
        const [values, added] = [packed(x), packed(residual)];
        const expected = new Float64Array(rows * n);
        for (let r = 0; r < rows; r++) {
          const row = values.subarray(r * n, (r + 1) * n);
          const scale = 1 / sqrt(row.reduce((sum, v) => sum + v * v, 0) / n + EPS);
          for (let c = 0; c < n; c++) expected[r * n + c] = row[c]! * scale * (1 + weight[c]!);
        }
        const bound = expected.map((v) => abs(v) * scaleBound(n) + UNIT_ROUNDOFF ** 2);
        const plain = backend().rmsNorm({ x, weight, eps: EPS, outStride: stride });
        expect(unwritten(plain, rows, n, stride)).toBe(true);
        expectClose(rowsWithoutGaps(plain, rows, n, stride), expected, bound);

        const sum = expected.map((v, i) => v + added[i]!);
        const sumBound = bound.map((b, i) => b + UNIT_ROUNDOFF * abs(sum[i]!));
        const apart = backend().rmsNorm({ x, weight, eps: EPS, residual, outStride: stride });
        expectClose(rowsWithoutGaps(apart, rows, n, stride), sum, sumBound);
        for (const inPlace of ["x", "residual"] as const) {
          const copies = {
            x: { ...x, data: x.data.slice() },
            residual: { ...residual, data: residual.data.slice() },
          };
          const result = backend().rmsNorm({ ...copies, weight, eps: EPS, inPlace });
          expectSameBits(
            Float32Array.from(rowsWithoutGaps(result, rows, n, stride)),
            Float32Array.from(rowsWithoutGaps(apart, rows, n, stride)),
            `in place of ${inPlace}`,
          );
        }
      }
    })();
  });

  test("rows of zeros stay zero", () => {
    const x = { data: new Float32Array(40), rows: 2, cols: 20 };
    const out = backend().rmsNorm({ x, weight: new Float32Array(20).fill(1), eps: EPS });
    expectSameBits(out, new Float32Array(40));
  });
});

describeBackends("layer_norm", (backend) => {
  /** float64, and the bound: an error of the mean is one of every element. */
  function reference(x: Matrix, weight?: Float32Array, bias?: Float32Array) {
    const n = x.cols;
    const values = packed(x);
    const expected = new Float64Array(values.length);
    const bound = new Float64Array(values.length);
    for (let r = 0; r < x.rows; r++) {
      const row = values.subarray(r * n, (r + 1) * n);
      const { mean, variance } = moments(row);
      const scale = 1 / sqrt(variance + EPS);
      const magnitude = row.reduce((most, v) => max(most, abs(v)), 0);
      const meanError = UNIT_ROUNDOFF * (sqrt(n) + 8) * magnitude;
      for (let c = 0; c < n; c++) {
        const w = weight?.[c] ?? 1;
        const normal = (row[c]! - mean) * scale * w;
        expected[r * n + c] = normal + (bias?.[c] ?? 0);
        bound[r * n + c] =
          meanError * scale * abs(w) * (1 + abs((row[c]! - mean) * scale)) +
          abs(normal) * scaleBound(n) +
          UNIT_ROUNDOFF * abs(expected[r * n + c]!);
      }
    }
    return { expected, bound };
  }

  test.each(WIDTHS)("rows of %d, with weight and bias and without", (n) => {
    withRandom((random) => {
      const stride = n + 2;
      const x = random.matrix(5, n, 2, stride);
      const [weight, bias] = [random.floats(n), random.floats(n)];
      for (const affine of [{}, { weight }, { bias }, { weight, bias }]) {
        const { expected, bound } = reference(x, affine.weight, affine.bias);
        const out = backend().layerNorm({ x, ...affine, eps: EPS, outStride: stride });
        expect(unwritten(out, 5, n, stride)).toBe(true);
        expectClose(rowsWithoutGaps(out, 5, n, stride), expected, bound);
        const copy = { ...x, data: x.data.slice() };
        const onto = backend().layerNorm({ x: copy, ...affine, eps: EPS, inPlace: true });
        expectSameBits(
          Float32Array.from(rowsWithoutGaps(onto, 5, n, stride)),
          Float32Array.from(rowsWithoutGaps(out, 5, n, stride)),
          "in place",
        );
      }
    })();
  });

  test("a mean a thousand times the deviation", () => {
    withRandom((random) => {
      const x: Matrix = { data: random.floats(3 * 200, 1, 1000), rows: 3, cols: 200 };
      const { expected, bound } = reference(x);
      // A variance taken as a difference of squares would err by 6 percent here.
      expect(max(...bound)).toBeLessThan(0.03);
      expectClose(backend().layerNorm({ x, eps: EPS }), expected, bound);
    })();
  });
});

describeBackends("group_norm", (backend) => {
  function reference(
    x: Matrix,
    groups: number,
    weight: Float32Array,
    bias: Float32Array,
    silu: boolean,
  ) {
    const width = x.cols / groups;
    const values = packed(x);
    const expected = new Float64Array(values.length);
    const bound = new Float64Array(values.length);
    for (let g = 0; g < groups; g++) {
      const members = values.filter((_, i) => floor((i % x.cols) / width) === g);
      const { mean, variance } = moments(members);
      const scale = 1 / sqrt(variance + EPS);
      const magnitude = members.reduce((most, v) => max(most, abs(v)), 0);
      for (let i = 0; i < values.length; i++) {
        const c = i % x.cols;
        if (floor(c / width) !== g) continue;
        const normal = (values[i]! - mean) * scale * weight[c]!;
        const before = normal + bias[c]!;
        // Runs are summed in float32 and put together in float64: an error like that of a few hundred terms.
        const error =
          UNIT_ROUNDOFF *
          (24 * magnitude * scale * abs(weight[c]!) + 24 * abs(normal) + 2 * abs(before));
        const activation = silu ? "silu" : "none";
        expected[i] = activate(before, activation);
        bound[i] = activationBound(before, error, activation);
      }
    }
    return { expected, bound };
  }

  // [pixels, channels, groups]: groups within, across and beyond a vector; one run of pixels and several.
  test.each([
    [1, 4, 2],
    [9, 32, 32],
    [50, 12, 3],
    [33, 66, 2],
    [70, 64, 32],
    [1100, 64, 8],
    [700, 96, 4],
  ])("%d pixels of %d channels in %d groups", (pixels, channels, groups) => {
    withRandom((random) => {
      const stride = channels + 2;
      const x = random.matrix(pixels, channels, 2, stride);
      const [weight, bias] = [random.floats(channels), random.floats(channels)];
      for (const silu of [false, true]) {
        const options = { groups, weight, bias, eps: EPS, silu };
        const { expected, bound } = reference(x, groups, weight, bias, silu);
        const out = backend().groupNorm({ x, ...options, outStride: stride });
        expect(unwritten(out, pixels, channels, stride)).toBe(true);
        expectClose(rowsWithoutGaps(out, pixels, channels, stride), expected, bound);
        const copy = { ...x, data: x.data.slice() };
        const onto = backend().groupNorm({ x: copy, ...options, inPlace: true });
        expectSameBits(
          Float32Array.from(rowsWithoutGaps(onto, pixels, channels, stride)),
          Float32Array.from(rowsWithoutGaps(out, pixels, channels, stride)),
          "in place",
        );
      }
    })();
  });

  test("means that drift from pixel to pixel, far from zero", () => {
    withRandom((random) => {
      const [pixels, channels] = [2000, 32];
      const data = Float32Array.from(
        { length: pixels * channels },
        (_, i) => 500 + i / channels / 100 + random.normal(),
      );
      const x = { data, rows: pixels, cols: channels };
      const [weight, bias] = [new Float32Array(channels).fill(1), new Float32Array(channels)];
      const { expected, bound } = reference(x, 4, weight, bias, false);
      expectClose(backend().groupNorm({ x, groups: 4, weight, bias, eps: EPS }), expected, bound);
    })();
  });
});

describe("invariance", () => {
  const image = (random: Random) => ({
    x: random.matrix(1500, 48),
    groups: 6,
    weight: random.floats(48),
    bias: random.floats(48),
    eps: EPS,
    silu: true,
  });

  test(
    "every instruction set and thread count",
    withRandom((random) => {
      const x = random.matrix(60, 1000);
      const [weight, bias] = [random.floats(1000), random.floats(1000)];
      expectSameEverywhere((b) => b.rmsNorm({ x, weight, eps: EPS }), 1e-6);
      expectSameEverywhere((b) => b.layerNorm({ x, weight, bias, eps: EPS }), 1e-6);
      const groups = image(random);
      expectSameEverywhere((b) => b.groupNorm(groups), 1e-6);
    }),
  );

  describeBackends("a row has the same bits alone and among others", (backend) => {
    test("rms_norm and layer_norm", () => {
      withRandom((random) => {
        const x = random.matrix(90, 301);
        const [weight, bias] = [random.floats(301), random.floats(301)];
        const rms = backend().rmsNorm({ x, weight, eps: EPS });
        const layer = backend().layerNorm({ x, weight, bias, eps: EPS });
        for (const [first, count] of [
          [0, 1],
          [89, 1],
          [13, 5],
        ] as const) {
          const rows = rowsOf(x, first, count);
          const [from, to] = [first * 301, (first + count) * 301];
          expectSameBits(backend().rmsNorm({ x: rows, weight, eps: EPS }), rms.slice(from, to));
          expectSameBits(
            backend().layerNorm({ x: rows, weight, bias, eps: EPS }),
            layer.slice(from, to),
          );
        }
      })();
    });

    test("group_norm of rows that lie side by side and of rows with a gap", () => {
      withRandom((random) => {
        // With a gap of one their vectors are not aligned.
        const apart = random.matrix(300, 128, 2, 129);
        const x = { data: Float32Array.from(packed(apart)), rows: 300, cols: 128 };
        const [weight, bias] = [random.floats(128), random.floats(128)];
        const norm = (of: Matrix) =>
          backend().groupNorm({ x: of, groups: 32, weight, bias, eps: EPS });
        expectSameBits(norm(apart), norm(x));
      })();
    });
  });
});
