// Matrix products of many rows on Hopper: operands come by bulk copies of whole boxes, one thread
// asking for them, and two warpgroups multiply 64 rows each with wgmma.
//
// A block computes 128 rows and 256 columns, which is what the accumulators of two warpgroups hold
// and what reads each operand least often for its products: 48 KiB of operands a step of 64 for
// 128 * 256 * 64 multiply-adds. Four steps are in flight. Where that leaves processors idle a tile
// is 128 columns. With a gate half of the columns are of either weight, so that a thread has both
// factors of an output.
//
// Blocks stay for many tiles: copies for the next one begin while the last is being written. Eight
// tiles of rows take turns before the next column, for the second-level cache.
#include <algorithm>

#include "cuda/device/mbarrier.h"
#include "cuda/device/warp.h"
#include "cuda/device/wgmma.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/linear.h"

namespace unifluid::cuda {
namespace {

constexpr int kDepth = kBoxColumns;
constexpr int kRowGroup = 8;
static_assert(kDepth == kPanelColumns);

// As many stages as come to 192 KiB.
template <int kRows_, int kColumns_>
struct WideTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kMultipliers = kRows / 64;  // warpgroups
  static constexpr int kThreads = (1 + kMultipliers) * kWarpgroup;
  static constexpr uint32_t kStages = 192 * 8 / (kRows + kColumns);
  static constexpr uint32_t kTileX = kRows * kDepth, kTileW = kColumns * kDepth;
  static constexpr uint32_t kStageBytes = (kTileX + kTileW) * sizeof(bf16);

  static size_t shared_bytes() {
    return SharedBytes{}
        .template take<bf16>(kStages * kTileX)
        .template take<bf16>(kStages * kTileW)
        .template take<uint64_t>(2 * kStages)
        .used;
  }
};

// Boxes of x have a tile's rows; of weights half of a tile's columns.
struct Maps {
  TensorMap x, weights[2];
  int32_t row_tiles, column_tiles;
};

struct TilePlace {
  int row, column;
};
UNIFLUID_DEVICE TilePlace tile_place(const Maps& maps, int tile) {
  const int each = kRowGroup * maps.column_tiles;
  const int first = tile / each * kRowGroup, within = tile % each;
  const int rows = min(kRowGroup, maps.row_tiles - first);
  return {first + within % rows, within / rows};
}

#ifdef UNIFLUID_WARPGROUPS

// Lane t of each four has element 2 t, 2 t + 1 of four pieces of 8; afterwards all of piece t.
UNIFLUID_DEVICE void exchange_pieces(uint32_t (&words)[4]) {
  const bool odd = lane_index() & 1, upper = lane_index() & 2;
  uint32_t a = odd ? words[0] : words[1], b = odd ? words[2] : words[3];
  a = __shfl_xor_sync(kAllLanes, a, 1);
  b = __shfl_xor_sync(kAllLanes, b, 1);
  (odd ? words[0] : words[1]) = a;
  (odd ? words[2] : words[3]) = b;
  a = upper ? words[0] : words[2];
  b = upper ? words[1] : words[3];
  a = __shfl_xor_sync(kAllLanes, a, 2);
  b = __shfl_xor_sync(kAllLanes, b, 2);
  (upper ? words[0] : words[2]) = a;
  (upper ? words[1] : words[3]) = b;
}

// Writes the sums of this thread's 64 rows; `whole`: rows of `out` can be written by 16 bytes.
template <bool kGated, int kPieces>
UNIFLUID_DEVICE void store_tile(const LinearParams& p, const FragmentC (&sums)[kPieces],
                                int first_row, int first_column, bool whole) {
  constexpr int kOutPieces = kGated ? kPieces / 2 : kPieces;
  const int lane = lane_index();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + lane / 4 + 8 * half;
#pragma unroll
    for (int j = 0; j < kOutPieces; j += 4) {
      const int column = first_column + 8 * j;
      // The same for the whole warp, but for rows at the end.
      if (whole && column + 32 <= p.n) {
        uint32_t words[4] = {};
        if (row < p.m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = column + 8 * i + lane % 4 * 2;
            const float* product = &sums[j + i].x[2 * half];
            const float* other = &sums[kPieces - kOutPieces + j + i].x[2 * half];
            words[i] = pack_bf16(output_of<bf16, kGated>(p, row, at, product[0], other[0]),
                                 output_of<bf16, kGated>(p, row, at + 1, product[1], other[1]));
          }
        }
        exchange_pieces(words);
        if (row < p.m)
          *reinterpret_cast<uint4*>(static_cast<bf16*>(p.out) + row * p.out_stride + column +
                                    lane % 4 * 8) =
              make_uint4(words[0], words[1], words[2], words[3]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            store_output<bf16, kGated>(p, row, column + 8 * i + lane % 4 * 2 + e,
                                       sums[j + i].x[2 * half + e],
                                       sums[kPieces - kOutPieces + j + i].x[2 * half + e]);
      }
    }
  }
}

#endif

