/**
 * diffusion_head and diffusion_sample in bfloat16: widths whose weights all stay in shared memory, stream
 * through it and go past it; tokens alone, in teams, and in more than one pass.
 */
import { type CudaCase, Inputs, type Invariant, roundToBf16 } from "../../support/cuda-cases";
import { type HeadShape, randomHead, referenceStep, rowOf } from "../../support/diffusion";
import { type Random, rowsOf } from "../../support/numbers";
import {
  addon,
  type Backend,
  type DiffusionStep,
  type DiffusionToken,
  type Head,
  type Matrix,
} from "../../support/ops";

export interface Shape extends Omit<HeadShape, "type"> {
  rows: number;
}

/**
 * Errors are measured by the largest result, which among few results is small by chance: the fewer the channels, the
 * more rows.
 */
const SHAPES: Shape[] = [
  { width: 32, depth: 2, channels: 16, condition: 32, flow: false, rows: 9 },
  // Rows that cannot be copied in vectors.
  { width: 19, depth: 1, channels: 5, condition: 7, flow: false, rows: 12 },
  // Few rows: an odd number of them by posts, with zeros behind the width; and such as cannot be read in vectors.
  { width: 40, depth: 2, channels: 12, condition: 12, flow: true, rows: 3 },
  { width: 44, depth: 1, channels: 12, condition: 16, flow: false, rows: 5 },
  { width: 130, depth: 0, channels: 3, condition: 33, flow: true, rows: 14 },
  // Several tiles of columns; more parts of matrices than slots for them.
  { width: 256, depth: 3, channels: 16, condition: 40, flow: false, rows: 1 },
  // Rows of which a lane cannot keep its part; by posts, and with barriers.
  { width: 2088, depth: 0, channels: 4, condition: 8, flow: true, rows: 3 },
  { width: 2060, depth: 0, channels: 4, condition: 8, flow: false, rows: 26 },
  // Teams, each with several tiles of rows.
  { width: 64, depth: 1, channels: 8, condition: 24, flow: true, rows: 75 },
  // On Hopper clusters of blocks, with one tile of rows in a team to four.
  { width: 256, depth: 1, channels: 8, condition: 24, flow: false, rows: 8 },
  { width: 256, depth: 2, channels: 16, condition: 24, flow: false, rows: 13 },
  { width: 256, depth: 1, channels: 10, condition: 24, flow: true, rows: 34 },
  { width: 256, depth: 3, channels: 16, condition: 24, flow: false, rows: 77 },
  { width: 1024, depth: 2, channels: 16, condition: 64, flow: true, rows: 50 },
  { width: 1280, depth: 2, channels: 16, condition: 64, flow: false, rows: 128 },
  { width: 1536, depth: 1, channels: 64, condition: 64, flow: true, rows: 19 },
];
/** Of these the simulation would take too long. */
const isLarge = ({ width, rows }: Shape) => width > 2048 || width * rows > 20_000;
const named = ({ width, depth, channels, flow, rows }: Shape) =>
  `${rows} rows, width ${width}, depth ${depth}, ${channels} channels, ${flow ? "flow" : "ddpm"}`;

/** As headBound of diffusion.test.ts: a rounding after every linear and norm; independent, they add as squares. */
export const pathRoundings = (depth: number) => Math.sqrt(6 + 3 * depth);

export const bf16Head = (random: Random, shape: Shape): Head =>
  randomHead(random, { ...shape, type: "bf16" });
const times = (random: Random, count: number) =>
  Float32Array.from({ length: count }, () => Math.round(random.uniform() * 999));

/**
 * Steps from the middle of the schedule. At its start the clean token's estimate is 2e4 (x - eps) and in bfloat16
 * no more than its sign is left.
 */
export const middleSteps = (flow: boolean, count: number): DiffusionStep[] =>
  flow ? addon.flowSteps(1000, count) : addon.ddpmSteps(1000, 2 * count).slice(count);

