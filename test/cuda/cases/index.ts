/** All cases, by family of operations. */
import type { CudaCase, Invariant } from "../../support/cuda-cases";
import * as attention from "./attention";
import * as attentionGradients from "./attention-gradients";
import * as convolution from "./convolution";
import * as decoder from "./decoder";
import * as diffusion from "./diffusion";
import * as diffusionFew from "./diffusion-few";
import * as embedding from "./embedding";
import * as groupNorm from "./group-norm";
import * as linear from "./linear";
import * as norm from "./norm";
import * as pixels from "./pixels";
import * as sampling from "./sampling";
import * as training from "./training";
import * as trainingProducts from "./training-products";

export interface Family {
  cases: CudaCase[];
  invariants: Invariant[];
  /** Of training, whose activations are float32: run in that type alone, with tolerances as they are. */
  training?: boolean;
}

export const families: Record<string, Family> = {
  attention,
  attention_gradients: attentionGradients,
  convolution,
  decoder,
  diffusion,
  diffusion_few: diffusionFew,
  embedding,
  group_norm: groupNorm,
  linear,
  norm,
  pixels,
  sampling,
  training_operations: training,
  training_products: trainingProducts,
};

/** Those with kernels of their own on Hopper. */
export const WARPGROUP_FAMILIES = [
  "linear",
  "attention",
  "convolution",
  "attention_gradients",
  "diffusion",
  "training_products",
];
