/** What a checkpoint holds and what running it takes, from its configuration alone. */

import type { Checkpoint } from "./checkpoint/checkpoint.js";
import { visionRows } from "./checkpoint/vision-config.js";
import { InsufficientMemoryError } from "./errors.js";
import type { NativeTensor } from "./native.js";

/** The parts of a model. */
export type ModelPart = "text" | "vision" | "image" | "vae";

export interface MemoryEstimate {
  /** Bytes of all weights as they are stored; they are mapped and come into memory as they are used. */
  weights: number;
  /** Bytes of the weights that are copied into another form: vectors and convolutions. */
  copied: number;
  /** Bytes of keys and values that one row of a sequence keeps. */
  cachePerRow: number;
  /** Bytes without which no request of the model's kind can run. */
  minimum: number;
  /** The same on a GPU, whose memory holds the weights as well. */
  onDevice: number;
}

const BYTES = { F32: 4, F16: 2, BF16: 2 } as const;

const elements = ({ shape }: NativeTensor): number => shape.reduce((n, size) => n * size, 1);

/** Number of weights in each part. */
export function countParameters({ spec }: Checkpoint): Record<ModelPart, number> {
  const counts = { text: 0, vision: 0, image: 0, vae: 0 };
  for (const tensor of spec.tensors) counts[partOf(tensor.name)] += elements(tensor);
  return counts;
}

function partOf(name: string): ModelPart {
  if (name.startsWith("vae.")) return "vae";
  if (name.startsWith("vision_tower.") || name.startsWith("multi_modal_projector."))
    return "vision";
  return name.startsWith("language_model.") || name.startsWith("lm_head.") ? "text" : "image";
}

/** `dtype`: what a GPU computes in. */
export function estimateMemory(
  { spec }: Checkpoint,
  dtype: "bfloat16" | "float32" = "bfloat16",
): MemoryEstimate {
  const deviceBytes = dtype === "bfloat16" ? 2 : 4;
  let [weights, copied, uploaded] = [0, 0, 0];
  for (const tensor of spec.tensors) {
    const bytes = elements(tensor) * BYTES[tensor.dtype];
    weights += bytes;
    uploaded += elements(tensor) * (tensor.shape.length === 1 ? 4 : deviceBytes);
    // Matrices are used where they lie; vectors become float32, convolutions are reordered.
    if (tensor.shape.length === 1) copied += elements(tensor) * 4;
    else if (tensor.shape.length > 2) copied += bytes;
  }
  const { text, vision, image } = spec;
  const cached = text ? text.layers * 2 * text.kvHeads * text.headDim : 0;
  const cachePerRow = cached * 4;
  const rows = image ? image.grid ** 2 + 1 : vision ? visionRows(vision) + 1 : 1;
  return {
    weights,
    copied,
    cachePerRow,
    minimum: copied + cachePerRow * rows,
    onDevice: uploaded + cached * deviceBytes * rows,
  };
}

/** Bytes of a trainer's float32 tensors: weights, gradients, two moments and the average. Activations come on top. */
export function trainingBytes(
  tensors: readonly NativeTensor[],
  { emaDecay, lossesOnly = false }: { emaDecay: number; lossesOnly?: boolean },
): number {
  const copies = (lossesOnly ? 1 : 4) + (emaDecay > 0 ? 1 : 0);
  return 4 * copies * tensors.reduce((sum, tensor) => sum + elements(tensor), 0);
}

/** Throws unless the model's minimum fits `available` bytes. */
export function checkMemory(checkpoint: Checkpoint, available: number): void {
  const { minimum } = estimateMemory(checkpoint);
  if (minimum > available) {
    throw new InsufficientMemoryError(
      `${checkpoint.directory} takes at least ${formatMebibytes(minimum)} beside its mapped weights, but ` +
        `${formatMebibytes(available)} are available`,
    );
  }
}

export const formatMebibytes = (bytes: number): string => `${Math.ceil(bytes / 2 ** 20)} MiB`;
