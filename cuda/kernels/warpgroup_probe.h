// Whether Hopper's kernels may be used on a device.
//
// A row's result must not depend on which other rows are computed with it (core/backend.h), and its
// company decides whether a row is multiplied by a warp or by a warpgroup. So both must round
// alike, which no document promises. It is tried when a device is opened: the same products, the
// same attention and the same convolution on both, compared bit by bit. It takes a few launches.
#pragma once

#include "cuda/queue.h"

namespace unifluid::cuda {

enum class WarpgroupState : uint8_t {
  absent,   // not a Hopper GPU, or a driver without maps of tensors
  refused,  // by the environment
  differs,  // tried, and the bits differed
  used
};

// Tries, and sets `queue.limits().warpgroups`. Throws DEVICE_ERROR, INSUFFICIENT_MEMORY.
WarpgroupState choose_warpgroups(Queue& queue);

// Where warpgroups are used: whether products of training that take operands as they lie give what
// they give of operands that were transposed. Leaves `queue.limits().transposed` as it was.
bool transposed_products_agree(Queue& queue);

}  // namespace unifluid::cuda
