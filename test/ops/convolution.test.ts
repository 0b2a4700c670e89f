/** convolution against a plain float64 one: kernels, strides, paddings, enlargement, stored types. */
import {
  dotBound,
  expectClose,
  misaligned,
  packed,
  type Random,
  UNIT_ROUNDOFF,
  valuesOf,
  withRandom,
} from "../support/numbers";
import {
  describeBackends,
  expectSameBits,
  expectSameEverywhere,
  type Matrix,
  type StoredType,
} from "../support/ops";

// Looked up once: jest makes every mention of a global slow, and these stand in inner loops.
const { abs, floor, sqrt } = Math;

interface Shape {
  height: number;
  width: number;
  channels: number;
  outputs: number;
  kernel: number;
  stride: number;
  upsample: number;
  padBefore: number;
  padAfter: number;
}

const outputSize = (s: Shape, size: number) =>
  floor((size * s.upsample + s.padBefore + s.padAfter - s.kernel) / s.stride) + 1;

function randomCase(random: Random, s: Shape, type: StoredType, gap = 0) {
  const window = s.channels * s.kernel * s.kernel;
  return {
    ...s,
    x: random.matrix(s.height * s.width, s.channels, 1, s.channels + gap),
    weight: random.weight(type, s.outputs, window, 1 / sqrt(window)),
    bias: random.floats(s.outputs),
  };
}

/** Channels-last, in float64, straight from the definition; and a bound for each element's error. */
function reference(c: ReturnType<typeof randomCase>, residual?: Matrix) {
  const [rows, columns] = [outputSize(c, c.height), outputSize(c, c.width)];
  const [x, w] = [packed(c.x), valuesOf(c.weight)];
  const added = residual && packed(residual);
  const out = new Float64Array(rows * columns * c.outputs);
  const bound = new Float64Array(out.length);
  const taps = c.kernel * c.kernel;
  for (let i = 0; i < out.length; i++) {
    const o = i % c.outputs;
    const pixel = floor(i / c.outputs);
    const [row, column] = [floor(pixel / columns), pixel % columns];
    let sum = 0;
    let magnitude = 0;
    for (let ky = 0; ky < c.kernel; ky++)
      for (let kx = 0; kx < c.kernel; kx++) {
        // Positions in the enlarged image.
        const y = row * c.stride + ky - c.padBefore;
        const z = column * c.stride + kx - c.padBefore;
        if (y < 0 || z < 0 || y >= c.height * c.upsample || z >= c.width * c.upsample) continue;
        const at = floor(y / c.upsample) * c.width + floor(z / c.upsample);
        for (let ch = 0; ch < c.channels; ch++) {
          const tap = (o * c.channels + ch) * taps + ky * c.kernel + kx;
          const term = x[at * c.channels + ch]! * w[tap]!;
          sum += term;
          magnitude += abs(term);
        }
      }
    const biased = sum + c.bias[o]!;
    out[i] = biased + (added?.[i] ?? 0);
    bound[i] =
      dotBound(c.channels * taps, magnitude) + UNIT_ROUNDOFF * (abs(biased) + abs(out[i]!));
  }
  return { out, bound, pixels: rows * columns };
}

const plain = { stride: 1, upsample: 1 };
const same = { ...plain, kernel: 3, padBefore: 1, padAfter: 1 };
const CASES: [string, Shape][] = [
  ["3x3 on 3 channels", { ...same, height: 9, width: 11, channels: 3, outputs: 20 }],
  ["3x3 on 4 channels", { ...same, height: 5, width: 4, channels: 4, outputs: 7 }],
  ["3x3 on whole vectors", { ...same, height: 6, width: 13, channels: 32, outputs: 49 }],
  ["3x3 to 3 channels", { ...same, height: 8, width: 8, channels: 21, outputs: 3 }],
  ["3x3 on one pixel", { ...same, height: 1, width: 1, channels: 5, outputs: 6 }],
  ["3x3 on a line", { ...same, height: 1, width: 9, channels: 6, outputs: 5 }],
  ["3x3 with k in blocks", { ...same, height: 5, width: 5, channels: 130, outputs: 10 }],
  [
    "3x3 without padding",
    { ...same, padBefore: 0, padAfter: 0, height: 7, width: 6, channels: 9, outputs: 11 },
  ],
  [
    "1x1",
    {
      ...plain,
      kernel: 1,
      padBefore: 0,
      padAfter: 0,
      height: 9,
      width: 15,
      channels: 24,
      outputs: 50,
    },
  ],
  [
    "downsampling, padded after only",
    { ...same, stride: 2, padBefore: 0, height: 8, width: 10, channels: 10, outputs: 12 },
  ],
  [
    "downsampling of an odd size",
    { ...same, stride: 2, padBefore: 0, height: 7, width: 9, channels: 4, outputs: 4 },
  ],
  ["upsampling", { ...same, upsample: 2, height: 5, width: 6, channels: 10, outputs: 13 }],
  [
    "1x1 upsampling",
    {
      ...same,
      kernel: 1,
      padBefore: 0,
      padAfter: 0,
      upsample: 2,
      height: 3,
      width: 4,
      channels: 6,
      outputs: 5,
    },
  ],
  [
    "1x1 with a stride",
    {
      ...same,
      kernel: 1,
      padBefore: 0,
      padAfter: 0,
      stride: 2,
      height: 5,
      width: 7,
      channels: 6,
      outputs: 5,
    },
  ],
  [
    "patches",
    {
      ...plain,
      kernel: 4,
      stride: 4,
      padBefore: 0,
      padAfter: 0,
      height: 12,
      width: 16,
      channels: 3,
      outputs: 30,
    },
  ],
];

