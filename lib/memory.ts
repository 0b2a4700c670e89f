/** What a checkpoint holds and what running it takes, from its configuration alone. */

import { activationBytes } from "./activation-memory.js";
import type { Checkpoint } from "./checkpoint/checkpoint.js";
import { storedBytes } from "./checkpoint/stored-types.js";
import { visionRows } from "./checkpoint/vision-config.js";
import { InsufficientMemoryError } from "./errors.js";
import type {
  NativeComputeType,
  NativeOptimizerOptions,
  NativeTensor,
  NativeVaeConfig,
} from "./native.js";

/** The parts of a model. */
export type ModelPart = "text" | "vision" | "image" | "vae";

export interface MemoryEstimate {
  /** Bytes of all weights as stored; they are memory-mapped and paged in as they are used. */
  weights: number;
  /** Bytes of the weights copied into another form: vectors and convolutions. */
  copied: number;
  /** Bytes of cached keys and values per row of a sequence. */
  cachePerRow: number;
  /** Bytes that a request of the model's kind needs at least. */
  minimum: number;
  /**
   * The same on a GPU, whose memory must hold everything: also the weights, and the activations of the largest step of
   * one request, a drawing if the model draws.
   */
  onDevice: number;
}

const elements = ({ shape }: NativeTensor): number => shape.reduce((n, size) => n * size, 1);

/** Number of weights in each part. */
export function countParameters(checkpoint: Checkpoint): Record<ModelPart, number> {
  const counts = { text: 0, vision: 0, image: 0, vae: 0 };
  for (const tensor of checkpoint.spec.tensors) counts[partOf(tensor.name)] += elements(tensor);
  return counts;
}

function partOf(name: string): ModelPart {
  if (name.startsWith("vae.")) return "vae";
  if (name.startsWith("vision_tower.") || name.startsWith("multi_modal_projector."))
    return "vision";
  return name.startsWith("language_model.") || name.startsWith("lm_head.") ? "text" : "image";
}

/** What pieces of a GPU's memory are rounded up to (cuda/size_class.h). */
const ALIGNMENT = 256;
const roundedUp = (bytes: number, unit: number): number => Math.ceil(bytes / unit) * unit;

/** What the driver takes of a GPU's memory: above half a page of 2 MiB, whole pages (cuda/size_class.h). */
const PAGE = 2 ** 21;
const deviceBytes = (bytes: number): number =>
  roundedUp(bytes, bytes > PAGE / 2 ? PAGE : ALIGNMENT);

/** What a block of a GPU's memory takes: eighths of its power of two (cuda/size_class.h). */
const blockBytes = (bytes: number): number =>
  deviceBytes(roundedUp(bytes, Math.max(ALIGNMENT, 2 ** Math.floor(Math.log2(bytes) - 3))));

/** Bytes that the weights take on a GPU that computes in `dtype`: they lie in one block. */
export function weightsOnDevice(checkpoint: Checkpoint, dtype: NativeComputeType): number {
  return checkpoint.spec.tensors.reduce((sum, tensor) => {
    const width = tensor.shape.length === 1 || dtype === "float32" ? 4 : 2;
    return sum + roundedUp(elements(tensor) * width, ALIGNMENT);
  }, 0);
}

/** `dtype`: what a GPU computes in. */
export function estimateMemory(
  checkpoint: Checkpoint,
  dtype: "bfloat16" | "float32" = "bfloat16",
): MemoryEstimate {
  const { spec } = checkpoint;
  const width = dtype === "bfloat16" ? 2 : 4;
  let [weights, copied] = [0, 0];
  for (const tensor of spec.tensors) {
    const bytes = storedBytes(tensor);
    weights += bytes;
    // Matrices are used where they lie; vectors become float32, convolutions are reordered.
    if (tensor.shape.length === 1) copied += elements(tensor) * 4;
    else if (tensor.shape.length > 2) copied += bytes;
  }
  const { text, vision, image } = spec;
  const cached = text ? text.layers * 2 * text.kvHeads * text.headDim : 0;
  const cachePerRow = cached * 4;
  const rows = image ? image.grid ** 2 + 1 : vision ? visionRows(vision) + 1 : 1;
  const { row, fixed } = activationBytes(checkpoint);
  const largestStep = Math.max(fixed, (vision ? visionRows(vision) + 1 : 1) * row);
  // Drawn with guidance, an image has a second sequence for the empty prompt.
  const streams = image ? 2 : 1;
  const cache = rows * cached * width;
  const head = image ? headBytes(checkpoint, width) : 0;
  return {
    weights,
    copied,
    cachePerRow,
    minimum: copied + cachePerRow * rows,
    // Blocks are rounded up by an eighth at most, and to pages (cuda/size_class.h); of activations, which lie in a few
    // of them, the ends are lost as well.
    onDevice:
      deviceBytes(weightsOnDevice(checkpoint, dtype)) +
      streams * deviceBytes((9 / 8) * cache) +
      deviceBytes((9 / 8) * head) +
      deviceBytes((5 / 4) * largestStep * (width / 4)),
  };
}

