// The convolutions of convolution.cu on Hopper, where windows move by one pixel and channels come
// in whole boxes: the pixels of a tile are 8 lines of the image, so that one tap of all their
// windows is a box of it, with zeros outside.
//
// Of an enlarged image pixels of one parity make a tile: their taps lie side by side in the image
// that is there.
#include <limits>

#include "cuda/kernels/convolution.h"
#include "cuda/kernels/product_warpgroups.h"
#include "cuda/kernels/tile_cost.h"

namespace unifluid::cuda {
namespace {

constexpr int kTileLines = 8;

struct PixelRows {
  static constexpr bool kActivation = false, kFloatOut = false;
  static constexpr bool kTurned = false, kTurnedWeights = false, kParts = false;
  static constexpr int kMostWeights = 1;
  TensorMap map;
  int32_t channel_boxes, kernel, pad, enlarged;
  int32_t across, down;  // tiles of one parity
  int32_t out_width, out_height;

  // In the image that is there.
  struct Corner {
    int y, x, parity_y, parity_x;
  };
  template <class T>
  UNIFLUID_DEVICE Corner corner(const TilePlace& tile) const {
    const int parity = tile.row / (across * down), within = tile.row % (across * down);
    return {within / across * kTileLines, within % across * (T::kRows / kTileLines), parity >> 1,
            parity & 1};
  }

  template <class T>
  UNIFLUID_DEVICE void copy(const Shared<bf16>& to, uint32_t index, const Corner& at, int step,
                            const Shared<uint64_t>& barriers, uint32_t i) const {
    const int tap = step / channel_boxes;
    // Shifts round down, as above the image they must.
    copy_box(to, index, map, step % channel_boxes * kBoxColumns,
             at.x + ((at.parity_x + tap % kernel - pad) >> enlarged),
             at.y + ((at.parity_y + tap / kernel - pad) >> enlarged), barriers, i);
  }

  template <class T>
  UNIFLUID_DEVICE int place(const Corner& at, int row) const {
    constexpr int kTileWidth = T::kRows / kTileLines;
    const int y = ((at.y + row / kTileWidth) << enlarged) + at.parity_y;
    const int x = ((at.x + row % kTileWidth) << enlarged) + at.parity_x;
    return y < out_height && x < out_width ? y * out_width + x : -1;
  }
};

LinearParams product_of(const ConvolutionArgs& args) {
  LinearParams p{};
  p.weights[0] = args.weight.data;
  p.weight_strides[0] = args.weight.stride;
  p.k = static_cast<int32_t>(args.weight.cols);
  p.out = epilogue_of(args.out, args.residual, args.bias, Activation::none);
  return p;
}

// All but the map.
PixelRows rows_of(const ConvolutionArgs& args, int tile_rows) {
  const ConvolutionGeometry& g = args.geometry;
  PixelRows rows{};
  const int tile_width = tile_rows / kTileLines;
  rows.channel_boxes = static_cast<int32_t>(args.x.cols / kBoxColumns);
  rows.kernel = static_cast<int32_t>(g.kernel);
  rows.pad = static_cast<int32_t>(g.pad_before);
  rows.enlarged = g.upsample == 2;
  rows.out_width = static_cast<int32_t>(g.out_width());
  rows.out_height = static_cast<int32_t>(g.out_height());
  rows.across = static_cast<int32_t>(
      blocks_for((rows.out_width + rows.enlarged) >> rows.enlarged, tile_width));
  rows.down = static_cast<int32_t>(
      blocks_for((rows.out_height + rows.enlarged) >> rows.enlarged, kTileLines));
  return rows;
}

int64_t row_tiles(const PixelRows& rows) {
  return int64_t{rows.across} * rows.down << 2 * rows.enlarged;
}

}  // namespace

bool suits_warpgroups(const ConvolutionArgs& args) {
  return args.x.type == DType::bf16 && args.geometry.stride == 1 &&
         args.x.cols % kBoxColumns == 0 && aligned16(args.x) && aligned16(args.weight) &&
         product_of(args).out.pairs;
}

void convolve_by_warpgroups(Queue& queue, const ConvolutionArgs& args) {
  double least = std::numeric_limits<double>::infinity();
  int columns = 0;
  for (const WarpgroupTile& tile : kWarpgroupTiles) {
    if (!tile.images) continue;
    const double cost =
        tile.of(row_tiles(rows_of(args, tile.rows)) * blocks_for(args.out.cols, tile.columns),
                queue.limits().processors);
    if (cost >= least) continue;
    least = cost;
    columns = tile.columns;
  }
  convolve_by_warpgroups(queue, args, columns);
}

void convolve_by_warpgroups(Queue& queue, const ConvolutionArgs& args, int columns) {
  with_wide_tile<false>(columns, [&](auto tile) {
    using T = decltype(tile);
    PixelRows rows = rows_of(args, T::kRows);
    rows.map = image_map(args.x, args.geometry.width, T::kRows / kTileLines, kTileLines);
    const LinearParams product = product_of(args);
    launch_wide<T, false>(queue, rows, row_tiles(rows), &product, 1);
  });
}

}  // namespace unifluid::cuda
