/** All cases, by family of operations. */
import type { CudaCase, Invariant } from "../../support/cuda-cases";
import * as diffusion from "./diffusion";
import * as linear from "./linear";

export const families: Record<string, { cases: CudaCase[]; invariants: Invariant[] }> = {
  diffusion,
  linear,
};
