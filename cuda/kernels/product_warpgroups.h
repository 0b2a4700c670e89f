// Matrix products of many rows on Hopper: operands come by bulk copies of whole boxes, for which
// one thread asks for rows and another for weights, and two warpgroups multiply 64 rows each with
// wgmma.
//
// A block computes 128 rows and 256 columns, which is what the accumulators of two warpgroups hold
// and what reads each operand least often for its products: 48 KiB of operands a step of 64 for
// 128 * 256 * 64 multiply-adds. Four steps are in flight. Where that leaves processors idle a tile
// is 128 columns, or 64 rows and columns. With a gate half of the columns are of either weight, so
// that a thread has both factors of an output. Of 65 to 128 rows, what a processor reads in all is
// what a product waits for: matrices have tiles of 144 and 40 columns too, for which Gemma-2-2B's
// widths are one turn of nearly all of an H200's processors.
//
// Blocks stay for many tiles: copies for the next one begin while the last is being written. Eight
// tiles of rows take turns before the next column, for the second-level cache.
//
// A launch can take several products of the same rows, whose columns follow one another.
//
// What a row is, `Rows` knows: of a matrix (linear_warpgroup.cu, training_product.cu) or the window
// of a pixel (convolution_warpgroup.cu). It has
//   kActivation, kFloatOut: whether there can be an activation, and outputs in float32
//   kMostWeights: of products in a launch, of one with a gate two
//   kTurned, kTurnedWeights: whether operands lie with k across their rows: they come as panels of
//     64 columns, each of 64 elements of k
//   kParts: whether k may be taken in parts, each a tile of its own
//   corner<T>(place): where a tile of rows begins
//   copy<T>(to, index, corner, step, barriers, i): starts the copy of the box of a tile's rows and
//     of 64 elements of k, as copy_box does
//   place<T>(corner, row): the row of the output, or -1 where there is none
#pragma once

#include <algorithm>

#include "cuda/device/dependence.h"
#include "cuda/device/mbarrier.h"
#include "cuda/device/warp.h"
#include "cuda/device/wgmma.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/linear.h"

namespace unifluid::cuda {

inline constexpr int kWideDepth = kBoxColumns;
static_assert(kWideDepth == kPanelColumns);
// Elements of a panel of an operand that lies transposed.
inline constexpr uint32_t kPanel = kWideDepth * kPanelColumns;

// As many stages as come to 192 KiB. A step of a small tile is two boxes of k, as its products are
// over before all is said that has to be said for a step.
template <int kRows_, int kColumns_, int kBoxes_ = 1>
struct WideTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kBoxes = kBoxes_;
  static constexpr int kDepth = kBoxes * kWideDepth;
  static constexpr int kMultipliers = kRows / 64;  // warpgroups
  static constexpr int kThreads = (1 + kMultipliers) * kWarpgroup;
  static constexpr uint32_t kStages = 192 * 8 / (kRows + kColumns) / kBoxes;
  static constexpr uint32_t kBoxX = kRows * kWideDepth, kBoxW = kColumns * kWideDepth;
  static constexpr uint32_t kTileX = kBoxes * kBoxX, kTileW = kBoxes * kBoxW;

  static size_t shared_bytes() {
    return SharedBytes{}
        .template take<bf16>(kStages * kTileX)
        .template take<bf16>(kStages * kTileW)
        .template take<uint64_t>(2 * kStages)
        .used;
  }
};

inline Tensor bf16_matrix(const void* data, int64_t rows, int64_t cols, int64_t stride) {
  Tensor t(const_cast<void*>(data), DType::bf16, rows, cols);
  t.stride = stride;
  return t;
}

// One product's outputs.
struct WideOutput {
  Epilogue out;
  int32_t column_tiles;
  bool whole;  // rows can be written by 16 bytes
};

