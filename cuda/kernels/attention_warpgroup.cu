// Attention of many rows on Hopper (FlashAttention-3, 2407.08608): two warpgroups with 64 packed
// queries each multiply, a third brings keys and values.
//
// Keys and values come in blocks of 64, two of each in shared memory beside the queries: 193 KiB
// for a head of 256. They lie in as many places as there are sequences, so that they come by
// cp.async and not by maps of tensors. While a warpgroup computes the softmax of one block, the
// product of the block before with its values still runs, and so do the other warpgroup's.
//
// The order of all sums is that of `prefill` (attention.h).
#include "cuda/device/mbarrier.h"
#include "cuda/device/wgmma.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/attention_softmax.h"

namespace unifluid::cuda {
namespace {

constexpr int kMultipliers = kWarpgroupQueries / 64;
constexpr int kThreads = (1 + kMultipliers) * kWarpgroup;
constexpr uint32_t kSlots = 2;  // of keys, and of values
constexpr uint32_t kOnes = 8 * 16;

template <int kHeadDim>
struct Pieces {
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  // Elements of a panel and of a tile: queries, and keys or values.
  static constexpr uint32_t kQueryPanel = kWarpgroupQueries * kPanelColumns;
  static constexpr uint32_t kQueryTile = kPanels * kQueryPanel;
  static constexpr uint32_t kKeyPanel = kKeyBlock * kPanelColumns;
  static constexpr uint32_t kKeyTile = kPanels * kKeyPanel;

