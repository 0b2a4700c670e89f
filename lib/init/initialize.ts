/** What the weights of a fresh model are, tensor by tensor. */
import { setImmediate } from "node:timers/promises";
import type { ExpectedTensor } from "../checkpoint/tensor-table.js";
import { Random } from "../philox.js";

/** Fills the next rows of a tensor of that shape, from row `first` on. */
type Initializer = (
  values: Float32Array,
  shape: readonly number[],
  random: Random,
  first: number,
) => void;

const constant =
  (value: number): Initializer =>
  (values) =>
    void values.fill(value);

const normal =
  (deviation: number | ((shape: readonly number[]) => number)): Initializer =>
  (values, shape, random) => {
    const scale = typeof deviation === "number" ? deviation : deviation(shape);
    for (let i = 0; i < values.length; i++) values[i] = scale * random.normal();
  };

const uniform =
  (bound: (shape: readonly number[]) => number): Initializer =>
  (values, shape, random) => {
    const b = bound(shape);
    for (let i = 0; i < values.length; i++) values[i] = random.between(-b, b);
  };

const inputs = (shape: readonly number[]) => shape.slice(1).reduce((n, d) => n * d, 1);

/** Glorot and Bengio's: the same variance forwards and backwards. */
const xavier = uniform((shape) => Math.sqrt(6 / ((shape[0] as number) + inputs(shape))));
/** The default of torch's convolutions and linear layers. */
const torchDefault = uniform((shape) => 1 / Math.sqrt(inputs(shape)));

/**
 * Smooth codes of the cells of a square grid: sines and cosines along each axis, root mean square 0.5. Cells
 * that lie beside each other begin alike.
 */
const gridWaves: Initializer = (values, shape, _random, first) => {
  const [cells, width] = shape as [number, number];
  const side = Math.round(Math.sqrt(cells));
  const quarter = Math.floor(width / 4);
  const [low, high] = [Math.log(Math.PI / 16), Math.log(Math.PI / 1.5)];
  for (let i = 0; i < values.length / width; i++) {
    const cell = first + i;
    const row = Math.floor(cell / side);
    for (let k = 0; k < quarter; k++) {
      const f = Math.exp(low + ((high - low) * k) / Math.max(1, quarter - 1));
      const waves = [row, cell % side].flatMap((at) => [Math.sin(at * f), Math.cos(at * f)]);
      for (const [n, wave] of waves.entries())
        values[i * width + n * quarter + k] = wave * Math.SQRT1_2;
    }
  }
};

/** The first that matches a tensor's canonical name says how it begins. */
const RULES: readonly (readonly [RegExp, Initializer])[] = [
  // The decoder: transformers' normal draws; norms hold what is added to 1.
  [
    /^language_model\.embed_tokens\.weight$/,
    normal((shape) => 0.5 / Math.sqrt(shape[1] as number)),
  ],
  [/^language_model\..*norm\.weight$/, constant(0)],
  [/^(language_model|lm_head)\b/, normal(0.02)],
  // SigLIP.
  [/^vision_tower\..*position_embedding\.weight$/, gridWaves],
  [/^vision_tower\..*patch_embedding\.weight$/, normal((shape) => 1 / Math.sqrt(inputs(shape)))],
  [/^vision_tower\..*norm\d?\.weight$/, constant(1)],
  [/^vision_tower\..*\.weight$/, xavier],
  [/^multi_modal_projector\..*\.weight$/, xavier],
  // Image tokens.
  [/^image_in\.weight$/, normal((shape) => 0.5 / Math.sqrt(shape[1] as number))],
  [/^image_(next_)?position\.weight$/, gridWaves],
  [/^image_begin$/, normal(0.5)],
  // The head as MAR begins: modulations and outputs at zero, so that each block begins as the identity.
  [/^diffusion_head\..*in_ln\.weight$/, constant(1)],
  [/^diffusion_head\.(.*adaLN_modulation|final_layer)\b/, constant(0)],
  [/^diffusion_head\.time_embed\..*\.weight$/, normal(0.02)],
  [/^diffusion_head\..*\.weight$/, xavier],
  // The autoencoder.
  [/^vae\..*(norm\d?|norm_out)\.weight$/, constant(1)],
  [/^vae\..*\.weight$/, torchDefault],
  [/\.bias$/, constant(0)],
];

/** Values that are drawn between two looks at the signal: some milliseconds. */
const AT_ONCE = 1 << 18;

/**
 * The values of a tensor of a fresh model, float32. They depend on the seed, the name and the shape alone. For
 * objective "ddpm" see also `noiseIsInput`. Throws the signal's reason.
 */
export async function initialize(
  { name, shape }: ExpectedTensor,
  seed: bigint,
  signal?: AbortSignal,
): Promise<Float32Array> {
  const values = new Float32Array(shape.reduce((n, d) => n * d, 1));
  const rule = RULES.find(([pattern]) => pattern.test(name));
  if (!rule) throw new RangeError(`there is no rule to initialize ${name}`);
  const random = new Random(seed, hash(name), 0);
  const row = inputs(shape);
  const rows = Math.max(1, Math.floor(AT_ONCE / row));
  for (let first = 0; first * row < values.length; first += rows) {
    // Drawing computes on this thread: signals are heard in between.
    await setImmediate();
    signal?.throwIfAborted();
    rule[1](values.subarray(first * row, (first + rows) * row), shape, random, first);
  }
  return values;
}

/** FNV-1a: names to streams of randomness. */
function hash(text: string): number {
  let h = 0x811c9dc5;
  for (const byte of Buffer.from(text)) h = Math.imul(h ^ byte, 0x01000193) >>> 0;
  return h;
}

/** `count` orthogonal vectors of length sqrt(width), the first constant; [count][width]. */
function orthogonal(width: number, count: number, random: Random): Float64Array[] {
  const basis: Float64Array[] = [new Float64Array(width).fill(1)];
  while (basis.length < count) {
    const v = Float64Array.from({ length: width }, () => random.normal());
    // Twice, against rounding.
    for (let pass = 0; pass < 2; pass++)
      for (const b of basis) {
        const along = b.reduce((sum, x, i) => sum + x * (v[i] as number), 0) / width;
        for (let i = 0; i < width; i++) v[i] = (v[i] as number) - along * (b[i] as number);
      }
    const length = Math.sqrt(v.reduce((sum, x) => sum + x * x, 0) / width);
    basis.push(v.map((x) => x / length));
  }
  return basis;
}

/**
 * For objective "ddpm": a head that begins with "the noise is the input", which is right at the noisiest
 * timesteps, where an error counts most. Gives the input projection's weight and bias and the final weight;
 * nothing for a head too narrow to hold all channels and two patterns more in orthogonal directions, which begins as
 * others do.
 */
export function noiseIsInput(width: number, channels: number, seed: bigint) {
  if (width < channels + 2) return undefined;
  const q = orthogonal(width, channels + 2, new Random(seed, hash("diffusion_head"), 0));
  const input = new Float32Array(width * channels);
  const bias = Float32Array.from(q[channels + 1] as Float64Array, (v) => 2 * v);
  const output = new Float32Array(2 * channels * width);
  // A constant pattern dominates the hidden state, which keeps the layer norms nearly linear.
  const back = Math.sqrt(4 + 0.01 * channels) / (0.1 * width);
  for (let c = 0; c < channels; c++)
    for (let i = 0; i < width; i++) {
      const v = (q[c + 1] as Float64Array)[i] as number;
      input[i * channels + c] = 0.1 * v;
      output[c * width + i] = back * v;
    }
  return { input, bias, output };
}
