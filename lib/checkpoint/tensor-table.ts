/**
 * Every tensor that a configuration asks for, with its shape, declared once; and the check of a checkpoint
 * against that list. Nothing native runs before it has passed.
 */

import {
  InvalidSafetensorsError,
  MissingTensorError,
  TensorShapeError,
  UnexpectedTensorError,
} from "../errors.js";
import type {
  NativeImageConfig,
  NativeTensor,
  NativeTextConfig,
  NativeVaeConfig,
  NativeVisionConfig,
  StoredType,
} from "../native.js";
import type { StoredTensor } from "./shards.js";
import type { Spelling } from "./tensor-names.js";
import { visionRows } from "./vision-config.js";

export interface ExpectedTensor {
  name: string;
  shape: number[];
  /** May be absent. */
  optional?: boolean;
}

export interface TensorParts {
  text?: NativeTextConfig;
  vision?: NativeVisionConfig;
  image?: NativeImageConfig;
}

const linear = (name: string, out: number, inputs: number): ExpectedTensor[] => [
  { name: `${name}.weight`, shape: [out, inputs] },
  { name: `${name}.bias`, shape: [out] },
];

const norm = (name: string, size: number): ExpectedTensor[] => [
  { name: `${name}.weight`, shape: [size] },
  { name: `${name}.bias`, shape: [size] },
];

const convolution = (name: string, out: number, inputs: number, kernel: number) => [
  { name: `${name}.weight`, shape: [out, inputs, kernel, kernel] },
  { name: `${name}.bias`, shape: [out] },
];

const range = <T>(count: number, make: (index: number) => T[]): T[] =>
  Array.from({ length: count }, (_, index) => make(index)).flat();

/** The tensors of `model.safetensors`, under their canonical names. */
export function modelTensors({ text, vision, image }: TensorParts): ExpectedTensor[] {
  return [
    ...(text ? textTensors(text) : []),
    ...(vision ? visionTensors(vision) : []),
    ...(vision && text
      ? linear("multi_modal_projector.linear", text.hiddenSize, vision.hiddenSize)
      : []),
    ...(image && text ? imageTensors(image, text.hiddenSize) : []),
  ];
}

function textTensors(c: NativeTextConfig): ExpectedTensor[] {
  const norms = c.gemma2
    ? [
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
      ]
    : ["input_layernorm", "post_attention_layernorm"];
  const weight = (name: string, ...shape: number[]) => ({ name: `${name}.weight`, shape });
  return [
    weight("language_model.embed_tokens", c.vocabSize, c.hiddenSize),
    ...range(c.layers, (i) => {
      const layer = `language_model.layers.${i}`;
      return [
        weight(`${layer}.self_attn.q_proj`, c.heads * c.headDim, c.hiddenSize),
        weight(`${layer}.self_attn.k_proj`, c.kvHeads * c.headDim, c.hiddenSize),
        weight(`${layer}.self_attn.v_proj`, c.kvHeads * c.headDim, c.hiddenSize),
        weight(`${layer}.self_attn.o_proj`, c.hiddenSize, c.heads * c.headDim),
        weight(`${layer}.mlp.gate_proj`, c.intermediateSize, c.hiddenSize),
        weight(`${layer}.mlp.up_proj`, c.intermediateSize, c.hiddenSize),
        weight(`${layer}.mlp.down_proj`, c.hiddenSize, c.intermediateSize),
        ...norms.map((name) => weight(`${layer}.${name}`, c.hiddenSize)),
      ];
    }),
    weight("language_model.norm", c.hiddenSize),
    { ...weight("lm_head", c.vocabSize, c.hiddenSize), optional: true },
  ];
}

function visionTensors(c: NativeVisionConfig): ExpectedTensor[] {
  const rows = visionRows(c);
  return [
    ...convolution("vision_tower.embeddings.patch_embedding", c.hiddenSize, 3, c.patchSize),
    { name: "vision_tower.embeddings.position_embedding.weight", shape: [rows, c.hiddenSize] },
    ...range(c.layers, (i) => {
      const layer = `vision_tower.encoder.layers.${i}`;
      return [
        ...["q_proj", "k_proj", "v_proj", "out_proj"].flatMap((name) =>
          linear(`${layer}.self_attn.${name}`, c.hiddenSize, c.hiddenSize),
        ),
        ...norm(`${layer}.layer_norm1`, c.hiddenSize),
        ...norm(`${layer}.layer_norm2`, c.hiddenSize),
        ...linear(`${layer}.mlp.fc1`, c.intermediateSize, c.hiddenSize),
        ...linear(`${layer}.mlp.fc2`, c.hiddenSize, c.intermediateSize),
      ];
    }),
    ...norm("vision_tower.post_layernorm", c.hiddenSize),
  ];
}

