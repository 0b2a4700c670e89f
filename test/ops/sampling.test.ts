/** soft_cap and sample_text. */
import { expectClose, Random, UNIT_ROUNDOFF, withRandom } from "../support/numbers";
import {
  addon,
  type Backend,
  describeBackends,
  expectSameBits,
  expectSameEverywhere,
} from "../support/ops";

describeBackends("soft_cap", (backend) => {
  test("cap * tanh(x / cap)", () => {
    withRandom((random) => {
      for (const [rows, cols, stride] of [
        [1, 1, 1],
        [3, 7, 9],
        [2, 50, 50],
        // More columns than a task takes.
        [2, 40001, 40003],
      ] as const) {
        for (const cap of [0.5, 30]) {
          const x = random.matrix(rows, cols, 40, stride);
          x.data[0] = 0;
          const out = backend().softCap({ x, cap });
          for (let r = 0; r < rows; r++) {
            const row = x.data.subarray(r * stride, r * stride + cols);
            const expected = Float64Array.from(row, (v) => cap * Math.tanh(v / cap));
            // tanh to a few units in the last place, and a division and a product.
            expectClose(
              out.subarray(r * stride, r * stride + cols),
              expected,
              expected.map((v) => 10 * UNIT_ROUNDOFF * Math.abs(v)),
            );
            const gap = [r * stride + cols, (r + 1) * stride] as const;
            expectSameBits(out.subarray(...gap), x.data.subarray(...gap), "the gap between rows");
          }
        }
      }
    })();
  });

  test("small values keep their relative precision, huge ones stay at the cap", () => {
    const data = Float32Array.of(1e-30, -1e-12, 1e-6, -0.01, 1e4, -1e30);
    const out = backend().softCap({ x: { data, rows: 1, cols: data.length }, cap: 30 });
    const expected = Float64Array.from(data, (v) => 30 * Math.tanh(v / 30));
    expectClose(
      out,
      expected,
      expected.map((v) => 10 * UNIT_ROUNDOFF * Math.abs(v)),
    );
  });
});

test("soft_cap is the same on every instruction set", () => {
  withRandom((random) => {
    const x = random.matrix(3, 20011, 30);
    expectSameEverywhere((b) => b.softCap({ x, cap: 30 }), 1e-6);
  })();
});

function sample(backend: Backend, rows: number[][], temperature: number[], uniform: number[]) {
  return [
    ...backend.sampleText({
      logits: { data: Float32Array.from(rows.flat()), rows: rows.length, cols: rows[0]!.length },
      temperature: Float32Array.from(temperature),
      uniform: Float64Array.from(uniform),
    }),
  ];
}

/** Spec section 7, in float64. */
function referenceDraw(logits: ArrayLike<number>, temperature: number, u: number): number {
  const scaled = Array.from(logits, (v) => v / Math.fround(temperature));
  const most = scaled.reduce((a, b) => Math.max(a, b));
  const weights = scaled.map((v) => Math.exp(v - most));
  const total = weights.reduce((a, b) => a + b);
  let running = 0;
  const id = weights.findIndex((w) => {
    running += w / total;
    return running > u;
  });
  return id < 0 ? weights.length - 1 : id;
}

describeBackends("sample_text", (backend) => {
  test("temperature 0: the largest, the first of equals", () => {
    expect(
      sample(
        backend(),
        [
          [1, 3, 2, 3],
          [-5, -4, -4, -6],
          [0, 0, 0, 0],
          [-0, 0, -1, 0],
          [1, 2, 3, 4],
        ],
        [0, 0, 0, 0, 0],
        [0.9, 0.9, 0.9, 0.9, 0.9],
      ),
    ).toEqual([1, 1, 0, 0, 3]);
  });

  test("the largest at any place of any width", () => {
    const random = new Random(8);
    for (const n of [1, 2, 5, 16, 33, 100]) {
      for (let at = 0; at < n; at++) {
        const row = Array.from({ length: n }, () => random.uniform());
        row[at] = 2;
        expect(sample(backend(), [row], [0], [0.5])).toEqual([at]);
      }
    }
  });

  test("a draw: the first id at which the running sum exceeds u", () => {
    // Probabilities 1/8, 1/2, 1/4, 1/8.
    const row = [1 / 8, 1 / 2, 1 / 4, 1 / 8].map(Math.log);
    const draws = [0.01, 0.12, 0.13, 0.62, 0.63, 0.87, 0.88, 1 - 2 ** -25];
    expect(
      sample(
        backend(),
        draws.map(() => row),
        draws.map(() => 1),
        draws,
      ),
    ).toEqual([0, 0, 1, 1, 2, 2, 3, 3]);
    expect(sample(backend(), [[4, 4]], [1], [0.5])).toEqual([1]);
  });

  test("as float64 draws, at several temperatures", () => {
    withRandom((random) => {
      const vocabulary = 500;
      const rows = Array.from({ length: 20 }, () => [...random.floats(vocabulary, 4)]);
      const temperature = rows.map(() => Math.fround(0.3 + 1.5 * random.uniform()));
      const uniform = rows.map((_, i) => addon.textUniform(BigInt(random.seed), i));
      expect(sample(backend(), rows, temperature, uniform)).toEqual(
        rows.map((row, i) => referenceDraw(row, temperature[i]!, uniform[i]!)),
      );
    })();
  });

  test("greedy and drawn rows side by side, strided", () => {
    const logits = {
      data: Float32Array.of(0, 9, Number.NaN, 9, 0, Number.NaN),
      rows: 2,
      cols: 2,
      stride: 3,
    };
    const temperature = Float32Array.of(0, 1);
    expect([
      ...backend().sampleText({ logits, temperature, uniform: Float64Array.of(0.5, 0.9999) }),
    ]).toEqual([1, 1]);
  });

  test.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    "a row with a logit of %d has no id, wherever it lies",
    (bad) => {
      for (const at of [0, 3, 17, 39]) {
        const row = Array.from({ length: 40 }, (_, i) => (i === at ? bad : i / 10));
        for (const temperature of [0, 1]) {
          const rows = [row, Array(40).fill(0), row];
          const [bad, good, worse] = sample(
            backend(),
            rows,
            Array(3).fill(temperature),
            [0.5, 0.5, 0.5],
          );
          expect([bad, worse]).toEqual([-1, -1]);
          expect(good).toBeGreaterThanOrEqual(0);
        }
      }
    },
  );
});