export function randomTokens(random: Random, count: number, rows: number): DiffusionToken[] {
  return Array.from({ length: count }, (_, i) => ({
    z: random.integer(rows),
    zEmpty: i % 3 === 1 ? -1 : random.integer(rows),
    guidance: 1 + 2 * random.uniform(),
    temperature: 0.8 + 0.4 * random.uniform(),
    x0Limit: i % 4 === 0 ? Number.POSITIVE_INFINITY : 1 + 2 * random.uniform(),
    seed: (BigInt(random.bits()) << 32n) | BigInt(random.bits()),
    cell: random.integer(4096),
  }));
}

/** diffusion_sample as its parts: the network a step at a time, noise by name, the update in float64. */
function compose(
  backend: Backend,
  head: Head,
  z: Matrix,
  steps: DiffusionStep[],
  token: DiffusionToken,
): number[] {
  let x = Float64Array.from(addon.noise(token.seed, token.cell, head.channels));
  if (head.flow) x = x.map((v) => token.temperature * v);
  steps.forEach((step, s) => {
    const network = (row: number) =>
      Float64Array.from(
        backend.diffusionHead({
          head,
          x: { data: Float32Array.from(x, roundToBf16), rows: 1, cols: head.channels },
          time: Float32Array.of(step.time),
          z: rowsOf(z, row, 1),
        }),
      );
    const noise = step.noise ? addon.noise(token.seed, token.cell, head.channels, s) : undefined;
    const empty = token.zEmpty < 0 ? undefined : network(token.zEmpty);
    x = referenceStep(head, step, steps.length, token, x, network(token.z), empty, noise);
  });
  return [...x];
}

export const cases: CudaCase[] = [
  ...SHAPES.map(
    (shape): CudaCase => ({
      name: `diffusion_head: ${named(shape)}`,
      deviceOnly: isLarge(shape) && shape.width < 2048,
      bf16Only: isLarge(shape),
      tolerance: 2 * pathRoundings(shape.depth),
      run(backend, random) {
        const inputs = new Inputs(random);
        const { rows, channels, condition } = shape;
        return backend.diffusionHead({
          head: bf16Head(random, shape),
          x: inputs.matrix(rows, channels, 1, channels + 3),
          time: times(random, rows),
          z: inputs.matrix(rows, condition, 1, condition + 1),
          outStride: 2 * channels + 1,
        });
      },
    }),
  ),
  ...SHAPES.map(
    (shape): CudaCase => ({
      name: `diffusion_sample: ${named(shape)}`,
      deviceOnly: isLarge(shape),
      bf16Only: isLarge(shape),
      // Guidance adds three times the difference of two outputs. DDPM's noise has a scale of its own output, v: in the
      // second step exp(1.95 v). The largest outputs are about 3, and so it is off by six times their relative error.
      tolerance: (shape.flow ? 6 : 12) * pathRoundings(shape.depth),
      run(backend, random) {
        const z = new Inputs(random).matrix(6, shape.condition);
        return backend.diffusionSample({
          head: bf16Head(random, shape),
          z,
          steps: middleSteps(shape.flow, 3),
          tokens: randomTokens(random, shape.rows, z.rows),
        });
      },
    }),
  ),
  ...[true, false].map(
    (flow): CudaCase => ({
      name: `diffusion_sample less the composition of its parts, ${flow ? "flow" : "ddpm"}`,
      // The parts round the network's outputs, which may be several times as large as a latent, and guidance adds up
      // to three times a difference of two. Over a hundred draws the largest were 7 and 15.
      tolerance: flow ? 16 : 32,
      run(backend, random) {
        const shape = { width: 48, depth: 2, channels: 8, condition: 16, flow, rows: 4 };
        const head = bf16Head(random, shape);
        const z = new Inputs(random).matrix(6, shape.condition);
        const steps = middleSteps(flow, 3);
        const tokens = randomTokens(random, 4, z.rows);
        const sampled = backend.diffusionSample({ head, z, steps, tokens });
        const composed = tokens.flatMap((token) => compose(backend, head, z, steps, token));
        // The composition itself last, for the scale of what is allowed.
        return Float32Array.from([...sampled.map((v, i) => v - composed[i]!), ...composed]);
      },
    }),
  ),
];

