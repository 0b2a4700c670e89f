/** group_norm in bfloat16: groups within, across and beyond a piece; one run of pixels and many. */
import { type CudaCase, Inputs } from "../../support/cuda-cases";

/** [pixels, channels, groups]; a run is 8 pieces of 8 channels to each of 256 threads, or 8 pixels. */
const SHAPES: [number, number, number][] = [
  [1, 8, 2],
  [9, 32, 32],
  [50, 12, 3],
  [70, 64, 32],
  [700, 96, 4],
  [300, 128, 32],
  [5, 2200, 2],
  [3, 16400, 8],
  // Several runs, the last one short; more of them than threads that merge.
  [37, 2200, 2],
  [1000, 128, 16],
  [600_000, 1, 1],
];

/** Autoencoders' layers: too many runs for the simulation. */
const LAYERS: typeof SHAPES = [
  [64 * 64, 512, 32],
  [256 * 256, 128, 32],
];

/** More runs than are on their way at once. */
const manyRuns: CudaCase = {
  name: "8600000 pixels of 1 channel",
  deviceOnly: true,
  run(backend, random) {
    const one = new Float32Array([1]);
    const x = new Inputs(random).matrix(8_600_000, 1, 2);
    return backend.groupNorm({ x, groups: 1, weight: one, bias: one, eps: 1e-6 });
  },
};

const layers = [...SHAPES, ...LAYERS].flatMap((shape) =>
  [false, true].map(
    (silu): CudaCase => ({
      name: `${shape[0]} pixels of ${shape[1]} channels in ${shape[2]} groups${silu ? ", silu" : ""}`,
      deviceOnly: LAYERS.includes(shape),
      run(backend, random) {
        const [pixels, channels, groups] = shape;
        const inputs = new Inputs(random);
        const gap = silu ? 8 : 0;
        return backend.groupNorm({
          x: inputs.matrix(pixels, channels, 2, channels + gap),
          groups,
          weight: random.floats(channels),
          bias: random.floats(channels),
          eps: 1e-6,
          silu,
          ...(silu ? { inPlace: true } : { outStride: channels + 3 }),
        });
      },
    }),
  ),
);

export const cases: CudaCase[] = [...layers, manyRuns];
export const invariants = [];
