/** All cases, by family of operations. */
import type { CudaCase, Invariant } from "../../support/cuda-cases";
import * as attention from "./attention";
import * as convolution from "./convolution";
import * as diffusion from "./diffusion";
import * as embedding from "./embedding";
import * as groupNorm from "./group-norm";
import * as linear from "./linear";
import * as norm from "./norm";
import * as sampling from "./sampling";

export const families: Record<string, { cases: CudaCase[]; invariants: Invariant[] }> = {
  attention,
  convolution,
  diffusion,
  embedding,
  group_norm: groupNorm,
  linear,
  norm,
  sampling,
};