// Products: their rows, boxes of a tile's columns of the weights, and what becomes of each.
template <class Rows>
struct WideProduct {
  Rows rows;
  TensorMap weights[Rows::kMostWeights];  // of each product; with a gate the two of one
  WideOutput outputs[Rows::kMostWeights];
  int32_t k, row_tiles, column_tiles;  // of all products together
  int32_t parts, part_k;               // of k, where it may be taken in parts
};

struct TilePlace {
  int product, row, column, part;
};
template <class Rows>
UNIFLUID_DEVICE TilePlace tile_place(const WideProduct<Rows>& work, int tile) {
  constexpr int kRowGroup = 8;
  int part = 0;
  if constexpr (Rows::kParts) {
    const int all = work.row_tiles * work.column_tiles;
    part = tile / all;
    tile %= all;
  }
  const int each = kRowGroup * work.column_tiles;
  const int first = tile / each * kRowGroup, within = tile % each;
  const int rows = min(kRowGroup, work.row_tiles - first);
  TilePlace place{0, first + within % rows, within / rows, part};
  if constexpr (Rows::kMostWeights > 1)
    for (; place.column >= work.outputs[place.product].column_tiles; ++place.product)
      place.column -= work.outputs[place.product].column_tiles;
  return place;
}

// The steps of a tile: boxes of k from `first` on.
struct TileSteps {
  int first, count;
};
template <class T, class Rows>
UNIFLUID_DEVICE TileSteps tile_steps(const WideProduct<Rows>& work, const TilePlace& at) {
  int first = 0, k = work.k;
  if constexpr (Rows::kParts) {
    first = at.part * work.part_k;
    k = min(k - first, work.part_k);
  }
  return {first / kWideDepth, (k + T::kDepth - 1) / T::kDepth};
}

#ifdef UNIFLUID_WARPGROUPS

// Starts the copy of 64 elements of k of kColumns columns of an operand that lies transposed.
template <int kColumns>
UNIFLUID_DEVICE void copy_panels(const Shared<bf16>& to, uint32_t index, const TensorMap& map,
                                 int first_column, int step, const Shared<uint64_t>& barriers,
                                 uint32_t i) {
#pragma unroll
  for (uint32_t panel = 0; panel < kColumns / kPanelColumns; ++panel)
    copy_box(to, index + panel * kPanel, map,
             first_column + static_cast<int>(panel * kPanelColumns), step * kWideDepth, barriers,
             i);
}

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

// Writes what a thread has of a row of float32, `half` of each piece, where there is such a `row`.
// `whole`: of a tile that is inside, and rows that can be written by 16 bytes.
template <int kPieces>
UNIFLUID_DEVICE void store_floats(const Epilogue& e, bool whole, FragmentC* sums, int half, int row,
                                  int first_column) {
  const int lane = lane_index() % 4, column = first_column + 2 * lane;
  // Before anything is written: the compiler cannot know that it is not what is read next.
  if (e.residual && row >= 0) {
    const float* from = static_cast<const float*>(e.residual) + row * e.residual_stride + column;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      if (column + 8 * j >= e.columns) break;
      const float2 pair = *reinterpret_cast<const float2*>(from + 8 * j);
      sums[j].x[2 * half] += pair.x;
      sums[j].x[2 * half + 1] += pair.y;
    }
  }
  float* to = static_cast<float*>(e.out) + row * e.out_stride + column;
  if (whole && kPieces % 2 == 0) {
    const bool odd = lane & 1;
#pragma unroll
    for (int j = 0; j + 1 < kPieces; j += 2) {
      // Even lanes get four neighbours of a piece, odd ones of the next.
      const float* first = sums[j].x + 2 * half;
      const float* second = sums[j + 1].x + 2 * half;
      const float a = __shfl_xor_sync(kAllLanes, odd ? first[0] : second[0], 1);
      const float b = __shfl_xor_sync(kAllLanes, odd ? first[1] : second[1], 1);
      if (row >= 0)
        *reinterpret_cast<float4*>(to + 8 * j + (odd ? 6 : 0)) =
            odd ? make_float4(a, b, second[0], second[1]) : make_float4(first[0], first[1], a, b);
    }
  } else if (row >= 0) {
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      if (column + 8 * j >= e.columns) break;
      *reinterpret_cast<float2*>(to + 8 * j) =
          make_float2(sums[j].x[2 * half], sums[j].x[2 * half + 1]);
    }
  }
}

