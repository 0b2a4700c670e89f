/** The diffusion head in float64 (spec section 6), heads from fixtures and random ones. */
import type { Tensors } from "./fixtures";
import { type Random, valuesOf } from "./numbers";
import type { DiffusionStep, DiffusionToken, Head, Layer, Matrix, StoredType, Weight } from "./ops";

const TYPES: Record<string, StoredType> = { F32: "f32", F16: "f16", BF16: "bf16" };

/** The head of a checkpoint, its weights in the type they are stored in. */
export function headOf(tensors: Tensors, flow: boolean): Head {
  const weight = (name: string): Weight => {
    const { data, dtype, shape } = tensors.get(`diffusion_head.${name}`);
    const [rows, cols] = shape.length > 1 ? (shape as [number, number]) : [1, shape[0]!];
    return { data: data as Uint16Array, type: TYPES[dtype]!, rows, cols };
  };
  const vector = (name: string) => Float32Array.from(valuesOf(weight(name)));
  const layer = (name: string): Layer => ({
    weight: weight(`${name}.weight`),
    bias: vector(`${name}.bias`),
  });
  const depth = tensors.names.filter((name) => /res_blocks\.\d+\.in_ln\.weight$/.test(name)).length;
  const input = weight("input_proj.weight");
  return {
    channels: input.cols,
    condition: weight("cond_embed.weight").cols,
    width: input.rows,
    depth,
    flow,
    inputProj: layer("input_proj"),
    condEmbed: layer("cond_embed"),
    timeMlp0: layer("time_embed.mlp.0"),
    timeMlp2: layer("time_embed.mlp.2"),
    blocks: Array.from({ length: depth }, (_, i) => ({
      normWeight: vector(`res_blocks.${i}.in_ln.weight`),
      normBias: vector(`res_blocks.${i}.in_ln.bias`),
      mlp0: layer(`res_blocks.${i}.mlp.0`),
      mlp2: layer(`res_blocks.${i}.mlp.2`),
      modulation: layer(`res_blocks.${i}.adaLN_modulation.1`),
    })),
    finalModulation: layer("final_layer.adaLN_modulation.1"),
    finalLinear: layer("final_layer.linear"),
  };
}

export interface HeadShape {
  channels: number;
  condition: number;
  width: number;
  depth: number;
  flow: boolean;
  type: StoredType;
}

export function randomHead(random: Random, shape: HeadShape): Head {
  const { channels, condition, width, depth, flow, type } = shape;
  const layer = (out: number, inputs: number, gain = 1): Layer => ({
    weight: random.weight(type, out, inputs, gain / Math.sqrt(inputs)),
    bias: random.floats(out, 0.1),
  });
  return {
    channels,
    condition,
    width,
    depth,
    flow,
    inputProj: layer(width, channels),
    condEmbed: layer(width, condition),
    timeMlp0: layer(width, 256),
    timeMlp2: layer(width, width),
    blocks: Array.from({ length: depth }, () => ({
      normWeight: random.floats(width, 0.2, 1),
      normBias: random.floats(width, 0.2),
      mlp0: layer(width, width),
      mlp2: layer(width, width),
      modulation: layer(3 * width, width, 0.5),
    })),
    finalModulation: layer(2 * width, width, 0.5),
    finalLinear: layer(flow ? channels : 2 * channels, width),
  };
}

type Vector = Float64Array<ArrayBuffer>;

const silu = (x: number) => x / (1 + Math.exp(-x));

/** The network in float64, its weights decoded once. x [C], z [d] -> [2C or C] */
export function referenceHead(head: Head): (x: Vector, time: number, z: Vector) => Vector {
  const decoded = new Map<Layer, Vector>();
  const linear = (layer: Layer, x: Vector): Vector => {
    const weight = decoded.get(layer) ?? valuesOf(layer.weight);
    decoded.set(layer, weight);
    return Float64Array.from(layer.bias, (bias, o) => {
      let sum = bias;
      for (let k = 0; k < x.length; k++) sum += weight[o * x.length + k]! * x[k]!;
      return sum;
    });
  };
  const normalize = (x: Vector): Vector => {
    const mean = x.reduce((sum, v) => sum + v, 0) / x.length;
    const variance = x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length;
    return x.map((v) => (v - mean) / Math.sqrt(variance + 1e-6));
  };
  const w = head.width;
  return (x, time, z) => {
    const features = Float64Array.from({ length: 256 }, (_, i) => {
      const angle = time * Math.exp((-Math.log(10000) * (i % 128)) / 128);
      return i < 128 ? Math.cos(angle) : Math.sin(angle);
    });
    const embedded = linear(head.timeMlp2, linear(head.timeMlp0, features).map(silu));
    const condition = linear(head.condEmbed, z);
    const y = embedded.map((v, i) => silu(v + condition[i]!));
    let h = linear(head.inputProj, x);
    for (const block of head.blocks) {
      const m = linear(block.modulation, y);
      const modulated = normalize(h).map(
        (v, i) => (v * block.normWeight[i]! + block.normBias[i]!) * (1 + m[w + i]!) + m[i]!,
      );
      const added = linear(block.mlp2, linear(block.mlp0, modulated).map(silu));
      h = h.map((v, i) => v + m[2 * w + i]! * added[i]!);
    }
    const m = linear(head.finalModulation, y);
    return linear(
      head.finalLinear,
      normalize(h).map((v, i) => v * (1 + m[w + i]!) + m[i]!),
    );
  };
}

/** How the sampler draws: x [C] and the network's outputs for the conditioned and the empty row -> x. */
export function referenceStep(
  head: Head,
  step: DiffusionStep,
  stepCount: number,
  token: Pick<DiffusionToken, "guidance" | "temperature" | "x0Limit">,
  x: Vector,
  conditioned: Vector,
  empty: Vector | undefined,
  noise: ArrayLike<number> | undefined,
): Vector {
  const limit = (v: number) => Math.min(Math.max(v, -token.x0Limit), token.x0Limit);
  return x.map((now, c) => {
    let predicted = conditioned[c]!;
    if (empty) predicted = empty[c]! + token.guidance * (predicted - empty[c]!);
    if (head.flow) {
      if (token.x0Limit < Number.POSITIVE_INFINITY)
        predicted = (now - limit(now - step.tau * predicted)) / step.tau;
      return now - predicted / stepCount;
    }
    const x0 = limit(step.recip * now - step.recipm1 * predicted);
    const mean = step.coefX0 * x0 + step.coefX * now;
    if (!noise) return mean;
    const f = (conditioned[head.channels + c]! + 1) / 2;
    const logVariance = f * step.logBeta + (1 - f) * step.logTilde;
    return mean + token.temperature * Math.exp(logVariance / 2) * noise[c]!;
  });
}

/** Row `row` of a matrix, as float64. */
export function rowOf(matrix: Matrix, row: number): Vector {
  const stride = matrix.stride ?? matrix.cols;
  return Float64Array.from(matrix.data.subarray(row * stride, row * stride + matrix.cols));
}
