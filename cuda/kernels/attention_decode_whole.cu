// Attention of few rows each for many tiles: one thread block does all of a tile and key head.
//
// Where tiles alone fill the processors, neither keys nor columns need be split (as in
// attention_decode.cu), and scores stay in the block: its time follows the keys that there are. A
// step of many sequences begins with few, and what a block costs besides is most of it; so blocks
// are small, and four of them share a processor of an H200.
#include "cuda/device/dependence.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/attention_decode.h"

namespace unifluid::cuda {
namespace {

// 4 warps: of each half of a block of keys one has the scores of 8 keys, of the values a quarter
// of the columns.
constexpr int kWarps = 4, kThreads = kWarps * kWarp;
// Keys and values come in halves of a block, both of keys before those of values, to a ring of
// slots: two are on their way while one is read.
constexpr int kHalf = kKeyBlock / 2;
constexpr int kSlots = 3;
static_assert(kHalf == kWarps * 8);
constexpr uint32_t kWeightStride = kKeyBlock + 8;

template <int kHeadDim, bool kAligned>
__global__ void __launch_bounds__(kThreads, 4) decode_whole(AttentionParams p) {
  constexpr uint32_t kStride = kHeadDim + 8, kSlot = kHalf * kStride;
  constexpr int kPieces = kHeadDim / 8 / kWarps;
  SharedArena arena;
  const auto slots = arena.take<bf16>(kSlots * kSlot);
  // Of queries there is a row more: zeros, for the rest of the mma's 16.
  const uint32_t rows = static_cast<uint32_t>(p.score_rows) + 1;
  const auto q_tile = arena.take<bf16>(rows * kStride);
  const auto weights = arena.take<bf16>(rows * kWeightStride);
  const auto maxima = arena.take<float>(kWarps * kDecodeQueries);
  let_dependents_start();
  const AttentionTile tile = load_staged(p.tiles + blockIdx.x);
  const AttendedSpan span = load_staged(p.spans + tile.span);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int queries = queries_of(p, span, tile.first);
  const Sight seen =
      sight_of_rows(p, span, tile.first / p.group, (tile.first + queries - 1) / p.group);
  const int begin = seen.first / kKeyBlock * kKeyBlock;
  const int thread = static_cast<int>(threadIdx.x), warp = warp_index();
  const uint32_t lane = static_cast<uint32_t>(lane_index());

  // Some query sees some of the half block that begins there. What none sees is not loaded, and
  // would add zeros.
  const auto sees = [&](int first) { return first <= seen.last && first + kHalf > seen.first; };
  // Rows of the span among `count` keys from `first` on, where they lie in no cache yet.
  const auto own_of = [&](int first) { return span.writes_keys ? max(0, span.index - first) : 0; };
  const auto own_end_of = [&](int first, int count) {
    return span.writes_keys ? min(count, span.index + span.rows - first) : 0;
  };
  const auto copy_keys = [&](int first, uint32_t at) {
    const bf16* keys = static_cast<const bf16*>(span.keys) + kv_head * span.key_head_stride;
    if (sees(first))
      load_rows<kHalf, kHeadDim, kThreads, kAligned>(
          slots, at, p.head_dim,
          [&](int i) {
            return first + i <= seen.last ? keys + (first + i) * span.key_stride : nullptr;
          },
          own_of(first), own_end_of(first, kHalf));
    cp_async_commit();
  };
  const auto copy_values = [&](int first, uint32_t at) {
    const bf16* values = static_cast<const bf16*>(span.values) + kv_head * span.value_head_stride;
    const bf16* incoming = static_cast<const bf16*>(p.incoming.v) + kv_head * p.head_dim +
                           (span.first_row - span.index) * p.incoming.v_stride;
    if (sees(first))
      load_rows<kHalf, kHeadDim, kThreads, kAligned>(slots, at, p.head_dim, [&](int i) {
        const int key = first + i;
        if (span.writes_values && key >= span.index && key < span.index + span.rows)
          return incoming + key * p.incoming.v_stride;
        return key <= seen.last ? values + key * span.value_stride : nullptr;
      });
    cp_async_commit();
  };

  wait_for_inputs();
  copy_keys(begin, 0);
  copy_keys(begin + kHalf, kSlot);
  if (span.writes_keys) {
    take_in<kHeadDim, kThreads>(p, span, tile.first, queries, kv_head, begin, own_of(begin),
                                own_end_of(begin, kKeyBlock), q_tile, slots);
  } else {
    for (int i = thread; i < queries * kHeadDim; i += kThreads) {
      const int query = i / kHeadDim, c = i % kHeadDim;
      const bf16* from = static_cast<const bf16*>(p.q) +
                         query_offset(p, span, kv_head, tile.first + query, p.q_stride);
      q_tile.store(static_cast<uint32_t>(query) * kStride + static_cast<uint32_t>(c),
                   c < p.head_dim ? from[c] : bf16{0});
    }
  }
  if (queries < kDecodeQueries) {
    const uint32_t none = static_cast<uint32_t>(queries);
    for (uint32_t i = threadIdx.x; i < kStride; i += kThreads)
      q_tile.store(none * kStride + i, bf16{0});
    for (uint32_t i = threadIdx.x; i < kWeightStride; i += kThreads)
      weights.store(none * kWeightStride + i, bf16{0});
  }

  // The slot that is read; the next copies go to the one before it.
  uint32_t slot = (kSlots - 1) * kSlot;
  const auto next_slot = [&] {
    const uint32_t before = slot;
    slot = slot == (kSlots - 1) * kSlot ? 0 : slot + kSlot;
    cp_async_wait<kSlots - 2>();
    __syncthreads();  // the slot has come, and the one before is free
    return before;
  };

  // Of accumulators this thread has two queries; of operands a lane names one row.
  int query[2];
  Sight sights[2];
  float maximum[2] = {kLeastMaximum, kLeastMaximum};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    query[half] = static_cast<int>(lane / 4) + 8 * half;
    sights[half] = query[half] < queries ? sight_of(p, span, (tile.first + query[half]) / p.group)
                                         : Sight{0, -1};
  }
  const uint32_t row = min(lane % 16, static_cast<uint32_t>(queries));
  const float exponent = exponent_scale(p);
  FragmentC sums[kPieces] = {}, totals = {};
  for (int block = begin; block <= seen.last; block += kKeyBlock) {
    FragmentC scores[2] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      copy_values(block + h * kHalf, next_slot());
      if (!sees(block + h * kHalf)) continue;
#pragma unroll
      for (uint32_t k = 0; k < kHeadDim; k += 32) {
        uint32_t b[4];
        ldmatrix_x4<false>(
            b, slots,
            slot + (static_cast<uint32_t>(warp) * 8 + lane % 8) * kStride + k + lane / 8 * 8);
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
          FragmentA q;
          ldmatrix_x4<false>(q.x, q_tile, row * kStride + k + 16 * half + lane / 16 * 8);
          mma(scores[h], q, FragmentB{{b[2 * half], b[2 * half + 1]}});
        }
      }
    }

