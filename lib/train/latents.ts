/**
 * Latents of unit spread: what an autoencoder's latents are like over data, and the two ways to mend them, the
 * configuration's factors and the 1x1 convolutions beside the latents.
 */

/** Values of each channel and of all of them together. */
export interface LatentStatistics {
  mean: number[];
  deviation: number[];
  overallMean: number;
  overallDeviation: number;
}

/** A channel with less of the overall spread than this carries nothing: it is not drawn out. */
const COLLAPSED = 1e-3;

/** Gathers means and spreads over pictures. */
export class LatentMeter {
  private readonly sum: Float64Array;
  private readonly squares: Float64Array;
  private cells = 0;

  constructor(private readonly channels: number) {
    this.sum = new Float64Array(channels);
    this.squares = new Float64Array(channels);
  }

  /** @param latents [cells, channels] */
  add(latents: Float32Array): void {
    for (let i = 0; i < latents.length; i++) {
      const [c, value] = [i % this.channels, latents[i] as number];
      (this.sum[c] as number) += value;
      (this.squares[c] as number) += value * value;
    }
    this.cells += latents.length / this.channels;
  }

  statistics(): LatentStatistics {
    const mean = Array.from(this.sum, (s) => s / this.cells);
    const square = Array.from(this.squares, (s) => s / this.cells);
    const over = (values: number[]) => values.reduce((sum, v) => sum + v, 0) / this.channels;
    const spread = (second: number, first: number) => Math.sqrt(Math.max(0, second - first ** 2));
    return {
      mean,
      deviation: square.map((s, c) => spread(s, mean[c] as number)),
      overallMean: over(mean),
      overallDeviation: spread(over(square), over(mean)),
    };
  }
}

/** `scaling_factor` and `shift_factor` with which latents (z - shift) * scale have mean 0 and spread 1. */
export function latentFactors({ overallMean, overallDeviation }: LatentStatistics) {
  const rounded = (value: number) => Number(value.toPrecision(7));
  return {
    // Latents that are all alike have no spread to mend.
    scaling_factor: overallDeviation > 0 ? rounded(1 / overallDeviation) : 1,
    shift_factor: rounded(overallMean),
  };
}

/**
 * Gives every channel the overall mean and spread: what is done to the latents in `quant_conv` is undone in
 * `post_quant_conv`, so that pictures stay as they are. Changes the values of these two convolutions, by
 * their names in diffusers.
 */
export function equalizeLatents(
  tensors: ReadonlyMap<string, Float32Array>,
  { mean, deviation, overallMean, overallDeviation }: LatentStatistics,
): void {
  const z = mean.length;
  const [toMoments, momentsBias, fromLatents, latentsBias] = [
    "quant_conv.weight",
    "quant_conv.bias",
    "post_quant_conv.weight",
    "post_quant_conv.bias",
  ].map((name) => tensors.get(name)) as [Float32Array, Float32Array, Float32Array, Float32Array];
  for (let c = 0; c < z; c++) {
    const own = deviation[c] as number;
    // new = factor * old + offset
    const factor = own > COLLAPSED * overallDeviation ? overallDeviation / own : 1;
    const offset = overallMean - factor * (mean[c] as number);
    for (let i = 0; i < 2 * z; i++) (toMoments[c * 2 * z + i] as number) *= factor;
    momentsBias[c] = factor * (momentsBias[c] as number) + offset;
    (momentsBias[z + c] as number) += 2 * Math.log(factor); // the log variance
    for (let out = 0; out < z; out++) {
      const weight = (fromLatents[out * z + c] as number) / factor;
      (latentsBias[out] as number) -= weight * offset;
      fromLatents[out * z + c] = weight;
    }
  }
}
