// The sampling steps of the diffusion head on clusters of blocks (diffusion_cluster.cu says how).
#pragma once

#include "core/backend.h"
#include "cuda/kernels/diffusion_steps.h"
#include "cuda/queue.h"

namespace unifluid::cuda {
namespace cluster {

// Blocks of a cluster: the most that Hopper has.
inline constexpr int kMembers = 16;

// Whether there is a kernel for a head of this width, bf16, aligned to 16 bytes throughout.
bool suits(const DiffusionHeadWeights& head);
// Of a block whose team has up to 8 * tiles rows; tiles: 1, 2 or 4.
size_t shared_bytes(const DiffusionHeadWeights& head, int tiles);

}  // namespace cluster

// The launch of a pass with `cluster_tiles`; `params` but for what the plan says.
void launch_cluster_steps(Queue& queue, const StepsPass& pass, const StepsParams& params);

}  // namespace unifluid::cuda
