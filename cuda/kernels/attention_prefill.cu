// Attention of many rows on tensor cores (FlashAttention-2, 2307.08691): a block has 64 packed
// queries, its 4 warps 16 each, and walks the keys that any of them sees.
//
// With 16 queries a warp keeps for a head of 256 128 accumulators a thread, 32 scores and 16 packed
// weights, within 255 registers; 32 queries would not fit. Weights never leave the warp's
// registers: the accumulator layout of scores is the operand layout of weights.
//
// Shared memory holds the queries and one block of 64 keys and of values each: 99 KiB for a head of
// 256, what every device from sm_80 on gives. There is no room for two; instead values arrive while
// scores are computed, and the next keys while values are added. Smaller heads leave room for
// several thread blocks, which overlap.
#include "cuda/dispatch.h"
#include "cuda/kernels/attention_softmax.h"

namespace unifluid::cuda {
namespace {

constexpr int kWarps = kPrefillQueries / 16, kThreads = kWarps * kWarp;

template <int kHeadDim>
size_t shared_bytes() {
  return SharedBytes{}
      .template take<bf16>(static_cast<size_t>(kPrefillQueries * (kHeadDim + 8)))
      .template take<bf16>(static_cast<size_t>(kKeyBlock * (kHeadDim + 8)))
      .template take<bf16>(static_cast<size_t>(kKeyBlock * (kHeadDim + 8)))
      .used;
}

template <int kHeadDim, bool kAligned>
__global__ void __launch_bounds__(kThreads) prefill(AttentionParams p) {
  constexpr uint32_t kStride = kHeadDim + 8;
  SharedArena arena;
  const auto q_tile = arena.take<bf16>(kPrefillQueries * kStride);
  const auto k_tile = arena.take<bf16>(kKeyBlock * kStride);
  const auto v_tile = arena.take<bf16>(kKeyBlock * kStride);
  const AttentionTile tile = p.tiles[blockIdx.x];
  const AttendedSpan span = p.spans[tile.span];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int queries = min(kPrefillQueries, span.rows * p.group - tile.first);
  const Sight seen =
      sight_of_rows(p, span, tile.first / p.group, (tile.first + queries - 1) / p.group);
  const uint32_t lane = static_cast<uint32_t>(lane_index());
  const uint32_t first_query = static_cast<uint32_t>(warp_index()) * 16;

  load_rows<kPrefillQueries, kHeadDim, kThreads, kAligned>(q_tile, 0, p.head_dim, [&](int i) {
    return i < queries ? static_cast<const bf16*>(p.q) +
                             query_offset(p, span, kv_head, tile.first + i, p.q_stride)
                       : nullptr;
  });
  const bf16* keys = static_cast<const bf16*>(span.keys) + kv_head * span.key_head_stride;
  const bf16* values = static_cast<const bf16*>(span.values) + kv_head * span.value_head_stride;
  const auto load_keys = [&](int block) {
    load_rows<kKeyBlock, kHeadDim, kThreads, kAligned>(k_tile, 0, p.head_dim, [&](int i) {
      return block + i <= seen.last ? keys + (block + i) * span.key_stride : nullptr;
    });
    cp_async_commit();
  };
  const auto load_values = [&](int block) {
    load_rows<kKeyBlock, kHeadDim, kThreads, kAligned>(v_tile, 0, p.head_dim, [&](int i) {
      return block + i <= seen.last ? values + (block + i) * span.value_stride : nullptr;
    });
    cp_async_commit();
  };

  OnlineSoftmax softmax(p, span, tile, static_cast<int>(first_query), queries);
  FragmentC sums[kHeadDim / 8] = {};
  FragmentC totals = {};

  const int begin = seen.first / kKeyBlock * kKeyBlock;
  load_keys(begin);
  for (int block = begin; block <= seen.last; block += kKeyBlock) {
    cp_async_wait<0>();
    __syncthreads();  // keys have come, and values of the block before are free
    load_values(block);

    FragmentC scores[kKeyPieces] = {};
#pragma unroll
    for (uint32_t k = 0; k < kHeadDim; k += 16) {
      FragmentA q;
      ldmatrix_x4<false>(q.x, q_tile, (first_query + lane % 16) * kStride + k + lane / 16 * 8);
#pragma unroll
      for (uint32_t j = 0; j < kKeyPieces; j += 2) {
        uint32_t b[4];
        ldmatrix_x4<false>(b, k_tile,
                           (8 * j + lane / 16 * 8 + lane % 8) * kStride + k + lane / 8 % 2 * 8);
        mma(scores[j], q, FragmentB{{b[0], b[1]}});
        mma(scores[j + 1], q, FragmentB{{b[2], b[3]}});
      }
    }

    cp_async_wait<0>();
    __syncthreads();  // values have come, and keys are free
    if (block + kKeyBlock <= seen.last) load_keys(block + kKeyBlock);

    float factor[2];
    softmax.take(p, scores, block, factor);
    softmax.exponentiate(scores);
    shrink(factor, sums, totals);

#pragma unroll
    for (uint32_t k = 0; k < kKeyBlock / 16; ++k) {
      const FragmentA weights = weights_operand(scores, static_cast<int>(k));
      mma(totals, weights, ones());
#pragma unroll
      for (uint32_t c = 0; c < kHeadDim / 8; c += 2) {
        uint32_t b[4];
        ldmatrix_x4<true>(b, v_tile, (16 * k + lane % 16) * kStride + 8 * c + lane / 16 * 8);
        mma(sums[c], weights, FragmentB{{b[0], b[1]}});
        mma(sums[c + 1], weights, FragmentB{{b[2], b[3]}});
      }
    }
  }

  store_attended<kAligned>(p, span, tile, kv_head, softmax, queries, sums, totals);
}

template <int kHeadDim>
void launch(Queue& queue, const AttentionParams& p, size_t tiles, bool aligned) {
  queue.launch(aligned ? prefill<kHeadDim, true> : prefill<kHeadDim, false>,
               dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.kv_heads)),
               dim3(kThreads), shared_bytes<kHeadDim>(), p);
}

}  // namespace

void attend_prefill(Queue& queue, const AttentionParams& p, size_t tiles, bool aligned) {
  if (p.head_dim <= 64)
    launch<64>(queue, p, tiles, aligned);
  else if (p.head_dim <= 80)  // SigLIP so400m has 72
    launch<80>(queue, p, tiles, aligned);
  else if (p.head_dim <= 128)
    launch<128>(queue, p, tiles, aligned);
  else
    launch<kLargestTensorHead>(queue, p, tiles, aligned);
}

}  // namespace unifluid::cuda
