/**
 * The CPU's products in bfloat16: with weights stored in it they round the other operand and nothing else, so they are
 * float32's products of rounded operands. Where the processor has no such products they are float32's.
 */
import { randomHead } from "../support/diffusion";
import {
  dotBound,
  expectClose,
  fromBFloat16,
  packed,
  rowsOf,
  toBFloat16,
  UNIT_ROUNDOFF,
  valuesOf,
  withRandom,
} from "../support/numbers";
import { addon, type Backend, expectSameBits, type Matrix, withBackend } from "../support/ops";

const { abs, sqrt } = Math;

const sets = addon.instructionSets().filter((set) => set.supported);
const places = sets.map(({ name, bfloat16 }) => ({ isa: name, bfloat16 }));

const rounded = (values: Float32Array): Float32Array =>
  values.map((value) => fromBFloat16(toBFloat16(value)));
const roundedMatrix = (m: Matrix): Matrix => ({ ...m, data: rounded(m.data) });

/** [m, k, n]: less than a pair and a vector of pairs, halves of pairs, few rows, several blocks of k and of rows. */
const SHAPES: [number, number, number][] = [
  [1, 1, 1],
  [2, 17, 9],
  [3, 33, 7],
  [1, 2310, 120],
  [4, 1300, 110],
  [7, 95, 13],
  [9, 1030, 49],
  [13, 2511, 20],
  [66, 1124, 55],
  [130, 47, 30],
];

describe.each(places)("$isa", ({ isa, bfloat16 }) => {
  const inBoth = <T>(threads: number, body: (backend: Backend) => T): { plain: T; paired: T } => ({
    plain: withBackend({ isa, threads }, body),
    paired: withBackend({ isa, threads, compute: "bf16" }, body),
  });

  test("the description tells", () => {
    const { plain, paired } = inBoth(1, (b) => b.description());
    expect(plain).toBe(`cpu ${isa}, 1 thread`);
    expect(paired).toBe(bfloat16 ? `cpu ${isa} bfloat16, 1 thread` : plain);
  });

  test.each(SHAPES)("linear [%i, %i] x [%i]: against float64 of rounded operands", (m, k, n) => {
    withRandom((random) => {
      const x = random.matrix(m, k, 1, k + 3);
      const weight = random.weight("bf16", n, k, 1 / sqrt(k));
      const [a, b] = [packed(bfloat16 ? roundedMatrix(x) : x), valuesOf(weight)];
      const expected = new Float64Array(m * n);
      const bound = new Float64Array(m * n);
      for (let i = 0; i < m * n; i++) {
        const [row, column] = [Math.floor(i / n), i % n];
        let magnitude = 0;
        for (let c = 0; c < k; c++) {
          const term = a[row * k + c]! * b[column * k + c]!;
          expected[i]! += term;
          magnitude += abs(term);
        }
        bound[i] = dotBound(k, magnitude) + UNIT_ROUNDOFF * abs(expected[i]!);
      }
      const run = (rows: Matrix) => (backend: Backend) => backend.linear({ x: rows, weight });
      const actual = withBackend({ isa, threads: 2, compute: "bf16" }, run(x));
      expectClose(actual, expected, bound);
      // The same bits with any number of threads, and for a row by itself.
      for (const threads of [1, 5])
        expectSameBits(withBackend({ isa, threads, compute: "bf16" }, run(x)), actual);
      for (const r of [0, m - 1])
        expectSameBits(
          withBackend({ isa, threads: 1, compute: "bf16" }, run(rowsOf(x, r, 1))),
          actual.subarray(r * n, (r + 1) * n),
          `row ${r} alone`,
        );
    })();
  });

  test(
    "weights of other types are multiplied in float32",
    withRandom((random) => {
      const x = random.matrix(9, 70);
      for (const type of ["f32", "f16"] as const) {
        const weight = random.weight(type, 20, 70);
        const { plain, paired } = inBoth(1, (b) => b.linear({ x, weight }));
        expectSameBits(paired, plain, type);
      }
    }),
  );

  /** Results of an operation with operands as they are, and with the rounded ones, which float32 agrees with. */
  const OPERATIONS: [string, (backend: Backend, round: (m: Matrix) => Matrix) => Float32Array][] =
    [];
  withRandom((random) => {
    const x = random.matrix(21, 90);
    const [gate, up] = [random.weight("bf16", 50, 90, 0.1), random.weight("bf16", 50, 90, 0.1)];
    OPERATIONS.push([
      "gated_linear",
      (b, round) => b.gatedLinear({ x: round(x), gate, up, activation: "gelu_tanh" }),
    ]);
    const pixels = random.matrix(7 * 9, 11);
    const shape = { height: 7, width: 9, kernel: 3, stride: 1, padBefore: 1, padAfter: 1 };
    const weight = random.weight("bf16", 13, 99, 0.1);
    const bias = random.floats(13);
    OPERATIONS.push([
      "convolution",
      (b, round) => b.convolution({ x: round(pixels), ...shape, weight, bias }),
    ]);
    const token = random.matrix(1, 45);
    const image = {
      weight: random.weight("bf16", 40, 45, 0.1),
      bias: random.floats(40),
      position: random.weight("bf16", 4, 40),
      nextPosition: random.weight("bf16", 4, 40),
      begin: random.floats(40),
    };
    OPERATIONS.push([
      "image_embed",
      (b, round) =>
        b.imageEmbed({ rows: [{ token: round(token).data, cell: 1, next: 2 }], ...image }),
    ]);
  })();

  test.each(OPERATIONS)("%s: as float32 with rounded operands", (_name, run) => {
    const { plain, paired } = inBoth(2, (b) => run(b, (m) => m));
    if (!bfloat16) return expectSameBits(paired, plain);
    const expected = withBackend({ isa, threads: 1 }, (b) => run(b, roundedMatrix));
    let scale = 0;
    for (const value of expected) scale = Math.max(scale, abs(value));
    // Sums of at most a hundred terms in two orders, and an activation of slope 1.1 at most.
    expectClose(
      paired,
      Float64Array.from(expected),
      Float64Array.from(expected, () => 300 * UNIT_ROUNDOFF * scale),
    );
    // Rounding a pixel or a row is of another size than that.
    expect(paired).not.toEqual(plain);
  });

  test(
    "diffusion_head: near float32, by what its products round",
    withRandom((random) => {
      const [channels, condition] = [12, 40];
      const shape = { channels, condition, width: 72, depth: 2, flow: true, type: "bf16" } as const;
      const head = randomHead(random, shape);
      const args = {
        head,
        x: random.matrix(11, channels),
        time: Float32Array.from({ length: 11 }, () => random.uniform() * 1000),
        z: random.matrix(11, condition),
      };
      const { plain, paired } = inBoth(2, (b) => b.diffusionHead(args));
      if (!bfloat16) return expectSameBits(paired, plain);
      let [scale, gap] = [0, 0];
      plain.forEach((value, i) => {
        scale = Math.max(scale, abs(value));
        gap = Math.max(gap, abs(value - paired[i]!));
      });
      // Eight layers one behind another, each of which rounds by half a unit of 2^-8 and passes on what came before.
      expect(gap).toBeGreaterThan(0);
      expect(gap).toBeLessThan(16 * 2 ** -8 * scale);
    }),
  );
});
