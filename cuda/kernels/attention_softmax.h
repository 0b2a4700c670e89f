// The softmax of fused attention between its two products, in registers (FlashAttention-2,
// 2307.08691): of 16 packed queries, a warp's, and blocks of kKeyBlock keys. A thread has two of
// the queries, lane / 4 and lane / 4 + 8, and of a block's scores the elements of accumulators.
#pragma once

#include "cuda/kernels/attention.h"

namespace unifluid::cuda {

// Pieces of 8 keys in a block.
inline constexpr int kKeyPieces = kKeyBlock / 8;

struct OnlineSoftmax {
  int query[2];  // of the tile
  Sight sights[2];
  int all_first, all_last;  // keys that both see
  float exponent;
  float maximum[2] = {kLeastMaximum, kLeastMaximum};

  // `first`: the warp's first query of a tile that has `queries`.
  UNIFLUID_DEVICE OnlineSoftmax(const AttentionParams& p, const AttendedSpan& span,
                                const AttentionTile& tile, int first, int queries)
      : exponent(exponent_scale(p)) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      query[half] = first + lane_index() / 4 + 8 * half;
      sights[half] = query[half] < queries ? sight_of(p, span, (tile.first + query[half]) / p.group)
                                           : Sight{0, -1};
    }
    all_first = max(sights[0].first, sights[1].first);
    all_last = min(sights[0].last, sights[1].last);
  }

  // Products of queries and the keys from `block` on become scores, those of unseen keys masked;
  // the factors by which what was summed so far shrinks.
  UNIFLUID_DEVICE void take(const AttentionParams& p, FragmentC (&scores)[kKeyPieces], int block,
                            float (&factor)[2]) {
    float most[2] = {maximum[0], maximum[1]};
    // Asked here in the words of raw_score, which then has no branch of its own, so that its
    // functions of the hardware overlap.
    if (!(p.soft_cap <= 0)) {
#pragma unroll
      for (int j = 0; j < kKeyPieces; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[j].x[e] = raw_score(p, scores[j].x[e]);
    }
    // Most blocks are seen as a whole; masking would be half of what is computed here.
    if (block < all_first || block + kKeyBlock - 1 > all_last) mask(scores, block);
#pragma unroll
    for (int j = 0; j < kKeyPieces; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) most[e / 2] = fmaxf(most[e / 2], scores[j].x[e]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      most[half] = fmaxf(most[half], __shfl_xor_sync(kAllLanes, most[half], 1));
      most[half] = fmaxf(most[half], __shfl_xor_sync(kAllLanes, most[half], 2));
      factor[half] = shrinking(maximum[half], most[half], exponent);
      maximum[half] = most[half];
    }
  }

  // Scores become weights, still float.
  UNIFLUID_DEVICE void exponentiate(FragmentC (&scores)[kKeyPieces]) const {
    const float offset[2] = {maximum[0] * exponent, maximum[1] * exponent};
#pragma unroll
    for (int j = 0; j < kKeyPieces; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        scores[j].x[e] = weight_of(scores[j].x[e], offset[e / 2], exponent);
  }

  UNIFLUID_DEVICE void mask(FragmentC (&scores)[kKeyPieces], int block) const {
#pragma unroll
    for (int j = 0; j < kKeyPieces; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Sight& sight = sights[e / 2];
        const int key = block + 8 * j + lane_index() % 4 * 2 + e % 2;
        if (key < sight.first || key > sight.last) scores[j].x[e] = kMaskedScore;
      }
  }
};

// The weights of keys 16 k on of a block, as an operand: accumulators are laid out as it is.
UNIFLUID_DEVICE FragmentA weights_operand(const FragmentC (&weights)[kKeyPieces], int k) {
  FragmentA operand;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* w = &weights[2 * k + i / 2].x[i % 2 * 2];
    operand.x[i] = pack_bf16(w[0], w[1]);
  }
  return operand;
}

// Shrinks what was summed under lower maxima. Maxima seldom rise after the first blocks, and a
// factor of 1 changes nothing.
template <int kPieces>
UNIFLUID_DEVICE void shrink(const float (&factor)[2], FragmentC (&sums)[kPieces],
                            FragmentC& totals) {
  if (!__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
  for (int c = 0; c < kPieces; ++c)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[c].x[e] *= factor[e / 2];
#pragma unroll
  for (int e = 0; e < 4; ++e) totals.x[e] *= factor[e / 2];
}

// Writes the outputs of this thread's queries.
template <bool kAligned, int kPieces>
UNIFLUID_DEVICE void store_attended(const AttentionParams& p, const AttendedSpan& span,
                                    const AttentionTile& tile, int kv_head,
                                    const OnlineSoftmax& softmax, int queries,
                                    const FragmentC (&sums)[kPieces], const FragmentC& totals) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (softmax.query[half] >= queries) continue;
    bf16* out = static_cast<bf16*>(p.out) +
                query_offset(p, span, kv_head, tile.first + softmax.query[half], p.out_stride);
    const float inverse = 1.0f / totals.x[2 * half];
#pragma unroll
    for (int c = 0; c < kPieces; ++c)
      store_pair<kAligned>(out, 8 * c + lane_index() % 4 * 2, p.head_dim,
                           sums[c].x[2 * half] * inverse, sums[c].x[2 * half + 1] * inverse);
  }
}

}  // namespace unifluid::cuda
