/** What a loaded model is, as programs see it. */
import type { Checkpoint } from "./checkpoint/checkpoint.js";
import type { CheckpointKind } from "./checkpoint/config.js";
import { visionRows } from "./checkpoint/vision-config.js";
import type { ChosenDevice, Gpu } from "./device.js";
import type { GenerationConfig } from "./generation-config.js";
import { type Task, tasksOf } from "./tasks.js";

/** Facts about a loaded model. */
export interface ModelInfo {
  /** Where it was loaded from. */
  directory: string;
  kind: CheckpointKind;
  /** Tasks its weights support. */
  tasks: Task[];
  /** The device: kind, instruction set and threads, or the GPU's name, compute capability and type. */
  device: string;
  /** The GPU, with its memory before the model was loaded. */
  gpu?: Gpu;
  /** With device "auto": why it is the CPU and not a GPU. */
  cpuReason?: string;
  /** Maximum rows of a sequence: tokens plus the rows of images. */
  maxPositions?: number;
  vocabSize?: number;
  /** What it draws. */
  image?: { size: number; grid: number; tokenChannels: number; timesteps: number };
  /** What it sees: images of `size` pixels per side, as `rows` features of `width` values. */
  vision?: { size: number; rows: number; width: number };
  /** Default settings. */
  generation: GenerationConfig;
}

/** `device`: the native side's line on it. */
export function describeModel(
  checkpoint: Checkpoint,
  device: string,
  chosen: ChosenDevice,
): ModelInfo {
  const { directory, kind, config, generation, spec } = checkpoint;
  const image = config?.image;
  const { vision } = spec;
  return {
    directory,
    kind,
    tasks: tasksOf(checkpoint),
    device,
    ...(chosen.kind === "cuda" ? { gpu: chosen.gpu } : {}),
    ...(chosen.kind === "cpu" && chosen.reason ? { cpuReason: chosen.reason } : {}),
    maxPositions: config?.text.maxPositions,
    vocabSize: config?.text.vocabSize,
    image: image && {
      size: image.imageSize,
      grid: image.grid,
      tokenChannels: image.tokenChannels,
      timesteps: image.timesteps,
    },
    vision: vision && {
      size: vision.imageSize,
      rows: visionRows(vision),
      width: vision.hiddenSize,
    },
    generation: structuredClone(generation),
  };
}
