// linear and gated_linear: matrix products with bias, activation, gate and residual fused.
//
// One kernel a type, its tile a template parameter. Whatever the tile, an output is one float32
// accumulator over k in ascending order (bf16: mma.m16n8k16 steps of 16; f32: fused
// multiply-adds), so that the tile chosen for the number of rows does not show in the bits.
//
// bf16 (cuda/kernels/tile.h): tiles of x and of the weights come to shared memory by cp.async,
// several stages ahead. With few rows the product is a stream of weights (cuda/kernels/stream.h):
// narrow tiles make enough blocks, deep stages keep enough bytes in flight. A single accumulator
// also means no split of k, so that columns must be spread evenly: a stream ends with its busiest
// processor. On Hopper products of more rows go to linear_warpgroup.cu.
//
// A step of decoding is a chain of such products with little between them. Launches may overlap
// (cuda/device/dependence.h), so that memory is not idle while that little is computed.
#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/kernels/linear.h"
#include "cuda/kernels/stream.h"
#include "cuda/kernels/tile.h"
#include "cuda/kernels/tile_cost.h"

namespace unifluid::cuda {
namespace {

// ---- bfloat16 ----

template <class T, bool kAligned>
constexpr int kBlockThreads = kStreams<T> && kAligned ? kStreamThreads<T> : T::kThreads;

// The outputs of one block.
template <class T, bool kGated, bool kAligned>
UNIFLUID_DEVICE void multiply_tile(const LinearParams& p, int first_row, int first_column) {
  constexpr int kMatrices = kGated ? 2 : 1;
  using Kind = EpilogueKind<kGated, true, true, true>;
  const int steps = (p.k + T::kDepth - 1) / T::kDepth;
  if (!kStreams<T> || !is_deep<T>(steps)) let_dependents_start();
  SharedArena arena;
  const auto x_tiles = arena.take<bf16>(T::kStages * T::kTileX);
  const auto w_tiles = arena.take<bf16>(T::kStages * kMatrices * T::kTileW);

  using Weights = TileRows<T, T::kColumns, kAligned>;
  const auto weights_of = [&](int w) {
    return Weights(p.weights[w], p.weight_strides[w], first_column, p.out.columns, p.k);
  };
  TileRows<T, T::kRows, kAligned> rows(p.x, p.x_stride, first_row, p.out.rows, p.k);
  Weights weights[2] = {weights_of(0), weights_of(kMatrices - 1)};
  FragmentC sums[kMatrices][T::kPiecesM][T::kPiecesN] = {};
  if constexpr (kStreams<T> && kAligned) {
    stream_product<T, kMatrices>(steps, rows, weights, x_tiles, w_tiles, sums);
    if (threadIdx.x >= T::kThreads) return;
  } else {
    each_stage<T>(
        steps, [&](int step, uint32_t slot) { rows.load(x_tiles, slot * T::kTileX, step); },
        [&](int step, uint32_t slot) {
#pragma unroll
          for (uint32_t w = 0; w < kMatrices; ++w)
            weights[w].load(w_tiles, (slot * kMatrices + w) * T::kTileW, step);
        },
        [&](uint32_t slot) {
          multiply_stage<T, kMatrices>(sums, x_tiles, slot * T::kTileX, w_tiles,
                                       slot * kMatrices * T::kTileW);
        });
  }

#pragma unroll
  for (int i = 0; i < T::kPiecesM; ++i)
#pragma unroll
    for (int j = 0; j < T::kPiecesN; ++j) {
      FragmentC& piece = sums[0][i][j];
      const int column = first_column + T::column_of(j, 0);
      finish<Kind>(p.out, column, piece, sums[kMatrices - 1][i][j]);
#pragma unroll
      for (int e = 0; e < 4; e += 2)
        store_outputs<Kind>(p.out, first_row + T::row_of(i, e), column, piece.x[e], piece.x[e + 1]);
    }
}

template <class T, bool kGated, bool kAligned>
__global__ void __launch_bounds__(kBlockThreads<T, kAligned>) product_bf16(LinearParams p) {
  multiply_tile<T, kGated, kAligned>(p, static_cast<int>(blockIdx.x) * T::kRows,
                                     static_cast<int>(blockIdx.y) * T::kColumns);
}

// Several products of few rows, such as the projections of attention: alone each is over before
// enough of its weights are on their way. Blocks take the products' columns one after another.
struct ProductGroup {
  LinearParams products[kMostGrouped];
  int32_t column_tiles[kMostGrouped];
};
template <class T>
__global__ void __launch_bounds__(kBlockThreads<T, true>)
    products_bf16(const __grid_constant__ ProductGroup group) {
  int product = 0, tile = static_cast<int>(blockIdx.y);
  for (; tile >= group.column_tiles[product]; ++product) tile -= group.column_tiles[product];
  multiply_tile<T, false, true>(group.products[product], static_cast<int>(blockIdx.x) * T::kRows,
                                tile * T::kColumns);
}

// Few rows, few columns: 8 columns a warp, 128 deep. All blocks together must keep in flight what
// an H200's memory brings in its latency, by calculation 4 MB: 10 stages ahead are 40 KiB of
// weights for each. Two blocks share a processor; on smaller devices it has one.
using StreamNarrow = Tile<16, 16, 128, 1, 2, 10>;
// Where that leaves less to the busiest processor: Gemma-2-2B's width is 144 of those tiles, two of
// them on 12 of an H200's 132 processors, and 96 of these, one each.
using StreamNarrow24 = Tile<16, 24, 128, 1, 3, 9>;
// Few rows, many columns (GeGLU, vocabulary): fewer, larger blocks read x less often.
using StreamWide = Tile<16, 64, 64, 1, 4, 6>;
// Of gates: the same bytes in flight for two matrices, as all must fit into 99 KiB of shared
// memory.
using StreamNarrowGated = Tile<16, 16, 128, 1, 2, 6>;
// Three of these share an H200's processor, and not four: Gemma-2-2B's 9216 columns are 384 blocks,
// 2.9 for each. With 32 columns it had two or three.
using StreamWideGated = Tile<16, 24, 64, 1, 3, 7>;
// Up to 64 rows: each weight that has come serves 64 rows.
using Stream64 = Tile<64, 32, 64, 2, 2, 4>;
// The largest square that leaves two blocks to a processor with 64 accumulators a thread.
using Square = Tile<128, 128, 32, 2, 4, 4>;
// With a gate there are two weight tiles and twice the accumulators.
using SquareGated = Tile<128, 64, 32, 2, 4, 4>;

constexpr int32_t kWideColumns = 8192;
// Rows up to which products are streams of weights.
constexpr int32_t kStreamedRows = 64;

template <class T, bool kGated, bool kAligned>
void launch_product(Queue& queue, const LinearParams& p) {
  queue.launch_dependent(
      product_bf16<T, kGated, kAligned>,
      dim3(blocks_for(p.out.rows, T::kRows), blocks_for(p.out.columns, T::kColumns)),
      dim3(kBlockThreads<T, kAligned>), T::shared_bytes(kGated ? 2 : 1), p);
}

// The rest is chosen by what tiles cost: of warpgroups, if `columns`, or of those above.
struct Choice {
  double cost;
  int columns = 0;
  bool streams = false;
};

double cost_of(const Queue& queue, const TileCost& tile, const LinearParams* products, int count,
               int matrices) {
  int64_t columns = 0;
  for (int i = 0; i < count; ++i)
    columns += blocks_for(int64_t{products[i].out.columns} * matrices, tile.columns);
  return tile.of(blocks_for(products[0].out.rows, tile.rows) * columns, queue.limits().processors);
}

// Leaves `best` where nothing costs less.
void choose_warpgroups(const Queue& queue, const LinearParams* products, int count, int matrices,
                       Choice& best) {
  for (const WarpgroupTile& tile : kWarpgroupTiles) {
    if (matrices > 1 && !tile.gated) continue;
    const double cost = cost_of(queue, tile, products, count, matrices);
    if (cost < best.cost) best = {cost, tile.columns};
  }
}

// By warpgroups where `suits`.
Choice choose(const Queue& queue, const LinearParams& p, int matrices, bool suits) {
  constexpr double kWarpProducts = 600;
  const double streams = cost_of(queue, {64, 32 * matrices, kWarpProducts * 0.75}, &p, 1, matrices);
  const double squares = cost_of(queue, {128, 128, kWarpProducts}, &p, 1, matrices);
  Choice best{std::min(streams, squares), 0, streams < squares};
  if (suits) choose_warpgroups(queue, &p, 1, matrices, best);
  return best;
}

// Columns of the busiest processor where all blocks run at once.
template <class T>
unsigned busiest(const Queue& queue, const LinearParams& p) {
  return T::kColumns *
         blocks_for(blocks_for(p.out.columns, T::kColumns), queue.limits().processors);
}

template <bool kGated, bool kAligned>
void product(Queue& queue, const LinearParams& p, bf16) {
  if (p.out.rows <= 16) {
    if (p.out.columns >= kWideColumns)
      launch_product<std::conditional_t<kGated, StreamWideGated, StreamWide>, kGated, kAligned>(
          queue, p);
    else if constexpr (kGated)
      launch_product<StreamNarrowGated, kGated, kAligned>(queue, p);
    else if (kAligned && busiest<StreamNarrow24>(queue, p) < busiest<StreamNarrow>(queue, p))
      launch_product<StreamNarrow24, kGated, true>(queue, p);
    else
      launch_product<StreamNarrow, kGated, kAligned>(queue, p);
    return;
  }
  if (p.out.rows <= kStreamedRows) return launch_product<Stream64, kGated, kAligned>(queue, p);

  // There are no maps of nothing.
  const bool suits = kAligned && p.k > 0 && p.out.pairs && queue.limits().warpgroups;
  const Choice best = choose(queue, p, kGated ? 2 : 1, suits);
  if (best.columns && kGated) return multiply_gated_by_warpgroups(queue, p, best.columns);
  if (best.columns) return multiply_by_warpgroups(queue, &p, 1, best.columns);
  if (best.streams)
    launch_product<Stream64, kGated, kAligned>(queue, p);
  else
    launch_product<std::conditional_t<kGated, SquareGated, Square>, kGated, kAligned>(queue, p);
}

template <class T>
void launch_group(Queue& queue, const LinearParams* products, int count) {
  ProductGroup group{};
  unsigned tiles = 0;
  for (int i = 0; i < count; ++i) {
    group.products[i] = products[i];
    group.column_tiles[i] = static_cast<int32_t>(blocks_for(products[i].out.columns, T::kColumns));
    tiles += blocks_for(products[i].out.columns, T::kColumns);
  }
  queue.launch_dependent(products_bf16<T>, dim3(blocks_for(products[0].out.rows, T::kRows), tiles),
                         dim3(kBlockThreads<T, true>), T::shared_bytes(1), group);
}

// Of more rows than are streamed: alone their tiles leave many processors idle.
bool launch_group_by_warpgroups(Queue& queue, const LinearParams* products, int count) {
  if (!queue.limits().warpgroups) return false;
  double alone = 0;
  for (int i = 0; i < count; ++i) {
    const LinearParams& p = products[i];
    if (!p.out.pairs || p.x != products[0].x || p.x_stride != products[0].x_stride ||
        p.k != products[0].k || p.out.columns == 0)
      return false;
    alone += choose(queue, p, 1, true).cost;
  }
  Choice best{alone};
  choose_warpgroups(queue, products, count, 1, best);
  if (best.columns) multiply_by_warpgroups(queue, products, count, best.columns);
  return best.columns != 0;
}

// Products of bf16 that one launch can take.
bool can_be_grouped(const GroupedLinearArgs& args) {
  if (args.count < 2 || args.count > kMostGrouped) return false;
  int64_t columns = 0;
  for (int64_t i = 0; i < args.count; ++i) {
    const LinearArgs& product = args.products[i];
    if (product.x.type != DType::bf16 || !aligned16(product.x) || !aligned16(product.weight) ||
        product.x.rows != args.products[0].x.rows)
      return false;
    columns += product.weight.rows;
  }
  return args.products[0].x.rows > 0 && columns > 0;
}

// ---- float32 ----

// 16 x 16 threads, each with kThreadRows x 4 outputs; 16 deep.
constexpr int kSide = 16, kThreadColumns = 4, kFloatDepth = 16;
constexpr int kFloatColumns = kSide * kThreadColumns;

template <int kThreadRows, bool kGated>
__global__ void __launch_bounds__(kSide* kSide) product_f32(LinearParams p) {
  constexpr int kMatrices = kGated ? 2 : 1;
  constexpr int kRows = kSide * kThreadRows;
  using Kind = EpilogueKind<kGated, true, true, true>;
  SharedArena arena;
  // k-major, one element longer than the tile, so that neither side of the exchange conflicts
  const auto x_tile = arena.take<float>(kFloatDepth * (kRows + 1));
  const auto w_tile = arena.take<float>(kMatrices * kFloatDepth * (kFloatColumns + 1));
  const int first_row = static_cast<int>(blockIdx.x) * kRows;
  const int first_column = static_cast<int>(blockIdx.y) * kFloatColumns;
  const int thread = static_cast<int>(threadIdx.x), ty = thread / kSide, tx = thread % kSide;
  const float* x = static_cast<const float*>(p.x);

  float sums[kMatrices][kThreadRows][kThreadColumns] = {};
  for (int first = 0; first < p.k; first += kFloatDepth) {
    for (int i = thread; i < kRows * kFloatDepth; i += kSide * kSide) {
      const int row = i / kFloatDepth, k = i % kFloatDepth;
      const bool inside = first_row + row < p.out.rows && first + k < p.k;
      x_tile.store(static_cast<uint32_t>(k * (kRows + 1) + row),
                   inside ? x[(first_row + row) * p.x_stride + first + k] : 0.0f);
    }
    for (int w = 0; w < kMatrices; ++w) {
      const float* weight = static_cast<const float*>(p.weights[w]);
      for (int i = thread; i < kFloatColumns * kFloatDepth; i += kSide * kSide) {
        const int column = i / kFloatDepth, k = i % kFloatDepth;
        const bool inside = first_column + column < p.out.columns && first + k < p.k;
        w_tile.store(
            static_cast<uint32_t>((w * kFloatDepth + k) * (kFloatColumns + 1) + column),
            inside ? weight[(first_column + column) * p.weight_strides[w] + first + k] : 0.0f);
      }
    }
    __syncthreads();
    const int depth = p.k - first < kFloatDepth ? p.k - first : kFloatDepth;
    for (int k = 0; k < depth; ++k) {
      float a[kThreadRows];
      for (int i = 0; i < kThreadRows; ++i)
        a[i] = x_tile.load(static_cast<uint32_t>(k * (kRows + 1) + ty + kSide * i));
      for (int w = 0; w < kMatrices; ++w)
        for (int j = 0; j < kThreadColumns; ++j) {
          const float b = w_tile.load(
              static_cast<uint32_t>((w * kFloatDepth + k) * (kFloatColumns + 1) + tx + kSide * j));
          for (int i = 0; i < kThreadRows; ++i) sums[w][i][j] = fmaf(a[i], b, sums[w][i][j]);
        }
    }
    __syncthreads();
  }
  for (int i = 0; i < kThreadRows; ++i)
    for (int j = 0; j < kThreadColumns; ++j) {
      const int column = first_column + tx + kSide * j;
      if (column >= p.out.columns) continue;
      const float v = finished<Kind>(p.out, column, sums[0][i][j], sums[kMatrices - 1][i][j]);
      store_output<float>(p.out, first_row + ty + kSide * i, column, v);
    }
}

template <int kThreadRows, bool kGated>
void launch_f32(Queue& queue, const LinearParams& p) {
  constexpr int kRows = kSide * kThreadRows;
  const size_t shared =
      SharedBytes{}
          .template take<float>(kFloatDepth * (kRows + 1))
          .template take<float>((kGated ? 2 : 1) * kFloatDepth * (kFloatColumns + 1))
          .used;
  queue.launch(product_f32<kThreadRows, kGated>,
               dim3(blocks_for(p.out.rows, kRows), blocks_for(p.out.columns, kFloatColumns)),
               dim3(kSide * kSide), shared, p);
}

template <bool kGated, bool kAligned>
void product(Queue& queue, const LinearParams& p, float) {
  if (p.out.rows > 16)
    launch_f32<4, kGated>(queue, p);
  else
    launch_f32<1, kGated>(queue, p);
}

template <bool kGated>
void product(Queue& queue, const LinearParams& p, DType type, bool aligned) {
  if (p.out.rows == 0 || p.out.columns == 0) return;
  with_type(type, [&](auto t) {
    if (aligned)
      product<kGated, true>(queue, p, t);
    else
      product<kGated, false>(queue, p, t);
  });
}

}  // namespace

LinearParams params_of(const LinearArgs& args) {
  LinearParams p{};
  p.x = args.x.data;
  p.weights[0] = args.weight.data;
  p.x_stride = args.x.stride;
  p.weight_strides[0] = args.weight.stride;
  p.k = static_cast<int32_t>(args.x.cols);
  p.out = epilogue_of(args.out, args.residual, args.bias, args.activation);
  return p;
}

LinearParams params_of(const GatedLinearArgs& args) {
  LinearParams p{};
  p.x = args.x.data;
  p.weights[0] = args.gate.data;
  p.weights[1] = args.up.data;
  p.x_stride = args.x.stride;
  p.weight_strides[0] = args.gate.stride;
  p.weight_strides[1] = args.up.stride;
  p.k = static_cast<int32_t>(args.x.cols);
  p.out = epilogue_of(args.out, {}, nullptr, args.activation);
  return p;
}

void linear(Queue& queue, const LinearArgs& args) {
  product<false>(queue, params_of(args), args.x.type, aligned16(args.x) && aligned16(args.weight));
}

void grouped_linear(Queue& queue, const GroupedLinearArgs& args) {
  bool launched = false;
  if (can_be_grouped(args)) {
    const int count = static_cast<int>(args.count);
    LinearParams products[kMostGrouped] = {};
    for (int i = 0; i < count; ++i) products[i] = params_of(args.products[i]);
    const int32_t rows = products[0].out.rows;
    launched = true;
    if (rows <= StreamNarrow::kRows)
      launch_group<StreamNarrow>(queue, products, count);
    else if (rows <= kStreamedRows)
      launch_group<Stream64>(queue, products, count);
    else
      launched = launch_group_by_warpgroups(queue, products, count);
  }
  if (launched) return;
  for (int64_t i = 0; i < args.count; ++i) linear(queue, args.products[i]);
}

void gated_linear(Queue& queue, const GatedLinearArgs& args) {
  product<true>(queue, params_of(args), args.x.type,
                aligned16(args.x) && aligned16(args.gate) && aligned16(args.up));
}

}  // namespace unifluid::cuda