// Writes the sums of this thread's 64 rows, which begin at `first_row` of a tile.
template <class T, bool kGated, class Rows, class Corner, int kPieces>
UNIFLUID_DEVICE void store_tile(const Rows& rows, const WideOutput& output,
                                FragmentC (&sums)[kPieces], const Corner& corner, int first_row,
                                int first_column) {
  constexpr int kOutPieces = kGated ? kPieces / 2 : kPieces;
  using Kind = EpilogueKind<kGated, Rows::kActivation, Rows::kFloatOut, false>;
  const Epilogue& e = output.out;
  const int lane = lane_index(), pair = lane % 4 * 2;
  finish_all<Kind, kOutPieces>(e, first_column + pair, sums, sums + kPieces - kOutPieces);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = rows.template place<T>(corner, first_row + lane / 4 + 8 * half);
    if (Rows::kFloatOut && e.float_out) {
      // With an activation registers do not suffice for whole ones.
      const bool whole = !Rows::kActivation && output.whole;
      store_floats<kOutPieces>(e, whole && first_column + 8 * kOutPieces <= e.columns, sums, half,
                               row, first_column);
      continue;
    }
    // Pieces of which lanes exchange four and write 16 bytes each. The same for the whole warp.
    const auto whole = [&](int j) {
      return output.whole && j / 4 * 4 + 4 <= kOutPieces &&
             first_column + 8 * (j / 4 * 4) + 32 <= e.columns;
    };
    // Their residuals are read before anything is written: the compiler cannot know that it is not
    // what is read next.
    if (output.whole && e.residual && row >= 0) {
      const bf16* from =
          static_cast<const bf16*>(e.residual) + row * e.residual_stride + first_column + pair;
      uint32_t residual[kOutPieces];
#pragma unroll
      for (int j = 0; j < kOutPieces; ++j)
        if (whole(j)) residual[j] = *reinterpret_cast<const uint32_t*>(from + 8 * j);
#pragma unroll
      for (int j = 0; j < kOutPieces; ++j)
        if (whole(j)) add_pair(residual[j], sums[j].x[2 * half], sums[j].x[2 * half + 1]);
    }
#pragma unroll
    for (int j = 0; j < kOutPieces; j += 4) {
      const int column = first_column + 8 * j;
      if (j + 4 <= kOutPieces && whole(j)) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          words[i] = pack_bf16(sums[j + i].x[2 * half], sums[j + i].x[2 * half + 1]);
        exchange_pieces(words);
        if (row >= 0)
          *reinterpret_cast<uint4*>(static_cast<bf16*>(e.out) + row * e.out_stride + column +
                                    lane % 4 * 8) =
              make_uint4(words[0], words[1], words[2], words[3]);
      } else if (row >= 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (j + i < kOutPieces)
            store_outputs<Kind>(e, row, column + 8 * i + pair, sums[j + i].x[2 * half],
                                sums[j + i].x[2 * half + 1]);
      }
    }
  }
}

#endif

