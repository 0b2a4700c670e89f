// Products of few rows and columns: streams of weights, whose time is that of memory as long as no
// warp holds them up. What would is the chain of a warp's products, each of which adds to the sum
// of the one before it. So nothing else stands in that chain: a warp has the fragments of a stage
// in registers when it begins to multiply them, fetches those of the next stage between the
// products, and leaves the copies to other warps.
#pragma once

#include "cuda/kernels/tile.h"

namespace unifluid::cuda {

// Tiles of two or three warps that multiply, one piece of every matrix each; as many more copy.
// Larger tiles have chains enough beside each other, and registers for fewer threads.
template <class T>
inline constexpr bool kStreams = T::kPiecesM == 1 && T::kPiecesN == 1 && T::kThreads <= 3 * kWarp;
template <class T>
inline constexpr int kStreamThreads = 2 * T::kThreads;

// A warp's operands of a stage.
template <class T, int kMatrices>
class StageFragments {
 public:
  static constexpr int kSteps = T::kDepth / 16;

  // The part that step `k` and, for weights, the next one take.
  UNIFLUID_DEVICE void load(int k, const Shared<bf16>& x_tiles, const Shared<bf16>& w_tiles,
                            uint32_t slot) {
    const int lane = lane_index();
    ldmatrix_x4<false>(
        x_[k].x, x_tiles,
        slot * T::kTileX + static_cast<uint32_t>((T::warp_row() + lane % 16) * T::kStride + 16 * k +
                                                 lane / 16 * 8));
    if (k % 2) return;
#pragma unroll
    for (uint32_t w = 0; w < kMatrices; ++w)
      ldmatrix_x4<false>(weights_[w][k / 2], w_tiles,
                         (slot * kMatrices + w) * T::kTileW +
                             static_cast<uint32_t>((T::warp_column() + lane % 8) * T::kStride +
                                                   16 * k + lane / 8 * 8));
  }

  UNIFLUID_DEVICE void multiply(int k, FragmentC (&sums)[kMatrices][1][1]) const {
#pragma unroll
    for (int w = 0; w < kMatrices; ++w) {
      const uint32_t* both = weights_[w][k / 2] + k % 2 * 2;
      mma(sums[w][0][0], x_[k], FragmentB{{both[0], both[1]}});
    }
  }

 private:
  FragmentA x_[kSteps];
  uint32_t weights_[kMatrices][kSteps / 2][4];
};

// The depth that is left where a deep product lets the next launch begin: time for two launches,
// but not for so many weights that those which are asked for ahead leave the second-level cache
// again.
inline constexpr int kLastDepth = 2304;
template <class T>
UNIFLUID_DEVICE bool is_deep(int steps) {
  return steps * T::kDepth > kLastDepth;
}
// By the warps of both kinds, as a block has said it when all its threads have.
template <class T>
UNIFLUID_DEVICE void let_start_near_end(int step, int steps) {
  if (step + kLastDepth / T::kDepth == steps) let_dependents_start();
}

// The sums of a product, in the order of `multiply_stage`; those of threads that copy are nobody's.
// Both kinds of warps come by the same barriers, one for each stage. Of all weights that fit the
// copies begin before the inputs are there (cuda/device/dependence.h), and so many steps ahead from
// then on. The first rows of x are copied by the warps that multiply: a thread's copies count as
// done in the order in which it began them, and x would come only behind all those weights.
template <class T, int kMatrices, class Rows, class Weights>
UNIFLUID_DEVICE void stream_product(int steps, Rows& rows, Weights* weights,
                                    const Shared<bf16>& x_tiles, const Shared<bf16>& w_tiles,
                                    FragmentC (&sums)[kMatrices][1][1]) {
  using Fragments = StageFragments<T, kMatrices>;
  const bool copies = threadIdx.x >= T::kThreads;
  const auto copy_weights = [&](int step, uint32_t slot) {
#pragma unroll
    for (uint32_t w = 0; w < kMatrices; ++w)
      weights[w].load(w_tiles, (slot * kMatrices + w) * T::kTileW, step);
  };
  // Two sets of fragments take turns.
  Fragments first, second;
  if (copies) {
    for (int step = 0; step < T::kStages; ++step) {
      if (step < steps) copy_weights(step, static_cast<uint32_t>(step));
      cp_async_commit();
    }
    if (!is_deep<T>(steps))
#pragma unroll
      for (int w = 0; w < kMatrices; ++w)
        weights[w].prefetch(T::kStages, kColumnsAhead<T, kMatrices>);
    rows.skip(T::kStages);
    wait_for_inputs();
    cp_async_wait<T::kStages - 1>();
  } else {
    wait_for_inputs();
    for (int step = 0; step < T::kStages && step < steps; ++step)
      rows.load(x_tiles, static_cast<uint32_t>(step) * T::kTileX, step);
    cp_async_commit();
    cp_async_wait<0>();
  }
  __syncthreads();
  if (steps == 0) return;
  if (!copies)
#pragma unroll
    for (int k = 0; k < Fragments::kSteps; ++k) first.load(k, x_tiles, w_tiles, 0);
  uint32_t slot = 0;
  // Multiplies a stage while the next one's fragments come.
  const auto advance = [&](int step, const Fragments& now, Fragments& then) {
    let_start_near_end<T>(step, steps);
    if (copies)
      cp_async_wait<T::kStages - 2>();
    else
      now.multiply(0, sums);
    __syncthreads();  // the next stage has come, and all have this one's fragments
    const uint32_t next = slot + 1 == T::kStages ? 0 : slot + 1;
    if (copies) {
      if (step + T::kStages < steps) {
        copy_weights(step + T::kStages, slot);
        rows.load(x_tiles, slot * T::kTileX, step + T::kStages);
      }
      cp_async_commit();
    } else {
      then.load(0, x_tiles, w_tiles, next);
#pragma unroll
      for (int k = 1; k < Fragments::kSteps; ++k) {
        now.multiply(k, sums);
        then.load(k, x_tiles, w_tiles, next);
      }
    }
    slot = next;
  };
  const auto multiply_last = [&](const Fragments& now) {
    if (copies) return;
#pragma unroll
    for (int k = 0; k < Fragments::kSteps; ++k) now.multiply(k, sums);
  };
  for (int step = 0;; step += 2) {
    if (step + 1 == steps) return multiply_last(first);
    advance(step, first, second);
    if (step + 2 == steps) return multiply_last(second);
    advance(step + 1, second, first);
  }
}

}  // namespace unifluid::cuda
