/** convolution in bfloat16: every tile, windows of whole pieces and not, strides, paddings, enlargement. */
import { type CudaCase, Inputs, type Invariant } from "../../support/cuda-cases";
import type { Random } from "../../support/numbers";

const same = { kernel: 3, stride: 1, upsample: 1, padBefore: 1, padAfter: 1 };
const pointwise = { ...same, kernel: 1, padBefore: 0, padAfter: 0 };
const down = { ...same, stride: 2, padBefore: 0 };
const up = { ...same, upsample: 2 };

type Shape = typeof same & { height: number; width: number; channels: number; outputs: number };

const SHAPES: [string, Shape][] = [
  ["few channels", { ...same, height: 7, width: 9, channels: 4, outputs: 24 }],
  ["few channels, many pixels", { ...same, height: 17, width: 16, channels: 3, outputs: 129 }],
  ["to 3 channels", { ...same, height: 12, width: 11, channels: 16, outputs: 3 }],
  // The image itself in shared memory: tiles of 8 lines of 16 pixels, at every edge.
  ["to 3 channels, a part", { ...same, height: 7, width: 12, channels: 32, outputs: 3 }],
  ["to 3 channels, parts", { ...same, height: 19, width: 37, channels: 96, outputs: 3 }],
  ["to 8 channels, pointwise", { ...pointwise, height: 9, width: 16, channels: 64, outputs: 8 }],
  [
    "to 5 channels, windows of 5",
    { ...same, kernel: 5, padAfter: 2, height: 11, width: 17, channels: 32, outputs: 5 },
  ],
  [
    "to 1 channel without padding",
    { ...same, padBefore: 0, padAfter: 0, height: 10, width: 19, channels: 32, outputs: 1 },
  ],
  ["odd channels", { ...same, height: 5, width: 6, channels: 21, outputs: 33 }],
  ["a small tile", { ...same, height: 8, width: 9, channels: 40, outputs: 72 }],
  ["many pixels to few channels", { ...same, height: 20, width: 20, channels: 8, outputs: 40 }],
  ["a square tile of odd channels", { ...same, height: 12, width: 12, channels: 5, outputs: 132 }],
  ["a square tile", { ...same, height: 12, width: 15, channels: 24, outputs: 136 }],
  ["a large tile", { ...same, height: 23, width: 25, channels: 8, outputs: 136 }],
  ["one pixel", { ...same, height: 1, width: 1, channels: 8, outputs: 16 }],
  ["a line", { ...same, height: 1, width: 30, channels: 16, outputs: 18 }],
  ["pointwise", { ...pointwise, height: 9, width: 8, channels: 72, outputs: 50 }],
  ["pointwise, large", { ...pointwise, height: 24, width: 24, channels: 40, outputs: 130 }],
  ["downsampling", { ...down, height: 11, width: 14, channels: 32, outputs: 32 }],
  ["downsampling few channels", { ...down, height: 10, width: 8, channels: 6, outputs: 20 }],
  ["upsampling", { ...up, height: 6, width: 7, channels: 32, outputs: 40 }],
  ["upsampling, large", { ...up, height: 12, width: 13, channels: 16, outputs: 144 }],
  ["upsampling odd channels", { ...up, height: 3, width: 4, channels: 10, outputs: 9 }],
  // On Hopper: each tile, as they are chosen for the simulation's four processors; boxes at every edge.
  ["whole boxes", { ...same, height: 9, width: 13, channels: 64, outputs: 40 }],
  ["whole boxes, a square tile", { ...same, height: 30, width: 15, channels: 64, outputs: 120 }],
  ["whole boxes, a wide tile", { ...same, height: 30, width: 15, channels: 128, outputs: 248 }],
  ["whole boxes of one pixel", { ...same, height: 1, width: 1, channels: 64, outputs: 24 }],
  ["pointwise, whole boxes", { ...pointwise, height: 9, width: 8, channels: 192, outputs: 50 }],
  ["upsampling whole boxes", { ...up, height: 5, width: 9, channels: 64, outputs: 72 }],
  ["downsampling whole boxes", { ...down, height: 9, width: 8, channels: 64, outputs: 72 }],
  [
    "whole boxes without padding",
    { ...same, padBefore: 0, padAfter: 0, height: 11, width: 19, channels: 64, outputs: 33 },
  ],
  [
    "whole boxes, padded after only",
    { ...up, padBefore: 0, height: 6, width: 5, channels: 64, outputs: 48 },
  ],
  [
    "patches",
    {
      ...pointwise,
      kernel: 4,
      stride: 4,
      height: 12,
      width: 16,
      channels: 3,
      outputs: 30,
    },
  ],
];