template <class T, bool kGated, class Rows>
__global__ void __launch_bounds__(T::kThreads, 1)
    product_warpgroups(const __grid_constant__ WideProduct<Rows> work) {
#ifdef UNIFLUID_WARPGROUPS
  constexpr int kOutColumns = kGated ? T::kColumns / 2 : T::kColumns;
  // Two warpgroups of multipliers beside that of copies: an even share of registers is too few.
  constexpr bool kManyRegisters = T::kMultipliers > 1;
  let_dependents_start();
  SharedArena arena;
  const auto x_tiles = arena.take<bf16>(T::kStages * T::kTileX);
  const auto w_tiles = arena.take<bf16>(T::kStages * T::kTileW);
  const auto barriers = arena.take<uint64_t>(2 * T::kStages);
  const auto full = barriers.part(0, T::kStages);
  const auto free = barriers.part(T::kStages, T::kStages);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0)
    for (uint32_t i = 0; i < T::kStages; ++i) {
      mbarrier_init(full, i, 2);
      mbarrier_init(free, i, T::kMultipliers * kWarpgroup / kWarp);
    }
  __syncthreads();

  const int tiles = work.row_tiles * work.column_tiles * (Rows::kParts ? work.parts : 1);
  RingPlace<T::kStages> place;
  if (thread < kWarpgroup) {
    if constexpr (kManyRegisters) give_registers<40>();
    const auto each_step = [&](uint32_t bytes, auto copy) {
      for (int tile = static_cast<int>(blockIdx.x); tile < tiles;
           tile += static_cast<int>(gridDim.x)) {
        const TilePlace at = tile_place(work, tile);
        const TileSteps steps = tile_steps<T>(work, at);
        for (int step = 0; step < steps.count; ++step, place.advance()) {
          mbarrier_wait(free, place.slot, place.parity ^ 1);
          mbarrier_arrive_expecting(full, place.slot, bytes);
          // Behind k a box is zeros.
          for (uint32_t box = 0; box < T::kBoxes; ++box)
            copy(at, steps.first + step * T::kBoxes + static_cast<int>(box), box);
        }
      }
    };
    // Weights are on their way before the inputs are there (cuda/device/dependence.h).
    if (thread == kWarp)
      each_step(T::kTileW * sizeof(bf16), [&](const TilePlace& at, int step, uint32_t box) {
        for (uint32_t w = 0; w < (kGated ? 2 : 1); ++w) {
          const uint32_t to = place.slot * T::kTileW + box * T::kBoxW + w * (T::kBoxW / 2);
          const TensorMap& map = work.weights[static_cast<uint32_t>(at.product) + w];
          const int first = at.column * kOutColumns;
          if constexpr (Rows::kTurnedWeights)
            copy_panels<kOutColumns>(w_tiles, to, map, first, step, full, place.slot);
          else
            copy_box(w_tiles, to, map, step * kWideDepth, first, full, place.slot);
        }
      });
    wait_for_inputs();
    if (thread == 0)
      each_step(T::kTileX * sizeof(bf16), [&](const TilePlace& at, int step, uint32_t box) {
        work.rows.template copy<T>(x_tiles, place.slot * T::kTileX + box * T::kBoxX,
                                   work.rows.template corner<T>(at), step, full, place.slot);
      });
    return;
  }

  wait_for_inputs();
  if constexpr (kManyRegisters) take_registers<232>();
  const int warpgroup = thread / kWarpgroup - 1;
  const auto release = [&](uint32_t slot) {
    if (lane_index() == 0) mbarrier_arrive(free, slot);
  };
  const auto first_of = [](bool transposed, const Shared<bf16>& tiles, uint32_t index) {
    return transposed ? descriptor::of_columns(tiles, index, kPanel)
                      : descriptor::of_rows(tiles, index);
  };
  // 64 rows of a box, or a panel: so many elements either way.
  const uint64_t first_x =
      first_of(Rows::kTurned, x_tiles, static_cast<uint32_t>(warpgroup) * kPanel);
  const uint64_t first_w = first_of(Rows::kTurnedWeights, w_tiles, 0);
  // From one element of k to the next.
  constexpr uint32_t kNextX = Rows::kTurned ? kPanelColumns : 1;
  constexpr uint32_t kNextW = Rows::kTurnedWeights ? kPanelColumns : 1;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const TilePlace at = tile_place(work, tile);
    const int steps = tile_steps<T>(work, at).count;
    FragmentC sums[T::kColumns / 8] = {};
    uint32_t last = 0;
    for (int step = 0; step < steps; ++step, place.advance()) {
      mbarrier_wait(full, place.slot, place.parity);
      keep_in_place(sums);
      warpgroup_fence();
      const uint64_t x = descriptor::further(first_x, place.slot * T::kTileX);
      const uint64_t w = descriptor::further(first_w, place.slot * T::kTileW);
#pragma unroll
      for (uint32_t box = 0; box < T::kBoxes; ++box)
#pragma unroll
        for (uint32_t k = 0; k < kWideDepth; k += 16)
          warpgroup_mma<Rows::kTurned, Rows::kTurnedWeights>(
              sums, descriptor::further(x, box * T::kBoxX + k * kNextX),
              descriptor::further(w, box * T::kBoxW + k * kNextW));
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
    store_tile<T, kGated>(work.rows, work.outputs[at.product], sums,
                          work.rows.template corner<T>(at), warpgroup * 64 + warp_index() % 4 * 16,
                          at.column * kOutColumns);
  }