interface Company {
  name: string;
  deviceOnly?: boolean;
  shape: Omit<Shape, "rows">;
  tokens: number;
  steps: number;
  alone: number[];
}

const COMPANIES: Company[] = [
  {
    name: "several teams",
    shape: { width: 64, depth: 2, channels: 6, condition: 24, flow: false },
    tokens: 40,
    steps: 3,
    alone: [0, 1, 17, 39],
  },
  {
    name: "more than one pass",
    shape: { width: 16, depth: 1, channels: 4, condition: 8, flow: true },
    tokens: 110,
    steps: 2,
    alone: [0, 55, 108, 109],
  },
  {
    name: "more rows of modulations than are held at a time",
    shape: { width: 16, depth: 1, channels: 4, condition: 8, flow: false },
    tokens: 30,
    steps: 50,
    alone: [2, 28],
  },
  {
    // Means of parts that are no powers of two long, which must round before they are taken away.
    name: "a width that is no power of two, by posts alone and with barriers together",
    shape: { width: 352, depth: 1, channels: 4, condition: 16, flow: true },
    tokens: 12,
    steps: 2,
    alone: [0, 5, 11],
  },
  {
    name: "by posts alone and, on Hopper, on clusters together",
    shape: { width: 256, depth: 2, channels: 8, condition: 16, flow: false },
    tokens: 23,
    steps: 3,
    alone: [0, 8, 22],
  },
  {
    name: "by posts alone and, on Hopper, on clusters together, of UniFluid's size",
    deviceOnly: true,
    shape: { width: 1280, depth: 8, channels: 16, condition: 64, flow: false },
    tokens: 64,
    steps: 20,
    alone: [0, 31, 63],
  },
];

export const invariants: Invariant[] = [
  ...COMPANIES.map(
    ({ name, deviceOnly, shape, tokens: count, steps: stepCount, alone }): Invariant => ({
      name: `tokens alone and among ${count}: ${name}`,
      deviceOnly,
      bf16Only: deviceOnly,
      run(backend, random) {
        const head = bf16Head(random, { ...shape, rows: count });
        const z = new Inputs(random).matrix(9, shape.condition);
        const steps = middleSteps(shape.flow, stepCount);
        const tokens = randomTokens(random, count, z.rows);
        const all = backend.diffusionSample({ head, z, steps, tokens });
        const matrix = { data: all, rows: count, cols: shape.channels };
        return {
          whole: Float32Array.from(alone.flatMap((i) => [...rowOf(matrix, i)])),
          alone: Float32Array.from(
            alone.flatMap((i) => [
              ...backend.diffusionSample({ head, z, steps, tokens: [tokens[i]!] }),
            ]),
          ),
        };
      },
    }),
  ),
  // One row's weights stream through shared memory; beside 32 rows of this width there is room for one part.
  {
    name: "rows of a wide network alone and among 32",
    run(backend, random) {
      const shape = { width: 512, depth: 1, channels: 4, condition: 16, flow: true, rows: 32 };
      const head = bf16Head(random, shape);
      const inputs = new Inputs(random);
      const x = inputs.matrix(32, shape.channels);
      const z = inputs.matrix(32, shape.condition);
      const time = times(random, 32);
      const all = backend.diffusionHead({ head, x, time, z });
      const part = (first: number) =>
        backend.diffusionHead({
          head,
          x: rowsOf(x, first, 1),
          time: time.slice(first, first + 1),
          z: rowsOf(z, first, 1),
        });
      const c = shape.channels;
      return {
        whole: Float32Array.from([...all.slice(0, c), ...all.slice(31 * c)]),
        alone: Float32Array.from([...part(0), ...part(31)]),
      };
    },
  },
];
