// The matrix products of linear.cu on Hopper.
#include "cuda/kernels/product_warpgroups.h"

namespace unifluid::cuda {
namespace {

struct MatrixRows {
  static constexpr bool kActivation = true, kFloatOut = true;
  static constexpr bool kTurned = false, kTurnedWeights = false, kParts = false;
  static constexpr int kMostWeights = kMostGrouped;
  TensorMap map;
  int32_t count;

  template <class T>
  UNIFLUID_DEVICE int corner(const TilePlace& at) const {
    return at.row * T::kRows;
  }
  template <class T>
  UNIFLUID_DEVICE void copy(const Shared<bf16>& to, uint32_t index, int first_row, int step,
                            const Shared<uint64_t>& barriers, uint32_t i) const {
    copy_box(to, index, map, step * kWideDepth, first_row, barriers, i);
  }
  template <class T>
  UNIFLUID_DEVICE int place(int first_row, int row) const {
    return first_row + row < count ? first_row + row : -1;
  }
};

template <class T, bool kGated>
void launch(Queue& queue, const LinearParams* products, int count) {
  const LinearParams& p = products[0];
  // Zeros between its members, too: a list of launches is known again by its bytes.
  MatrixRows rows{};
  rows.map = tensor_map(bf16_matrix(p.x, p.out.rows, p.k, p.x_stride), T::kRows);
  rows.count = p.out.rows;
  launch_wide<T, kGated>(queue, rows, blocks_for(p.out.rows, T::kRows), products, count);
}

}  // namespace

void multiply_by_warpgroups(Queue& queue, const LinearParams* products, int count, int columns) {
  with_wide_tile<true>(columns,
                       [&](auto tile) { launch<decltype(tile), false>(queue, products, count); });
}

void multiply_gated_by_warpgroups(Queue& queue, const LinearParams& p, int columns) {
  with_wide_tile<true>(columns, [&](auto tile) {
    using T = decltype(tile);
    if constexpr (T::kColumns % 16 == 0) launch<T, true>(queue, &p, 1);
  });
}

}  // namespace unifluid::cuda