template <class T, bool kGated>
__global__ void __launch_bounds__(T::kThreads, 1)
    product_warpgroups(const __grid_constant__ Maps maps, LinearParams p, bool whole) {
#ifdef UNIFLUID_WARPGROUPS
  constexpr int kOutColumns = kGated ? T::kColumns / 2 : T::kColumns;
  // Two warpgroups of multipliers beside that of copies: an even share of registers is too few.
  constexpr bool kManyRegisters = T::kMultipliers > 1;
  SharedArena arena;
  const auto x_tiles = arena.take<bf16>(T::kStages * T::kTileX);
  const auto w_tiles = arena.take<bf16>(T::kStages * T::kTileW);
  const auto barriers = arena.take<uint64_t>(2 * T::kStages);
  const auto full = barriers.part(0, T::kStages);
  const auto free = barriers.part(T::kStages, T::kStages);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0)
    for (uint32_t i = 0; i < T::kStages; ++i) {
      mbarrier_init(full, i, 1);
      mbarrier_init(free, i, T::kMultipliers * kWarpgroup / kWarp);
    }
  __syncthreads();

  const int tiles = maps.row_tiles * maps.column_tiles, steps = (p.k + kDepth - 1) / kDepth;
  RingPlace<T::kStages> place;
  if (thread < kWarpgroup) {
    if constexpr (kManyRegisters) give_registers<40>();
    if (thread > 0) return;
    for (int tile = static_cast<int>(blockIdx.x); tile < tiles;
         tile += static_cast<int>(gridDim.x)) {
      const TilePlace at = tile_place(maps, tile);
      for (int step = 0; step < steps; ++step, place.advance()) {
        mbarrier_wait(free, place.slot, place.parity ^ 1);
        mbarrier_arrive_expecting(full, place.slot, T::kStageBytes);
        copy_box(x_tiles, place.slot * T::kTileX, maps.x, step * kDepth, at.row * T::kRows, full,
                 place.slot);
        for (int w = 0; w < 2; ++w)
          copy_box(w_tiles, place.slot * T::kTileW + static_cast<uint32_t>(w) * (T::kTileW / 2),
                   maps.weights[w], step * kDepth,
                   at.column * kOutColumns + (kGated ? 0 : w * T::kColumns / 2), full, place.slot);
      }
    }
    return;
  }

  if constexpr (kManyRegisters) take_registers<232>();
  const int warpgroup = thread / kWarpgroup - 1;
  const auto release = [&](uint32_t slot) {
    if (lane_index() == 0) mbarrier_arrive(free, slot);
  };
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const TilePlace at = tile_place(maps, tile);
    FragmentC sums[T::kColumns / 8] = {};
    uint32_t last = 0;
    for (int step = 0; step < steps; ++step, place.advance()) {
      mbarrier_wait(full, place.slot, place.parity);
      keep_in_place(sums);
      warpgroup_fence();
#pragma unroll
      for (uint32_t k = 0; k < kDepth; k += 16)
        warpgroup_mma(sums,
                      descriptor::of_rows(
                          x_tiles, place.slot * T::kTileX +
                                       static_cast<uint32_t>(warpgroup) * 64 * kPanelColumns + k),
                      descriptor::of_rows(w_tiles, place.slot * T::kTileW + k));
      warpgroup_commit();
      keep_in_place(sums);
      // The step before is done.
      warpgroup_wait<1>();
      if (step > 0) release(last);
      last = place.slot;
    }
    warpgroup_wait<0>();
    keep_in_place(sums);
    release(last);
    store_tile<kGated>(p, sums, at.row * T::kRows + warpgroup * 64 + warp_index() % 4 * 16,
                       at.column * kOutColumns, whole);
  }
#endif
}

template <class T, bool kGated>
void launch(Queue& queue, const LinearParams& p) {
  constexpr int kOutColumns = kGated ? T::kColumns / 2 : T::kColumns;
  const auto matrix = [&](const void* data, int64_t rows, int64_t stride) {
    Tensor t(const_cast<void*>(data), DType::bf16, rows, p.k);
    t.stride = stride;
    return t;
  };
  Maps maps{};
  maps.x = tensor_map(matrix(p.x, p.m, p.x_stride), T::kRows);
  const auto weight_map = [&](int w) {
    return tensor_map(matrix(p.weights[w], p.n, p.weight_strides[w]), T::kColumns / 2);
  };
  maps.weights[0] = weight_map(0);
  maps.weights[1] = kGated ? weight_map(1) : maps.weights[0];
  maps.row_tiles = static_cast<int32_t>(blocks_for(p.m, T::kRows));
  maps.column_tiles = static_cast<int32_t>(blocks_for(p.n, kOutColumns));
  const bool whole =
      !p.float_out && reinterpret_cast<uintptr_t>(p.out) % 16 == 0 && p.out_stride % 8 == 0;
  const int tiles = maps.row_tiles * maps.column_tiles;
  queue.launch(product_warpgroups<T, kGated>,
               dim3(static_cast<unsigned>(std::min(tiles, queue.limits().processors))),
               dim3(T::kThreads), T::shared_bytes(), maps, p, whole);
}

template <int kRows, int kColumns>
void launch(Queue& queue, const LinearParams& p, bool gated) {
  if (gated)
    launch<WideTile<kRows, kColumns>, true>(queue, p);
  else
    launch<WideTile<kRows, kColumns>, false>(queue, p);
}

}  // namespace

void multiply_by_warpgroups(Queue& queue, const LinearParams& p, bool gated, int columns) {
  if (columns == 256)
    launch<128, 256>(queue, p, gated);
  else if (columns == 128)
    launch<128, 128>(queue, p, gated);
  else
    launch<64, 64>(queue, p, gated);
}

}  // namespace unifluid::cuda