/** Rows of modulations that a GPU holds at a time (cuda/kernels/diffusion.cu). */
const MODULATION_ROWS = 2048;

/**
 * What the diffusion head takes on a GPU for one image token with guidance, at the checkpoint's own number of sampling
 * steps: embedded timesteps, modulations and noise.
 */
function headBytes({ spec, generation }: Checkpoint, width: number): number {
  const { headWidth, headDepth, tokenChannels } = spec.image!;
  const { steps } = generation.image;
  const lines = Math.min(2 * steps, MODULATION_ROWS);
  const modulated = lines * (3 * headDepth + 3) * headWidth * width;
  const times = steps * ((256 + headWidth) * width + 4 * headWidth);
  return modulated + times + 4 * steps * tokenChannels;
}

/**
 * Bytes of a trainer's float32 tensors: weights, and of those that are trained gradients, two moments and the average,
 * each of them a block. Activations come on top.
 */
export function trainingBytes(
  tensors: readonly NativeTensor[],
  { optimizer, frozen = [] }: TrainedOptions,
): { onHost: number; onDevice: number } {
  const untrained = new Set(optimizer ? frozen : tensors.map(({ name }) => name));
  const bytesOf = (some: readonly NativeTensor[]) =>
    4 * some.reduce((sum, tensor) => sum + elements(tensor), 0);
  const weights = bytesOf(tensors);
  const trained = bytesOf(tensors.filter(({ name }) => !untrained.has(name)));
  const copies = optimizer && optimizer.emaDecay > 0 ? 4 : 3;
  return {
    onHost: weights + copies * trained,
    onDevice: blockBytes(weights) + copies * blockBytes(trained),
  };
}

interface TrainedOptions {
  optimizer?: Pick<NativeOptimizerOptions, "emaDecay">;
  frozen?: readonly string[];
}

/**
 * Bytes that one step of training an autoencoder takes at least beside what `trainingBytes` counts: the results that the
 * way back needs of `pictures` at a time, each `side` pixels across. Gradients, attention and scratch come on top.
 */
export function vaeTrainingActivations(
  vae: NativeVaeConfig,
  side: number,
  pictures: number,
): number {
  const { blockOutChannels: channels, layersPerBlock, inChannels } = vae;
  // The first convolution and the last norm, and the pictures before and after.
  let values = side ** 2 * (2 * channels[0]! + 2 * inChannels);
  const levels = [...channels.keys()];
  for (const half of [levels, [...levels].reverse()]) {
    let before = channels[half[0]!]!;
    for (const level of half) {
      const own = channels[level]!;
      // A residual block keeps a norm of what comes in, a convolution, a norm of that, and its result.
      for (let block = 0; block < layersPerBlock + (half === levels ? 0 : 1); block++) {
        values += (side / 2 ** level) ** 2 * (before + 3 * own);
        before = own;
      }
    }
  }
  return 4 * pictures * values;
}

/** Throws unless what training takes at least fits `available` bytes. `what`: "training X on pictures of 64 x 64". */
export function checkTrainingMemory(what: string, bytes: number, available: number): void {
  if (bytes > available)
    throw new InsufficientMemoryError(
      `${what} takes at least ${formatMebibytes(bytes)}, but ${wholeMebibytes(available)} are available`,
    );
}

/** Throws unless the model's minimum fits `available` bytes. */
export function checkMemory(checkpoint: Checkpoint, available: number): void {
  const { minimum } = estimateMemory(checkpoint);
  if (minimum > available) {
    throw new InsufficientMemoryError(
      `${checkpoint.directory} takes at least ${formatMebibytes(minimum)} beside its mapped weights, but ` +
        `${wholeMebibytes(available)} are available`,
    );
  }
}

/** Of what is needed: rounded up. */
export const formatMebibytes = (bytes: number): string => `${Math.ceil(bytes / 2 ** 20)} MiB`;
/** Of what there is: rounded down, so that what lacks does not look enough. */
export const wholeMebibytes = (bytes: number): string => `${Math.floor(bytes / 2 ** 20)} MiB`;