    // Scores become weights.
    const uint32_t own_key = static_cast<uint32_t>(warp) * 8 + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = kMaskedScore;
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = block + h * kHalf + static_cast<int>(own_key) + e;
          float& score = scores[h].x[2 * half + e];
          score = key >= sights[half].first && key <= sights[half].last ? raw_score(p, score)
                                                                        : kMaskedScore;
          most = fmaxf(most, score);
        }
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      if (lane % 4 == 0)
        maxima.store(static_cast<uint32_t>(warp * kDecodeQueries + query[half]), most);
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = maximum[half];
#pragma unroll
      for (int w = 0; w < kWarps; ++w)
        most = fmaxf(most, maxima.load(static_cast<uint32_t>(w * kDecodeQueries + query[half])));
      const float factor = shrinking(maximum[half], most, exponent);
      maximum[half] = most;
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        totals.x[e] *= factor;
#pragma unroll
        for (int j = 0; j < kPieces; ++j) sums[j].x[e] *= factor;
      }
      if (query[half] >= queries) continue;
      const float offset = most * exponent;
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h)
#pragma unroll
        for (uint32_t e = 0; e < 2; ++e)
          weights.store(
              static_cast<uint32_t>(query[half]) * kWeightStride + h * kHalf + own_key + e,
              from_float<bf16>(
                  weight_of(scores[h].x[2 * static_cast<uint32_t>(half) + e], offset, exponent)));
    }

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int next = block + kKeyBlock + h * kHalf;
      const uint32_t free = next_slot();
      copy_keys(next, free);
      if (own_of(next) < own_end_of(next, kHalf))
        take_in<kHeadDim, kThreads>(p, span, tile.first, 0, kv_head, next, own_of(next),
                                    own_end_of(next, kHalf), q_tile, slots.part(free, kSlot));
      if (!sees(block + h * kHalf)) continue;
      FragmentA w[2];
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        ldmatrix_x4<false>(
            w[half].x, weights,
            row * kWeightStride + static_cast<uint32_t>(h) * kHalf + 16 * half + lane / 16 * 8);
        mma(totals, w[half], ones());
      }
#pragma unroll
      for (uint32_t j = 0; j < kPieces; ++j) {
        uint32_t v[4];
        ldmatrix_x4<true>(v, slots,
                          slot + lane * kStride + (static_cast<uint32_t>(warp) * kPieces + j) * 8);
#pragma unroll
        for (int half = 0; half < 2; ++half)
          mma(sums[j], w[half], FragmentB{{v[2 * half], v[2 * half + 1]}});
      }
    }
  }
  cp_async_wait<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (query[half] >= queries) continue;
    bf16* out = static_cast<bf16*>(p.out) +
                query_offset(p, span, kv_head, tile.first + query[half], p.out_stride);
    const float inverse = 1.0f / totals.x[2 * half];
#pragma unroll
    for (int j = 0; j < kPieces; ++j)
      store_pair<kAligned>(out, (warp * kPieces + j) * 8 + static_cast<int>(lane % 4) * 2,
                           p.head_dim, sums[j].x[2 * half] * inverse,
                           sums[j].x[2 * half + 1] * inverse);
  }
}

template <int kHeadDim>
void launch(Queue& queue, const AttentionParams& p, size_t tiles, bool aligned) {
  const size_t rows = static_cast<size_t>(p.score_rows) + 1;
  const size_t shared = SharedBytes{}
                            .template take<bf16>(kSlots * kHalf * (kHeadDim + 8))
                            .template take<bf16>(rows * (kHeadDim + 8))
                            .template take<bf16>(rows * kWeightStride)
                            .template take<float>(kWarps * kDecodeQueries)
                            .used;
  queue.launch_dependent(aligned ? decode_whole<kHeadDim, true> : decode_whole<kHeadDim, false>,
                         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.kv_heads)),
                         dim3(kThreads), shared, p);
}

}  // namespace

void attend_decode_whole(Queue& queue, const AttentionParams& p, size_t tiles, bool aligned) {
  if (p.head_dim <= 64)
    launch<64>(queue, p, tiles, aligned);
  else if (p.head_dim <= 128)
    launch<128>(queue, p, tiles, aligned);
  else
    launch<kLargestTensorHead>(queue, p, tiles, aligned);
}

}  // namespace unifluid::cuda