/** Width of the sinusoid of a timestep (spec section 6). */
const TIME_EMBEDDING = 256;

function imageTensors(c: NativeImageConfig, hidden: number): ExpectedTensor[] {
  const [W, C, cells] = [c.headWidth, c.tokenChannels, c.grid ** 2];
  const head = "diffusion_head";
  return [
    ...linear("image_in", hidden, C),
    { name: "image_position.weight", shape: [cells, hidden] },
    { name: "image_next_position.weight", shape: [cells, hidden] },
    { name: "image_begin", shape: [hidden] },
    ...linear(`${head}.input_proj`, W, C),
    ...linear(`${head}.cond_embed`, W, hidden),
    ...linear(`${head}.time_embed.mlp.0`, W, TIME_EMBEDDING),
    ...linear(`${head}.time_embed.mlp.2`, W, W),
    ...range(c.headDepth, (i) => [
      ...norm(`${head}.res_blocks.${i}.in_ln`, W),
      ...linear(`${head}.res_blocks.${i}.mlp.0`, W, W),
      ...linear(`${head}.res_blocks.${i}.mlp.2`, W, W),
      ...linear(`${head}.res_blocks.${i}.adaLN_modulation.1`, 3 * W, W),
    ]),
    ...linear(`${head}.final_layer.adaLN_modulation.1`, 2 * W, W),
    ...linear(`${head}.final_layer.linear`, c.flow ? C : 2 * C, W),
  ];
}

/** The tensors of the autoencoder, under `vae.`. */
export function vaeTensors(c: NativeVaeConfig): ExpectedTensor[] {
  const channels = c.blockOutChannels;
  const levels = channels.length;
  const last = channels[levels - 1]!;
  const { latentChannels: z } = c;

  const resnet = (name: string, inputs: number, out: number) => [
    ...norm(`${name}.norm1`, inputs),
    ...convolution(`${name}.conv1`, out, inputs, 3),
    ...norm(`${name}.norm2`, out),
    ...convolution(`${name}.conv2`, out, out, 3),
    ...(inputs === out ? [] : convolution(`${name}.conv_shortcut`, out, inputs, 1)),
  ];
  const attention = (name: string, width: number) => [
    ...norm(`${name}.group_norm`, width),
    ...["to_q", "to_k", "to_v", "to_out.0"].flatMap((part) =>
      linear(`${name}.${part}`, width, width),
    ),
  ];
  const middle = (name: string) => [
    ...resnet(`${name}.resnets.0`, last, last),
    ...(c.midBlockAttention ? attention(`${name}.attentions.0`, last) : []),
    ...resnet(`${name}.resnets.1`, last, last),
  ];
  // Resnets from one level's width to the next, some with attention behind them, then a resampler unless it
  // is the last level.
  const blocks = (
    name: string,
    widths: number[],
    attends: boolean[],
    resnets: number,
    resampler: string,
  ) =>
    range(levels, (i) => {
      const out = widths[i]!;
      const inputs = widths[Math.max(i - 1, 0)]!;
      return [
        ...range(resnets, (j) => resnet(`${name}.${i}.resnets.${j}`, j === 0 ? inputs : out, out)),
        ...range(attends[i] ? resnets : 0, (j) => attention(`${name}.${i}.attentions.${j}`, out)),
        ...(i === levels - 1 ? [] : convolution(`${name}.${i}.${resampler}.0.conv`, out, out, 3)),
      ];
    });
  const { layersPerBlock: layers } = c;
  return [
    ...convolution("encoder.conv_in", channels[0]!, c.inChannels, 3),
    ...blocks("encoder.down_blocks", channels, c.downAttention, layers, "downsamplers"),
    ...middle("encoder.mid_block"),
    ...norm("encoder.conv_norm_out", last),
    ...convolution("encoder.conv_out", 2 * z, last, 3),
    ...(c.quantConv ? convolution("quant_conv", 2 * z, 2 * z, 1) : []),
    ...(c.postQuantConv ? convolution("post_quant_conv", z, z, 1) : []),
    ...convolution("decoder.conv_in", last, z, 3),
    ...middle("decoder.mid_block"),
    ...blocks(
      "decoder.up_blocks",
      [...channels].reverse(),
      c.upAttention,
      layers + 1,
      "upsamplers",
    ),
    ...norm("decoder.conv_norm_out", channels[0]!),
    ...convolution("decoder.conv_out", c.outChannels, channels[0]!, 3),
  ].map((tensor) => ({ ...tensor, name: `vae.${tensor.name}` }));
}

