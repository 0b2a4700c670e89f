// Attention of few rows: at most 16 packed queries a tile, one mma's rows.
//
// Of many tiles each is one block's (attention_decode_whole.cu). Here one tile must keep many
// processors busy, without another order of sums than `prefill` has. So the
// keys are not split with their values: the first kernel computes scores, in parallel over blocks
// of keys; the second adds values, all keys in order, in parallel over columns of the head. Between
// them lie the scores of these few queries, 4 bytes a query and key beside the 4 * head_dim of the
// key and its value.
//
// The rows that are decoded are rotated as they are read, and their keys and values appended to the
// caches by the thread block that computes their scores: no kernel goes before.
//
// The first grid is sized by the capacity of the caches, not by what they hold, so that the step's
// launches repeat and replay as a graph; blocks beyond a sequence's keys end at once.
#include "cuda/device/dependence.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/attention_decode.h"
#include "cuda/kernels/attention_split.h"

namespace unifluid::cuda {
namespace {

// The whole block of keys is one wave of copies: what hides its latency is the number of thread
// blocks.
template <int kHeadDim, bool kAligned>
__global__ void __launch_bounds__(kScoreThreads) decode_scores(AttentionParams p) {
  let_dependents_start();
  const AttentionTile tile = load_staged(p.tiles + blockIdx.x);
  const AttendedSpan span = load_staged(p.spans + tile.span);
  const int block = static_cast<int>(blockIdx.z) * kKeyBlock;
  const Sight seen = sight_of_tile(p, span, tile.first);
  wait_for_inputs();
  if (block > seen.last || block + kKeyBlock <= seen.first) return;
  using Threads = WholeBlock<kScoreThreads>;
  const int kv_head = static_cast<int>(blockIdx.y);
  load_keys<kHeadDim, kAligned, Threads>(p, span, kv_head, block, seen, SharedArena{});
  compute_scores<kHeadDim, kAligned, Threads>(p, span, blockIdx.x, tile.first, kv_head, block,
                                              SharedArena{});
}

// 128 bytes of a value for each block: whole lines of the cache.
constexpr int kColumnWarps = kValueWarps, kColumns = kColumnWarps * 8;
// 5 * 8 KiB of values on their way to each thread block hide the latency of memory where few
// sequences run.
constexpr int kSlots = 6;

template <bool kAligned>
__global__ void __launch_bounds__(kValueThreads, 2) decode_values(AttentionParams p) {
  let_dependents_start();
  const AttentionTile tile = load_staged(p.tiles + blockIdx.x);
  const AttendedSpan span = load_staged(p.spans + tile.span);
  const int kv_head = static_cast<int>(blockIdx.y);
  add_values<kColumnWarps, kSlots, kAligned, WholeBlock<kValueThreads>, kDecodeQueries>(
      p, span, blockIdx.x, tile.first, kv_head, static_cast<int>(blockIdx.z) * kColumns,
      SharedArena{}, [] { wait_for_inputs(); },
      [&](int query, int column, float a, float b) {
        store_pair<kAligned>(
            static_cast<bf16*>(p.out) + query_offset(p, span, kv_head, query, p.out_stride), column,
            p.head_dim, a, b);
      });
}

template <int kHeadDim>
void launch_scores(Queue& queue, const AttentionParams& p, size_t tiles, bool aligned) {
  queue.launch_dependent(aligned ? decode_scores<kHeadDim, true> : decode_scores<kHeadDim, false>,
                         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.kv_heads),
                              blocks_for(p.score_stride, kKeyBlock)),
                         dim3(kScoreThreads), score_bytes<kHeadDim>(), p);
}

}  // namespace

bool splits_keys(const Queue& queue, size_t tiles, int64_t kv_heads) {
  return 2 * static_cast<int64_t>(tiles) * kv_heads <= queue.limits().processors;
}

void attend_decode(Queue& queue, const AttentionParams& p, size_t tiles, bool aligned) {
  // Of z, a grid takes no more.
  constexpr int64_t kMostKeyBlocks = 65535;
  if (!splits_keys(queue, tiles, p.kv_heads) ||
      blocks_for(p.score_stride, kKeyBlock) > kMostKeyBlocks)
    return attend_decode_whole(queue, p, tiles, aligned);
  if (p.head_dim <= 64)
    launch_scores<64>(queue, p, tiles, aligned);
  else if (p.head_dim <= 128)
    launch_scores<128>(queue, p, tiles, aligned);
  else
    launch_scores<kLargestTensorHead>(queue, p, tiles, aligned);
  queue.launch_dependent(aligned ? decode_values<true> : decode_values<false>,
                         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.kv_heads),
                              blocks_for(p.head_dim, kColumns)),
                         dim3(kValueThreads), value_bytes<kColumnWarps, kSlots>(), p);
}

}  // namespace unifluid::cuda
