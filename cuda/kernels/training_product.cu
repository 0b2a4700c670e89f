// The products of training on Hopper (product_warpgroups.h): operands lie as they were made, so
// that none has to be transposed, and where an output has few tiles k is taken in parts.
//
// A gradient of weights has few outputs, and a sum over all rows of a step. Its parts' sums go to
// scratch, and a second kernel adds them in order.
#include <limits>

#include "cuda/kernels/product_warpgroups.h"
#include "cuda/kernels/tile_cost.h"
#include "cuda/kernels/training_elements.h"
#include "cuda/kernels/training_product.h"

namespace unifluid::cuda {
namespace {

template <bool kTurnedA, bool kTurnedB>
struct OperandRows {
  static constexpr bool kActivation = false, kFloatOut = true;
  static constexpr bool kTurned = kTurnedA, kTurnedWeights = kTurnedB, kParts = true;
  static constexpr int kMostWeights = 1;
  TensorMap map;
  int32_t count;

  // The outputs of one part lie behind those of the one before.
  struct Corner {
    int row, part_row;
  };
  template <class T>
  UNIFLUID_DEVICE Corner corner(const TilePlace& at) const {
    return {at.row * T::kRows, at.part * count};
  }
  template <class T>
  UNIFLUID_DEVICE void copy(const Shared<bf16>& to, uint32_t index, const Corner& at, int step,
                            const Shared<uint64_t>& barriers, uint32_t i) const {
    if constexpr (kTurnedA)
      copy_panels<T::kRows>(to, index, map, at.row, step, barriers, i);
    else
      copy_box(to, index, map, step * kWideDepth, at.row, barriers, i);
  }
  template <class T>
  UNIFLUID_DEVICE int place(const Corner& at, int row) const {
    return at.row + row < count ? at.part_row + at.row + row : -1;
  }
};

// ---- the sums of parts ----

struct AddParams {
  const float* partial;  // [parts, rows, stride]
  const float* bias;     // or null
  Rows out;
  int64_t stride, part;  // elements from row to row, and from part to part
  int32_t parts;
  ElementGrid fours;  // of columns
  int32_t cols;
  bool accumulate, vectors;
};
__global__ void __launch_bounds__(kElementThreads) add_parts(AddParams p) {
  const ElementPlace at = element_place(p.fours);
  if (!at.inside) return;
  const int64_t column = 4 * at.column;
  const float* from = p.partial + at.row * p.stride + column;
  float total[4] = {};
#pragma unroll 4
  for (int part = 0; part < p.parts; ++part) {
    const float4 v = *reinterpret_cast<const float4*>(from + part * p.part);
    total[0] += v.x;
    total[1] += v.y;
    total[2] += v.z;
    total[3] += v.w;
  }
  float* out = p.out.at(at.row) + column;
  if (p.bias)
    for (int i = 0; i < 4; ++i)
      if (column + i < p.cols) total[i] += p.bias[column + i];
  if (p.vectors && column + 4 <= p.cols) {
    float4* four = reinterpret_cast<float4*>(out);
    const float4 before = p.accumulate ? *four : make_float4(0, 0, 0, 0);
    *four = make_float4(before.x + total[0], before.y + total[1], before.z + total[2],
                        before.w + total[3]);
    return;
  }
  for (int i = 0; i < 4; ++i)
    if (column + i < p.cols) out[i] = (p.accumulate ? out[i] : 0.0f) + total[i];
}

// ---- host ----

// Calls body(tile) for each that these products have: those of convolutions.
template <class Body>
void each_tile(Body body) {
  for (const WarpgroupTile& tile : kWarpgroupTiles)
    if (tile.images) body(tile);
}

int64_t tiles_of(const TrainingProduct& p, const TileCost& tile) {
  return int64_t{blocks_for(p.out.rows, tile.rows)} * blocks_for(p.out.cols, tile.columns);
}

// Clocks that a product takes with its k in parts: by calculation, as tile_cost.h has it.
double clocks(const TrainingProduct& p, const TileCost& tile, const KParts& parts, int processors) {
  // A tile's first copies and its last stores; a launch; what memory takes and gives in a clock.
  constexpr double kTile = 1500, kLaunch = 3000, kMemory = 2000;
  const int64_t tiles = tiles_of(p, tile) * parts.count;
  const double turns = blocks_for(tiles, processors);
  double sum = turns * kTile + parts.k * tile.of(tiles, processors);
  if (parts.count > 1)
    sum +=
        kLaunch + 2.0 * sizeof(float) * parts.count * static_cast<double>(p.out.size()) / kMemory;
  return sum;
}

// The parts of k, from shapes alone: as many processors as an H100 or H200 has, whatever the
// device.
KParts parts_of(const TrainingProduct& p) {
  constexpr int kProcessors = 132, kMost = 64;
  constexpr int64_t kStep = 128, kLeast = 2 * kStep;
  KParts best{1, static_cast<int32_t>(p.k())};
  if (!p.parts) return best;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t count = 1; count <= kMost && (count == 1 || p.k() >= count * kLeast); ++count) {
    const int64_t k = blocks_for(blocks_for(p.k(), count), kStep) * kStep;
    const KParts parts{static_cast<int32_t>(blocks_for(p.k(), k)), static_cast<int32_t>(k)};
    each_tile([&](const TileCost& tile) {
      const double cost = clocks(p, tile, parts, kProcessors);
      if (cost >= least) return;
      least = cost;
      best = parts;
    });
  }
  return best;
}

// Rows of partial sums can be read in fours.
int64_t partial_stride(const TrainingProduct& p) { return (p.out.cols + 3) / 4 * 4; }

// A second kernel also where outputs cannot be written in pairs.
bool in_two(const TrainingProduct& p, const KParts& parts) {
  return parts.count > 1 || !epilogue_of(p.out, {}, p.bias, Activation::none).pairs;
}

Tensor partial_of(const TrainingProduct& p, const KParts& parts, float* data) {
  Tensor t(data, DType::f32, p.out.rows * parts.count, p.out.cols);
  t.stride = partial_stride(p);
  return t;
}

template <class T, bool kTurnedA, bool kTurnedB>
void launch(Queue& queue, const TrainingProduct& p, const Epilogue& out, const KParts& parts) {
  using Operand = OperandRows<kTurnedA, kTurnedB>;
  // Zeros between its members, too: a list of launches is known again by its bytes.
  Operand rows{};
  rows.map = tensor_map(p.a, kTurnedA ? kWideDepth : T::kRows);
  rows.count = static_cast<int32_t>(p.out.rows);
  LinearParams product{};
  product.weights[0] = p.b.data;
  product.weight_strides[0] = p.b.stride;
  product.k = static_cast<int32_t>(p.k());
  product.out = out;
  launch_wide<T, false>(queue, rows, blocks_for(p.out.rows, T::kRows), &product, 1, parts);
}

}  // namespace