const outputSize = (s: Shape, size: number) =>
  Math.floor((size * s.upsample + s.padBefore + s.padAfter - s.kernel) / s.stride) + 1;

function randomInputs(random: Random, s: Shape, gap = 0) {
  const inputs = new Inputs(random);
  return {
    ...s,
    x: inputs.matrix(s.height * s.width, s.channels, 1, s.channels + gap),
    weight: inputs.weight(s.outputs, s.channels * s.kernel * s.kernel),
    bias: random.floats(s.outputs),
  };
}

/** Autoencoders' layers, as large as they come; on a device they take the tiles that small ones do not. */
const LAYERS: [string, Shape][] = [
  ["64x64, 512 channels", { ...same, height: 64, width: 64, channels: 512, outputs: 512 }],
  ["256x256, 128 channels", { ...same, height: 256, width: 256, channels: 128, outputs: 128 }],
  ["256x256 to 3 channels", { ...same, height: 256, width: 256, channels: 128, outputs: 3 }],
  ["3 channels of 256x256", { ...same, height: 256, width: 256, channels: 3, outputs: 128 }],
  ["up to 128x128", { ...up, height: 64, width: 64, channels: 256, outputs: 256 }],
];

export const cases: CudaCase[] = [
  ...SHAPES.flatMap(([name, shape]): CudaCase[] => [
    {
      name,
      run: (backend, random) => backend.convolution(randomInputs(random, shape)),
    },
    {
      name: `${name}, with a residual and gaps`,
      run(backend, random) {
        const pixels = outputSize(shape, shape.height) * outputSize(shape, shape.width);
        const residual = new Inputs(random).matrix(pixels, shape.outputs, 1, shape.outputs + 2);
        const inputs = randomInputs(random, shape, 8);
        return backend.convolution({ ...inputs, residual, outStride: shape.outputs + 5 });
      },
    },
  ]),
  ...[3, 4].map(
    (outputs): CudaCase => ({
      name: `to ${outputs} channels, in place of the residual`,
      run(backend, random) {
        const shape = { ...same, height: 6, width: 7, channels: 16, outputs };
        const residual = new Inputs(random).matrix(42, outputs);
        return backend.convolution({ ...randomInputs(random, shape), residual, inPlace: true });
      },
    }),
  ),
  ...LAYERS.map(
    ([name, shape]): CudaCase => ({
      name,
      deviceOnly: true,
      run: (backend, random) => backend.convolution(randomInputs(random, shape)),
    }),
  ),
];

/** The whole image takes the large tile, the strip the square one and the line a small one; on Hopper others. */
export const invariants: Invariant[] = [
  { lines: 9, channels: 8 },
  { lines: 1, channels: 8 },
  { lines: 3, channels: 64 },
  { lines: 3, channels: 64, outputs: 3 },
].map(({ lines, channels, outputs = 136 }) => ({
  name: `${lines} lines of an image of 24, ${channels} channels to ${outputs}`,
  run(backend, random) {
    const width = 24;
    const shape = { ...same, padBefore: 0, padAfter: 0, height: 24, width, channels, outputs };
    const inputs = randomInputs(random, shape);
    const [first, size] = [5, (width - 2) * outputs];
    const all = backend.convolution(inputs);
    return {
      whole: all.slice(first * size, (first + lines) * size),
      alone: backend.convolution({
        ...inputs,
        height: lines + 2,
        x: {
          data: inputs.x.data.slice(
            first * width * channels,
            (first + lines + 2) * width * channels,
          ),
          rows: (lines + 2) * width,
          cols: channels,
        },
      }),
    };
  },
}));
