// The matrix products of linear.cu on Hopper.
#include "cuda/kernels/product_warpgroups.h"

namespace unifluid::cuda {
namespace {

struct MatrixRows {
  TensorMap map;
  int32_t count;

  template <class T>
  UNIFLUID_DEVICE void copy(const Shared<bf16>& to, uint32_t index, int row_tile, int step,
                            const Shared<uint64_t>& barriers, uint32_t i) const {
    copy_box(to, index, map, step * kWideDepth, row_tile * T::kRows, barriers, i);
  }
  template <class T>
  UNIFLUID_DEVICE int place(int row_tile, int row) const {
    const int at = row_tile * T::kRows + row;
    return at < count ? at : -1;
  }
};

template <int kRows, int kColumns>
void launch(Queue& queue, const LinearParams& p, bool gated) {
  using T = WideTile<kRows, kColumns>;
  const MatrixRows rows{tensor_map(bf16_matrix(p.x, p.m, p.k, p.x_stride), kRows), p.m};
  if (gated)
    launch_wide<T, true>(queue, rows, blocks_for(p.m, kRows), p);
  else
    launch_wide<T, false>(queue, rows, blocks_for(p.m, kRows), p);
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