size_t partial_sums(const TrainingProduct& p) {
  const KParts parts = parts_of(p);
  return in_two(p, parts) ? static_cast<size_t>(parts.count * p.out.rows * partial_stride(p)) : 0;
}

void multiply(Queue& queue, const TrainingProduct& p, float* partial) {
  const KParts parts = parts_of(p);
  const bool two = in_two(p, parts);
  Epilogue out;
  if (two) {
    // Rows have room for the second of a pair.
    out = epilogue_of(partial_of(p, parts, partial), {}, nullptr, Activation::none);
  } else {
    out = epilogue_of(p.out, p.accumulate ? p.out : Tensor(), p.bias, Activation::none);
  }
  // The tile does not show in the bits.
  double least = std::numeric_limits<double>::infinity();
  int columns = 0;
  each_tile([&](const TileCost& tile) {
    const double cost = clocks(p, tile, parts, queue.limits().processors);
    if (cost >= least) return;
    least = cost;
    columns = tile.columns;
  });
  const auto launch_in = [&](auto tile) {
    using T = decltype(tile);
    if (!p.turned_b)
      launch<T, false, false>(queue, p, out, parts);
    else if (p.turned_a)
      launch<T, true, true>(queue, p, out, parts);
    else
      launch<T, false, true>(queue, p, out, parts);
  };
  if (columns == 256)
    launch_in(WideTile<128, 256>{});
  else if (columns == 128)
    launch_in(WideTile<128, 128>{});
  else
    launch_in(WideTile<64, 64, 2>{});
  if (!two) return;
  AddParams add{};
  add.partial = partial;
  add.bias = p.bias;
  add.out = p.out;
  add.stride = partial_stride(p);
  add.part = p.out.rows * add.stride;
  add.parts = parts.count;
  add.fours = ElementGrid(p.out.rows, add.stride / 4);
  add.cols = static_cast<int32_t>(p.out.cols);
  add.accumulate = p.accumulate;
  add.vectors = reinterpret_cast<uintptr_t>(p.out.data) % 16 == 0 && p.out.stride % 4 == 0;
  launch_elements(queue, add_parts, add.fours, add);
}

}  // namespace unifluid::cuda
