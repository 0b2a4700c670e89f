// Threads of a warp and of a block together. All lanes of a warp must call the functions of this
// header together.
#pragma once

#include "cuda/device/shared.h"

namespace unifluid::cuda {

inline constexpr int kWarp = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

UNIFLUID_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % kWarp); }
UNIFLUID_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / kWarp); }

// Threads that work together: all of a block, or its first ones, whose barriers the rest of the
// block does not come by.
template <int kThreads = 0>  // 0: as many as it has
struct WholeBlock {
  static constexpr int kCount = kThreads;
#ifdef UNIFLUID_SIMT
  static void meet(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    simt::block_barrier({file, line});
  }
#else
  UNIFLUID_DEVICE static void meet() { __syncthreads(); }
#endif
};
template <int kThreads>
struct FirstThreads {
  static constexpr int kCount = kThreads;
  static_assert(kThreads % kWarp == 0);
#ifdef UNIFLUID_SIMT
  static void meet(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    simt::part_barrier(kThreads, {file, line});
  }
#else
  UNIFLUID_DEVICE static void meet() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }
#endif
};

// Over each `kLanes` lanes, of a whole warp unless said otherwise. The same bits on all of them:
// halves are added in one order, by exchange. T: float or double.
template <int kLanes = kWarp, class T>
UNIFLUID_DEVICE T warp_sum(T v) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}
template <int kLanes = kWarp>
UNIFLUID_DEVICE float warp_max(float v) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, offset));
  return v;
}

// Sums over a block; `scratch` has at least an element for each warp. All threads must call, and
// get the same bits. Ends with a barrier.
template <class T>
UNIFLUID_DEVICE T block_sum(T v, Shared<T> scratch) {
  v = warp_sum(v);
  if (lane_index() == 0) scratch.store(static_cast<uint32_t>(warp_index()), v);
  __syncthreads();
  T total = 0;
  for (uint32_t w = 0; w < blockDim.x / kWarp; ++w) total += scratch.load(w);
  __syncthreads();
  return total;
}
UNIFLUID_DEVICE float block_max(float v, Shared<float> scratch) {
  v = warp_max(v);
  if (lane_index() == 0) scratch.store(static_cast<uint32_t>(warp_index()), v);
  __syncthreads();
  float most = scratch.load(0);
  for (uint32_t w = 1; w < blockDim.x / kWarp; ++w) most = fmaxf(most, scratch.load(w));
  __syncthreads();
  return most;
}

}  // namespace unifluid::cuda