  static size_t shared_bytes() {
    return SharedBytes{}
        .template take<bf16>(kQueryTile)
        .template take<bf16>(kSlots * kKeyTile)
        .template take<bf16>(kSlots * kKeyTile)
        .template take<bf16>(kOnes)
        .template take<uint64_t>(4 * kSlots)
        .used;
  }
};

#ifdef UNIFLUID_WARPGROUPS

// Where element (row, column) of a tile of kRows rows lies in its panels.
template <int kRows>
UNIFLUID_DEVICE uint32_t in_panels(int row, int column) {
  return static_cast<uint32_t>(column / kPanelColumns * kRows * kPanelColumns) +
         swizzled(static_cast<uint32_t>(row), static_cast<uint32_t>(column % kPanelColumns));
}

// Starts the copies of the tile's queries, by all threads; row i comes from `from(i)`, or is zeros.
template <int kHeadDim, class From>
UNIFLUID_DEVICE void load_queries(const Shared<bf16>& to, int columns, From from) {
  constexpr int kVectors = kHeadDim / 8, kAll = kWarpgroupQueries * kVectors;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kAll; i += kThreads) {
    const int row = i / kVectors, column = i % kVectors * 8;
    const bf16* source = from(row);
    const bool valid = source && column < columns;
    cp_async16(to, in_panels<kWarpgroupQueries>(row, column), valid ? source + column : nullptr,
               valid);
  }
}

// Starts the copies of a block of keys or values of which there are `count` rows, `stride` apart;
// the others come as zeros. By a warpgroup. A thread has one column, so that a copy needs little
// more than an addition: these instructions take turns with those of the multipliers.
template <int kHeadDim>
UNIFLUID_DEVICE void load_block(const Shared<bf16>& to, uint32_t at, int columns, const bf16* rows,
                                int64_t stride, int count) {
  constexpr int kVectors = kHeadDim / 8, kAtOnce = kWarpgroup / kVectors;
  // Copies after which the permutation is that of the first again.
  constexpr int kPhases = kAtOnce < 8 ? 8 / kAtOnce : 1;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  const int row = thread / kVectors, column = thread % kVectors * 8;
  uint32_t to_phase[kPhases];
#pragma unroll
  for (int i = 0; i < kPhases; ++i)
    to_phase[i] = at + in_panels<kKeyBlock>(row + i * kAtOnce, column);
  const bf16* from = rows + row * stride + column;
  const int left = column < columns ? count - row : 0;
#pragma unroll
  for (int i = 0; i < kKeyBlock / kAtOnce; ++i) {
    constexpr int kStep = kPhases * kAtOnce * kPanelColumns;
    cp_async16(to, to_phase[i % kPhases] + static_cast<uint32_t>(i / kPhases * kStep), from,
               i * kAtOnce < left);
    from += kAtOnce * stride;
  }
}

#endif

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) attend(AttentionParams p) {
#ifdef UNIFLUID_WARPGROUPS
  using P = Pieces<kHeadDim>;
  SharedArena arena;
  const auto q_tile = arena.take<bf16>(P::kQueryTile);
  const auto k_tiles = arena.take<bf16>(kSlots * P::kKeyTile);
  const auto v_tiles = arena.take<bf16>(kSlots * P::kKeyTile);
  const auto ones_tile = arena.take<bf16>(kOnes);
  const auto barriers = arena.take<uint64_t>(4 * kSlots);
  const auto keys_full = barriers.part(0, kSlots), keys_free = barriers.part(kSlots, kSlots);
  const auto values_full = barriers.part(2 * kSlots, kSlots);
  const auto values_free = barriers.part(3 * kSlots, kSlots);

  const AttentionTile tile = p.tiles[blockIdx.x];
  const AttendedSpan span = p.spans[tile.span];
  const int kv_head = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const int queries = min(kWarpgroupQueries, span.rows * p.group - tile.first);
  const Sight seen =
      sight_of_rows(p, span, tile.first / p.group, (tile.first + queries - 1) / p.group);
  const int begin = seen.first / kKeyBlock * kKeyBlock;

  if (thread == 0)
    for (uint32_t i = 0; i < kSlots; ++i) {
      mbarrier_init(keys_full, i, kWarpgroup);
      mbarrier_init(values_full, i, kWarpgroup);
      mbarrier_init(keys_free, i, kMultipliers * kWarpgroup / kWarp);
      mbarrier_init(values_free, i, kMultipliers * kWarpgroup / kWarp);
    }
  if (thread < int{kOnes}) ones_tile.store(static_cast<uint32_t>(thread), bf16{0x3f80});
  __syncthreads();  // copies go through barriers from here on
  load_queries<kHeadDim>(q_tile, p.head_dim, [&](int i) {
    return i < queries ? static_cast<const bf16*>(p.q) +
                             query_offset(p, span, kv_head, tile.first + i, p.q_stride)
                       : nullptr;
  });
  cp_async_commit();
  cp_async_wait<0>();
  fence_async_proxy();
  __syncthreads();

  if (thread < kWarpgroup) {
    give_registers<40>();
    const bf16* keys = static_cast<const bf16*>(span.keys) + kv_head * span.key_head_stride;
    const bf16* values = static_cast<const bf16*>(span.values) + kv_head * span.value_head_stride;
    // Copies of one thing are announced when those of the next have begun.
    const auto announce = [&](const Shared<uint64_t>& full, uint32_t slot) {
      fence_async_proxy();
      mbarrier_arrive(full, slot);
    };
    RingPlace<kSlots> place;
    uint32_t before = 0;
    for (int block = begin; block <= seen.last; block += kKeyBlock) {
      mbarrier_wait<false>(keys_free, place.slot, place.parity ^ 1);
      load_block<kHeadDim>(k_tiles, place.slot * P::kKeyTile, p.head_dim,
                           keys + block * span.key_stride, span.key_stride, seen.last + 1 - block);
      cp_async_commit();
      if (block > begin) {
        cp_async_wait<1>();
        announce(values_full, before);
      }
      mbarrier_wait<false>(values_free, place.slot, place.parity ^ 1);
      load_block<kHeadDim>(v_tiles, place.slot * P::kKeyTile, p.head_dim,
                           values + block * span.value_stride, span.value_stride,
                           seen.last + 1 - block);
      cp_async_commit();
      cp_async_wait<1>();
      announce(keys_full, place.slot);
      before = place.slot;
      place.advance();
    }
    cp_async_wait<0>();
    announce(values_full, before);
    return;
  }

  take_registers<232>();
  const uint32_t first_query = static_cast<uint32_t>(thread / kWarpgroup - 1) * 64;
  const auto release = [&](const Shared<uint64_t>& free, uint32_t slot) {
    if (lane_index() == 0) mbarrier_arrive(free, slot);
  };
  OnlineSoftmax softmax(p, span, tile, static_cast<int>(first_query) + warp_index() % 4 * 16,
                        queries);
  FragmentC sums[kHeadDim / 8] = {};
  FragmentC totals[1] = {};
  FragmentC scores[kKeyPieces] = {};
  FragmentA weights[kKeyBlock / 16] = {};

  const uint64_t first_q = descriptor::of_rows(q_tile, first_query * kPanelColumns);
  const uint64_t first_k = descriptor::of_rows(k_tiles, 0);
  const uint64_t first_v = descriptor::of_columns(v_tiles, 0, P::kKeyPanel);
  const auto begin_scores = [&](uint32_t slot) {
#pragma unroll
    for (int j = 0; j < kKeyPieces; ++j) scores[j] = FragmentC{};
    keep_in_place(scores);
    warpgroup_fence();
#pragma unroll
    for (uint32_t c = 0; c < kHeadDim; c += 16) {
      const uint32_t panel = c / kPanelColumns, column = c % kPanelColumns;
      warpgroup_mma<false, false>(
          scores, descriptor::further(first_q, panel * P::kQueryPanel + column),
          descriptor::further(first_k, slot * P::kKeyTile + panel * P::kKeyPanel + column));
    }
    warpgroup_commit();
  };
  const auto begin_sums = [&](uint32_t slot) {
    keep_in_place(sums);
    keep_in_place(totals);
    warpgroup_fence();
#pragma unroll
    for (uint32_t k = 0; k < kKeyBlock / 16; ++k) {
      warpgroup_mma<false>(totals, weights[k], descriptor::of_eight_rows(ones_tile));
      warpgroup_mma<true>(
          sums, weights[k],
          descriptor::further(first_v, slot * P::kKeyTile + 16 * k * kPanelColumns));
    }
    warpgroup_commit();
  };

  RingPlace<kSlots> place;
  float factor[2];
  mbarrier_wait<false>(keys_full, place.slot, place.parity);
  begin_scores(place.slot);
  warpgroup_wait<0>();
  keep_in_place(scores);
  release(keys_free, place.slot);
  softmax.take(p, scores, begin, factor);  // nothing to shrink yet
  softmax.exponentiate(scores);
#pragma unroll
  for (int k = 0; k < kKeyBlock / 16; ++k) weights[k] = weights_operand(scores, k);
  keep_in_place(weights);
  for (int block = begin + kKeyBlock; block <= seen.last; block += kKeyBlock) {
    const RingPlace<kSlots> before = place;
    place.advance();
    mbarrier_wait<false>(keys_full, place.slot, place.parity);
    begin_scores(place.slot);
    mbarrier_wait<false>(values_full, before.slot, before.parity);
    begin_sums(before.slot);
    warpgroup_wait<1>();
    keep_in_place(scores);
    release(keys_free, place.slot);
    softmax.take(p, scores, block, factor);
    softmax.exponentiate(scores);
    warpgroup_wait<0>();
    keep_in_place(sums);
    keep_in_place(totals);
    release(values_free, before.slot);
    shrink(factor, sums, totals[0]);
#pragma unroll
    for (int k = 0; k < kKeyBlock / 16; ++k) weights[k] = weights_operand(scores, k);
    keep_in_place(weights);
  }
  mbarrier_wait<false>(values_full, place.slot, place.parity);
  begin_sums(place.slot);
  warpgroup_wait<0>();
  keep_in_place(sums);
  keep_in_place(totals);
  store_attended<true>(p, span, tile, kv_head, softmax, queries, sums, totals[0]);
#endif
}

template <int kHeadDim>
void launch(Queue& queue, const AttentionParams& p, size_t tiles) {
  queue.launch(attend<kHeadDim>,
               dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.kv_heads)),
               dim3(kThreads), Pieces<kHeadDim>::shared_bytes(), p);
}

}  // namespace

// Heads between 64 and 80, SigLIP so400m's, would waste a half of one of 128.
bool takes_warpgroups(const Queue& queue, int64_t queries, int64_t head_dim, bool aligned) {
  return queue.limits().warpgroups && aligned && queries > kPrefillQueries &&
         (head_dim <= 64 || head_dim > 80);
}

void attend_warpgroups(Queue& queue, const AttentionParams& p, size_t tiles) {
  if (p.head_dim <= 64)
    launch<64>(queue, p, tiles);
  else if (p.head_dim <= 128)
    launch<128>(queue, p, tiles);
  else
    launch<kLargestTensorHead>(queue, p, tiles);
}

}  // namespace unifluid::cuda
