// The sampling steps of the diffusion head on clusters of blocks (diffusion_cluster.cu says how).
#pragma once

#include "core/backend.h"
#include "cuda/kernels/diffusion_steps.h"
#include "cuda/queue.h"

namespace unifluid::cuda {
namespace cluster {

// Blocks of a cluster: the most that Hopper has.
inline constexpr int kMembers = 16;

// Shared memory of a block whose team has up to 8 * tiles rows (1 to 4); 0 where there is no
// kernel for such a head. Its weights are bf16, aligned to 16 bytes, its vectors too.
size_t shared_bytes(const DiffusionHeadWeights& head, int tiles);

}  // namespace cluster

// The launch of a pass with `cluster_tiles`, whatever `params` says of the plan.
void launch_cluster_steps(Queue& queue, const StepsPass& pass, StepsParams params);

}  // namespace unifluid::cuda
