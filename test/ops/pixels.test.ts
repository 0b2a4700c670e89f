/** read_pixels against its definition, bit for bit; elements that are not finite, wherever they are. */
import { type Random, withRandom } from "../support/numbers";
import { describeBackends, type Matrix } from "../support/ops";

const { floor, fround, max, min } = Math;

/** Half to even, of numbers that are not negative. */
function toEven(x: number): number {
  const below = floor(x);
  const rest = x - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/** In float32 step by step, so that there is one right answer. */
const byteOf = (x: number) => toEven(fround(fround(max(-1, min(1, x)) + 1) * fround(127.5)));

function reference({ data, rows, cols, stride = cols }: Matrix): Uint8Array {
  const out = new Uint8Array(rows * cols);
  for (let i = 0; i < out.length; i++)
    out[i] = byteOf(data[floor(i / cols) * stride + (i % cols)]!);
  return out;
}

/** Elements in the middle of two bytes, at both ends and beyond them. */
function drawn(random: Random, rows: number, cols: number, stride = cols): Matrix {
  const x = { ...random.matrix(rows, cols, 0.7, stride), stride };
  for (let i = 0; i < x.data.length; i += 3) {
    const ends = [-1, 1, -1.5, 1.5, -0, -1e30, 1e30, 1e-30, fround(1 - 2 ** -24)];
    x.data[i] =
      i % 2 === 0
        ? fround((random.integer(255) + 0.5) / 127.5 - 1)
        : ends[random.integer(ends.length)]!;
  }
  return x;
}

const SHAPES: [rows: number, cols: number, stride: number][] = [
  [1, 1, 1],
  [5, 3, 3],
  [64, 3, 3],
  [61, 3, 4],
  [20, 24, 32],
  [9, 13, 13],
  // On several threads of a CPU, with the last piece shorter.
  [70_000, 3, 3],
  [50_000, 3, 4],
];

describeBackends("read_pixels", (backend) => {
  test.each(SHAPES)("%i rows of %i, stride %s", (rows, cols, stride) =>
    withRandom((random) => {
      const x = drawn(random, rows, cols, stride);
      expect(Buffer.compare(backend().readPixels({ x })!, reference(x))).toBe(0);
    })(),
  );

  test("no rows", () => {
    const x = { data: new Float32Array(0), rows: 0, cols: 3 };
    expect(backend().readPixels({ x })).toEqual(new Uint8Array(0));
  });

  test.each(SHAPES)("%i rows of %i, stride %s: not finite", (rows, cols, stride) =>
    withRandom((random) => {
      const x = drawn(random, rows, cols, stride);
      for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])
        for (const [row, column] of [
          [0, 0],
          [rows - 1, cols - 1],
          [random.integer(rows), random.integer(cols)],
        ] as const) {
          const data = x.data.slice();
          data[row * stride + column] = value;
          expect(backend().readPixels({ x: { ...x, data } })).toBeNull();
        }
    })(),
  );

  test(
    "gaps between rows may hold anything",
    withRandom((random) => {
      const x = drawn(random, 40, 5, 7);
      for (let i = 0; i < 40; i++) x.data.fill(Number.NaN, i * 7 + 5, i * 7 + 7);
      expect(Buffer.compare(backend().readPixels({ x })!, reference(x))).toBe(0);
    }),
  );
});