export interface NamedTensor {
  /** Canonical. */
  name: string;
  stored: StoredTensor;
  /** The file it lies in, for messages. */
  path: string;
}

const WEIGHT_TYPES: readonly string[] = ["F32", "F16", "BF16"] satisfies StoredType[];

export interface MatchOptions {
  /** What to call the place of tensors that are missing: a file, or the index of shards. */
  where: string;
  /** How such a file may spell names; a missing tensor is told in the spelling that the others have. */
  spellings: readonly Spelling[];
  /** Added to the files' indices; default 0. */
  firstFile?: number;
}

/**
 * Checks that the tensors found are the tensors expected, and lists them for the native side in the order
 * of `expected`. Throws `MISSING_TENSOR`, `UNEXPECTED_TENSOR`, `TENSOR_SHAPE` and `SAFETENSORS_UNKNOWN_DTYPE`.
 */
export function matchTensors(
  expected: readonly ExpectedTensor[],
  found: readonly NamedTensor[],
  { where, spellings, firstFile = 0 }: MatchOptions,
): NativeTensor[] {
  const byName = new Map<string, NamedTensor>();
  for (const tensor of found) {
    const twin = byName.get(tensor.name);
    if (twin) {
      throw new UnexpectedTensorError(
        `${tensor.path}: ${tensor.stored.name} and ${twin.stored.name} are two spellings of one tensor`,
      );
    }
    byName.set(tensor.name, tensor);
  }
  const matched: NativeTensor[] = [];
  const missing: string[] = [];
  for (const { name, shape, optional } of expected) {
    const tensor = byName.get(name);
    byName.delete(name);
    if (tensor) matched.push(checkTensor(tensor, shape, firstFile));
    else if (!optional) missing.push(name);
  }
  if (missing.length > 0) {
    const names = missing.map(spellingOf(found, spellings));
    throw new MissingTensorError(`${where}: ${plural(names)} missing: ${some(names)}`);
  }
  const left = [...byName.values()];
  if (left.length > 0) {
    const names = left.map(({ stored }) => stored.name);
    throw new UnexpectedTensorError(
      `${left[0]!.path}: ${plural(names)} not expected: ${some(names)}`,
    );
  }
  return matched;
}

/** The spelling that most of the tensors found have; of several, the first. */
function spellingOf(found: readonly NamedTensor[], spellings: readonly Spelling[]): Spelling {
  const counts = spellings.map(
    (spell) => found.filter(({ name, stored }) => spell(name) === stored.name).length,
  );
  return spellings[counts.indexOf(Math.max(...counts))]!;
}

function checkTensor({ name, stored, path }: NamedTensor, shape: number[], firstFile: number) {
  const { dtype, offset, file } = stored;
  if (!WEIGHT_TYPES.includes(dtype)) {
    throw new InvalidSafetensorsError(
      "SAFETENSORS_UNKNOWN_DTYPE",
      `${path}: expected ${WEIGHT_TYPES.join(", ")} for the type of ${stored.name} but found ${dtype}`,
    );
  }
  if (!sameShape(stored.shape, shape) && !isPointwise(name, stored.shape, shape)) {
    throw new TensorShapeError(
      `${path}: expected [${shape.join(", ")}] for the shape of ${stored.name} but found [${stored.shape.join(", ")}]`,
    );
  }
  return { name, dtype: dtype as StoredType, shape, file: file + firstFile, offset };
}

const sameShape = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((size, i) => size === b[i]);

/** Older autoencoders store the attention's matrices as 1x1 convolutions, [c, c, 1, 1]. */
function isPointwise(name: string, stored: readonly number[], shape: readonly number[]): boolean {
  return (
    name.startsWith("vae.") &&
    name.includes(".attentions.") &&
    shape.length === 2 &&
    sameShape(stored, [...shape, 1, 1])
  );
}

const plural = (names: readonly string[]) =>
  names.length === 1 ? "1 tensor is" : `${names.length} tensors are`;

const some = (names: readonly string[]) =>
  names.length > 5 ? `${names.slice(0, 5).join(", ")}, ...` : names.join(", ");