#endif
}

// ---- host ----

// Calls body(T{}) with the tile of kWarpgroupTiles that has so many columns; one of matrices only,
// where kOfMatrix.
template <bool kOfMatrix, class Body>
void with_wide_tile(int columns, Body body) {
  if (columns == 256) return body(WideTile<128, 256>{});
  if (columns == 128) return body(WideTile<128, 128>{});
  if constexpr (kOfMatrix) {
    if (columns == 144) return body(WideTile<128, 144>{});
    if (columns == 40) return body(WideTile<64, 40, 2>{});
  }
  body(WideTile < 64, 64, kOfMatrix ? 2 : 1 > {});
}

// Whether rows of the output can be written by 16 bytes, and those of a residual in float32 read
// so.
inline bool in_vectors(const Epilogue& e) {
  const auto fits = [&](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % (e.float_out ? 4 : 8) == 0;
  };
  return fits(e.out, e.out_stride) &&
         (!e.float_out || !e.residual || fits(e.residual, e.residual_stride));
}

// Parts of k: so many of `k` elements each, a multiple of what a step takes; the last may be less.
struct KParts {
  int32_t count = 1, k = 0;
};

// `row_tiles` tiles of rows by all columns of `count` products, whose weights and outputs are those
// of `products`; with a gate, of one.
template <class T, bool kGated, class Rows>
void launch_wide(Queue& queue, const Rows& rows, int64_t row_tiles, const LinearParams* products,
                 int count, KParts parts = {}) {
  constexpr int kOutColumns = kGated ? T::kColumns / 2 : T::kColumns;
  const auto map = [](const LinearParams& p, int w) {
    if constexpr (Rows::kTurnedWeights)
      return tensor_map(bf16_matrix(p.weights[w], p.k, p.out.columns, p.weight_strides[w]),
                        kWideDepth);
    return tensor_map(bf16_matrix(p.weights[w], p.out.columns, p.k, p.weight_strides[w]),
                      kOutColumns);
  };
  WideProduct<Rows> work{};
  work.rows = rows;
  work.k = products[0].k;
  work.row_tiles = static_cast<int32_t>(row_tiles);
  work.parts = parts.count;
  work.part_k = parts.k;
  for (int i = 0; i < count; ++i) {
    const LinearParams& p = products[i];
    WideOutput& output = work.outputs[i];
    work.weights[i] = map(p, 0);
    output.out = p.out;
    output.column_tiles = static_cast<int32_t>(blocks_for(p.out.columns, kOutColumns));
    output.whole = in_vectors(p.out);
    work.column_tiles += output.column_tiles;
  }
  if constexpr (kGated) work.weights[1] = map(products[0], 1);
  const int tiles = work.row_tiles * work.column_tiles * parts.count;
  const dim3 grid(static_cast<unsigned>(std::min(tiles, queue.limits().processors)));
  const dim3 block(T::kThreads);
  // Weights that a launch before this one writes cannot be on their way before its end.
  if constexpr (Rows::kParts)
    queue.launch(product_warpgroups<T, kGated, Rows>, grid, block, T::shared_bytes(), work);
  else
    queue.launch_dependent(product_warpgroups<T, kGated, Rows>, grid, block, T::shared_bytes(),
                           work);
}

}  // namespace unifluid::cuda