describeBackends("convolution", (backend) => {
  test.each(CASES)("%s", (_, shape) => {
    withRandom((random) => {
      for (const type of ["f32", "f16", "bf16"] as const) {
        const c = randomCase(random, shape, type);
        const { out, bound } = reference(c);
        const actual = backend().convolution(c);
        expectClose(actual, out, bound);
        const moved = backend().convolution({ ...c, weight: misaligned(c.weight) });
        expectSameBits(moved, actual, "misaligned weight");
      }
    })();
  });

  test.each(CASES)("%s with a residual, gaps between rows and in place", (_, shape) => {
    withRandom((random) => {
      const c = randomCase(random, shape, "f32", 3);
      const { pixels } = reference(c);
      const residual = random.matrix(pixels, shape.outputs, 1, shape.outputs + 2);
      const { out, bound } = reference(c, residual);
      const stride = shape.outputs + 4;
      const wide = backend().convolution({ ...c, residual, outStride: stride });
      const inner = { data: wide, rows: pixels, cols: shape.outputs, stride };
      expectClose(packed(inner), out, bound);
      for (let p = 0; p < pixels; p++)
        if (!wide.subarray(p * stride + shape.outputs, (p + 1) * stride).every(Number.isNaN))
          throw new Error(`pixel ${p} was written beyond its end`);
      const onto = backend().convolution({ ...c, residual, inPlace: true });
      expectSameBits(
        Float32Array.from(packed({ ...residual, data: onto })),
        Float32Array.from(packed(inner)),
        "in place",
      );
    })();
  });

  test("a pixel has the same bits wherever it lies", () => {
    withRandom((random) => {
      // The same window of values at different places of a larger image.
      const shape = { ...same, height: 12, width: 15, channels: 17, outputs: 19 };
      const c = randomCase(random, shape, "bf16");
      const small = {
        ...c,
        height: 3,
        width: 3,
        x: { data: new Float32Array(9 * 17), rows: 9, cols: 17 },
      };
      const all = backend().convolution(c);
      for (const [row, column] of [
        [1, 1],
        [5, 9],
        [10, 13],
      ] as const) {
        for (let r = 0; r < 3; r++)
          for (let k = 0; k < 3; k++) {
            const at = ((row - 1 + r) * 15 + column - 1 + k) * 17;
            small.x.data.set(c.x.data.subarray(at, at + 17), (r * 3 + k) * 17);
          }
        const center = backend()
          .convolution(small)
          .slice(4 * 19, 5 * 19);
        const at = (row * 15 + column) * 19;
        expectSameBits(center, all.slice(at, at + 19), `row ${row}, column ${column}`);
      }
    })();
  });
});

test(
  "every instruction set and thread count",
  withRandom((random) => {
    for (const shape of [
      { ...same, height: 20, width: 22, channels: 33, outputs: 70 },
      { ...same, height: 4, width: 4, channels: 128, outputs: 130 },
      { ...same, upsample: 2, height: 9, width: 11, channels: 24, outputs: 50 },
    ]) {
      const c = randomCase(random, shape, "f32");
      expectSameEverywhere((backend) => backend.convolution(c), 1e-5);
    }
  }),
);
