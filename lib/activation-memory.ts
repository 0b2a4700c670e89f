/**
 * What the largest step of each kind keeps while it computes, in bytes, from the configuration alone: the
 * sum of its intermediate results in float32. The program's own allocations follow the same lists
 * (core/decoder.cpp, core/vision.cpp, core/autoencoder.cpp), in blocks that are somewhat larger.
 */

import type { Checkpoint } from "./checkpoint/checkpoint.js";
import { vaeFactor } from "./checkpoint/vae-config.js";
import { visionRows } from "./checkpoint/vision-config.js";
import type { NativeTextConfig, NativeVaeConfig, NativeVisionConfig } from "./native.js";

const FLOAT = 4;

/** Rows of prompts that the engine computes in one step, at most. */
const PREFILL_ROWS = 512;

export interface ActivationBytes {
  /** Of each row of the decoder's step. */
  row: number;
  /** Of an image in the vision tower, and of one of the model's size in the autoencoder. */
  vision: number;
  vae: number;
  /** Of the largest step of another kind than the decoder's, or of one row's logits. */
  fixed: number;
}

/** Steps of different kinds follow each other in the same memory: the largest counts. */
export function estimateActivations(checkpoint: Checkpoint): number {
  const { row, fixed } = activationBytes(checkpoint);
  const { text } = checkpoint.spec;
  const positions = checkpoint.config?.text.maxPositions ?? PREFILL_ROWS;
  const logits = text ? FLOAT * text.vocabSize : 0;
  return Math.max(Math.min(PREFILL_ROWS, positions) * row + logits, fixed);
}

/** The same in the parts that the engine needs to know. */
export function activationBytes(checkpoint: Checkpoint): ActivationBytes {
  const { spec, config } = checkpoint;
  const { text, vision, vae } = spec;
  // An autoencoder alone takes images of any size; this is one of 64 x 64 latent cells.
  const side = config?.image?.imageSize ?? (vae ? 64 * vaeFactor(vae) : 0);
  const visionBytes = vision ? FLOAT * visionFloats(vision) : 0;
  const vaeBytes = vae ? FLOAT * vaeFloats(vae, side) : 0;
  return {
    row: text ? FLOAT * decoderRowFloats(text) : 0,
    vision: visionBytes,
    vae: vaeBytes,
    fixed: Math.max(FLOAT * (text?.vocabSize ?? 0), visionBytes, vaeBytes),
  };
}

function decoderRowFloats(c: NativeTextConfig): number {
  const [q, kv] = [c.heads * c.headDim, c.kvHeads * c.headDim];
  return (c.gemma2 ? 4 : 3) * c.hiddenSize + 2 * q + 2 * kv + c.intermediateSize;
}

function visionFloats(c: NativeVisionConfig): number {
  return visionRows(c) * (7 * c.hiddenSize + c.intermediateSize + 3 * c.patchSize ** 2);
}

/** Decoding; encoding visits the same resolutions with one residual block less each. */
function vaeFloats(c: NativeVaeConfig, side: number): number {
  let resolution = side / vaeFactor(c);
  let before = c.blockOutChannels.at(-1)!;
  let kept = (3 + 5) * resolution ** 2 * before;
  let most = 0;
  for (let level = c.blockOutChannels.length - 1; level >= 0; level--) {
    const channels = c.blockOutChannels[level]!;
    const cells = resolution ** 2;
    const wide = Math.max(before, channels);
    if (level > 0) resolution *= 2;
    const result = resolution ** 2 * channels;
    kept += result;
    const attends = c.downAttention[level] || c.upAttention[c.upAttention.length - 1 - level];
    const blocks = (attends ? 2 : 1) * (c.layersPerBlock + 1) * cells * channels;
    const resnet = 2 * cells * wide + (wide === channels ? 0 : cells * channels);
    const within = attends ? Math.max(resnet, 5 * cells * channels) : resnet;
    most = Math.max(most, kept + blocks + within + (level > 0 ? result : 0));
    before = channels;
  }
  return most;
}
