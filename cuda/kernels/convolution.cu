// convolution on channels-last images as an implicit matrix product: the windows of a tile of
// output pixels are gathered straight into shared memory as rows of x, in the order row, column,
// channel that the weights have. Padding, stride and enlargement are resolved in the gather;
// nothing of the size of the image is made.
//
// bf16 (cuda/kernels/tile.h): with whole pieces of 8 channels a window's chunk of 16 bytes lies in
// one tap, and a thread takes the same chunk of the same pixels in every step, so that it keeps
// where its pixels' windows begin and moves from tap to tap by counting; the first layers, with 3
// or 4 channels, have a window of a few dozen elements and gather them one by one. An output is one
// float32 accumulator over the window in ascending order, so that the tile chosen for the size of
// the image does not show in the bits. On Hopper most layers go to convolution_warpgroup.cu. The
// last layer, to 3 channels, has the pixels of all its taps in shared memory at once.
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "cuda/kernels/convolution.h"
#include "cuda/kernels/epilogue.h"
#include "cuda/kernels/tile.h"

namespace unifluid::cuda {
namespace {

struct Params {
  const void* x;
  const void* weight;
  int64_t x_stride, weight_stride;
  int32_t height, width, row_pixels;  // enlarged; pixels of a row of x
  int32_t enlarged;                   // by 1 << enlarged
  int32_t channels, kernel, stride, pad;
  int32_t out_width, window;  // window: kernel * kernel * channels
  int32_t output_tiles;
  Epilogue out;  // and its pixels and channels
};

// Where the window of an output pixel begins in the enlarged image. Pixels past the last have
// theirs so far above it that they are padding altogether.
struct Corner {
  int y, x;
};
UNIFLUID_DEVICE Corner corner_of(const Params& p, int pixel) {
  constexpr int kFarAbove = -(1 << 30);
  if (pixel >= p.out.rows) return {kFarAbove, 0};
  return {pixel / p.out_width * p.stride - p.pad, pixel % p.out_width * p.stride - p.pad};
}

// A place in the window: a tap and a channel.
struct Tap {
  int y, x, channel;
};
UNIFLUID_DEVICE Tap tap_of(const Params& p, int k) {
  const int tap = k / p.channels;
  return {tap / p.kernel, tap % p.kernel, k % p.channels};
}
UNIFLUID_DEVICE void advance(const Params& p, Tap& tap, int by) {
  tap.channel += by;
  while (tap.channel >= p.channels) {
    tap.channel -= p.channels;
    if (++tap.x == p.kernel) {
      tap.x = 0;
      ++tap.y;
    }
  }
}

// The element of x at a tap of a pixel's window; -1 in the padding and past the window's end.
UNIFLUID_DEVICE int64_t element_at(const Params& p, const Corner& corner, const Tap& tap) {
  const int y = corner.y + tap.y, x = corner.x + tap.x;
  if (tap.y >= p.kernel || y < 0 || y >= p.height || x < 0 || x >= p.width) return -1;
  const int64_t pixel = int64_t{y >> p.enlarged} * p.row_pixels + (x >> p.enlarged);
  return pixel * p.x_stride + tap.channel;
}

// ---- bfloat16 ----

// Gathers a tile of windows, step by step.
template <class T, bool kAligned>
class Windows {
 public:
  UNIFLUID_DEVICE Windows(const Params& p, int first_pixel) : first_pixel_(first_pixel) {
    if constexpr (kAligned) {
#pragma unroll
      for (int i = 0; i < kPixels; ++i)
        corners_[i] = corner_of(p, first_pixel + first_row() + i * kRowsAtOnce);
      advance(p, tap_, chunk() * 8);
    }
  }

  // The next kDepth elements of the windows, to the stage at `at`.
  UNIFLUID_DEVICE void load(const Params& p, const Shared<bf16>& to, uint32_t at, int step) {
    const bf16* x = static_cast<const bf16*>(p.x);
    if constexpr (kAligned) {
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const int64_t element = element_at(p, corners_[i], tap_);
        const int row = first_row() + i * kRowsAtOnce;
        cp_async16(to, at + static_cast<uint32_t>(row * T::kStride + chunk() * 8),
                   x + (element < 0 ? 0 : element), element >= 0);
      }
      advance(p, tap_, T::kDepth);
    } else {
      static_assert(T::kThreads % T::kDepth == 0);
      const int column = static_cast<int>(threadIdx.x) % T::kDepth;
      const Tap tap = tap_of(p, step * T::kDepth + column);
      for (int row = static_cast<int>(threadIdx.x) / T::kDepth; row < T::kRows;
           row += T::kThreads / T::kDepth) {
        const int64_t element = element_at(p, corner_of(p, first_pixel_ + row), tap);
        to.store(at + static_cast<uint32_t>(row * T::kStride + column),
                 element < 0 ? bf16{0} : x[element]);
      }
    }
  }

 private:
  static constexpr int kChunks = T::kDepth / 8, kRowsAtOnce = T::kThreads / kChunks;
  static constexpr int kPixels = T::kRows / kRowsAtOnce;
  static_assert(T::kRows % kRowsAtOnce == 0 && T::kThreads % kChunks == 0);

  UNIFLUID_DEVICE static int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  UNIFLUID_DEVICE static int first_row() { return static_cast<int>(threadIdx.x) / kChunks; }

  int first_pixel_;
  Corner corners_[kPixels];
  Tap tap_{};
};

template <class T, bool kAligned>
__global__ void __launch_bounds__(T::kThreads) convolution_bf16(Params p) {
  using Kind = EpilogueKind<false, false, false, true>;
  SharedArena arena;
  const auto x_tiles = arena.take<bf16>(T::kStages * T::kTileX);
  const auto w_tiles = arena.take<bf16>(T::kStages * T::kTileW);
  // Blocks that share pixels run side by side, so that the image is read from memory once.
  const int first_pixel = static_cast<int>(blockIdx.x) / p.output_tiles * T::kRows;
  const int first_output = static_cast<int>(blockIdx.x) % p.output_tiles * T::kColumns;

  Windows<T, kAligned> windows(p, first_pixel);
  TileRows<T, T::kColumns, kAligned> weights(p.weight, p.weight_stride, first_output, p.out.columns,
                                             p.window);
  FragmentC sums[1][T::kPiecesM][T::kPiecesN] = {};
  each_stage<T>((p.window + T::kDepth - 1) / T::kDepth,
                [&](int step, uint32_t slot) { windows.load(p, x_tiles, slot * T::kTileX, step); },
                [&](int step, uint32_t slot) { weights.load(w_tiles, slot * T::kTileW, step); },
                [&](uint32_t slot) {
                  multiply_stage<T, 1>(sums, x_tiles, slot * T::kTileX, w_tiles, slot * T::kTileW);
                });

#pragma unroll
  for (int i = 0; i < T::kPiecesM; ++i)
#pragma unroll
    for (int j = 0; j < T::kPiecesN; ++j) {
      FragmentC& piece = sums[0][i][j];
      const int output = first_output + T::column_of(j, 0);
      finish<Kind>(p.out, output, piece, piece);
#pragma unroll
      for (int e = 0; e < 4; e += 2)
        store_outputs<Kind>(p.out, first_pixel + T::row_of(i, e), output, piece.x[e],
                            piece.x[e + 1]);
    }
}

// To few channels: one piece of 16 columns, whose windows alone are worth reading.
using Narrow = Tile<128, 16, 32, 4, 1, 4>;
// Small images: as many blocks as there can be.
using Small = Tile<64, 64, 32, 2, 2, 4>;
using Square = Tile<128, 128, 32, 2, 4, 4>;
// 64 x 64 outputs a warp, with 128 accumulators a thread; an operand comes from the second-level
// cache for a third fewer bytes a product than with a square.
using Large = Tile<256, 128, 32, 4, 2, 3>;

template <class T, bool kAligned>
void launch(Queue& queue, Params p) {
  p.output_tiles = static_cast<int32_t>(blocks_for(p.out.columns, T::kColumns));
  const unsigned blocks = blocks_for(p.out.rows, T::kRows) * static_cast<unsigned>(p.output_tiles);
  queue.launch(convolution_bf16<T, kAligned>, dim3(blocks), dim3(T::kThreads), T::shared_bytes(1),
               p);
}

template <bool kAligned>
void launch(Queue& queue, const Params& p) {
  // A tile must give three quarters of the multiprocessors a block, or a smaller one is faster.
  const auto enough = [&](int rows, int columns) {
    return int64_t{blocks_for(p.out.rows, rows)} * blocks_for(p.out.columns, columns) * 4 >=
           int64_t{queue.limits().processors} * 3;
  };
  if (p.out.columns <= Narrow::kColumns)
    launch<Narrow, kAligned>(queue, p);
  else if (p.out.columns <= Small::kColumns || !enough(Square::kRows, Square::kColumns))
    launch<Small, kAligned>(queue, p);
  else if (!enough(Large::kRows, Large::kColumns))
    launch<Square, kAligned>(queue, p);
  else
    launch<Large, kAligned>(queue, p);
}

// ---- bfloat16, to few channels ----

// Windows overlap: gathered one by one, each pixel comes from the second-level cache nine times,
// and with few outputs that is what the other tiles wait for. Here a block's pixels are a part of
// the image, which comes once, with what lies around it, beside all weights. A warp multiplies two
// lines. The same products in the same order.
constexpr int kFewWarps = 4, kFewThreads = kFewWarps * kWarp;
constexpr int kFewLines = 2;  // of a warp
constexpr int kFewHeight = kFewWarps * kFewLines, kFewWidth = 16;
constexpr int kFewColumns = 8;
constexpr int kFewDepth = 32;  // channels that are multiplied at a time

struct FewParams {
  const bf16 *x, *weight;
  int64_t x_stride, weight_stride;
  int32_t height, width, channels, kernel, pad;
  int32_t out_width, out_height;
  int32_t across;              // tiles of a line
  int32_t part_width, pixels;  // of the part of the image that a block has
  Epilogue out;

  // Elements from one to the next, 8 more than there are for the banks.
  __host__ UNIFLUID_DEVICE int pixel_stride() const { return channels + 8; }
  __host__ UNIFLUID_DEVICE int output_stride() const { return kernel * kernel * channels + 8; }
};

// The part of the image from line `top` and column `left` on, zeros outside. Threads lie side by
// side on a pixel's channels.
UNIFLUID_DEVICE void load_part(const FewParams& p, const Shared<bf16>& to, int top, int left) {
  const int pieces = p.channels / 8, at_once = kFewThreads / pieces;
  const int thread = static_cast<int>(threadIdx.x), piece = thread % pieces;
  if (thread / pieces >= at_once) return;
  int y = top, x = left + thread / pieces;
  for (int pixel = thread / pieces; pixel < p.pixels; pixel += at_once, x += at_once) {
    for (; x >= left + p.part_width; x -= p.part_width) ++y;
    const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
    cp_async16(to, static_cast<uint32_t>(pixel * p.pixel_stride() + piece * 8),
               p.x + (inside ? (int64_t{y} * p.width + x) * p.x_stride + piece * 8 : 0), inside);
  }
}

UNIFLUID_DEVICE void load_outputs(const FewParams& p, const Shared<bf16>& to) {
  const int window = p.kernel * p.kernel * p.channels;
  for (int output = 0; output < kFewColumns; ++output) {
    const bool inside = output < p.out.columns;
    const bf16* from = p.weight + (inside ? output * p.weight_stride : 0);
    for (int k = static_cast<int>(threadIdx.x) * 8; k < window; k += kFewThreads * 8)
      cp_async16(to, static_cast<uint32_t>(output * p.output_stride() + k), from + k, inside);
  }
}

__global__ void __launch_bounds__(kFewThreads) convolution_few(FewParams p) {
  using Kind = EpilogueKind<false, false, false, true>;
  SharedArena arena;
  const auto part = arena.take<bf16>(static_cast<uint32_t>(p.pixels * p.pixel_stride()));
  const auto weights = arena.take<bf16>(static_cast<uint32_t>(kFewColumns * p.output_stride()));
  const int top = static_cast<int>(blockIdx.x) / p.across * kFewHeight;
  const int left = static_cast<int>(blockIdx.x) % p.across * kFewWidth;
  load_part(p, part, top - p.pad, left - p.pad);
  load_outputs(p, weights);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const int lane = lane_index(), first_line = warp_index() * kFewLines;
  FragmentC sums[kFewLines] = {};
  for (int tap = 0; tap < p.kernel * p.kernel; ++tap) {
    uint32_t x_at[kFewLines];
    for (int i = 0; i < kFewLines; ++i)
      x_at[i] = static_cast<uint32_t>(
          ((first_line + i + tap / p.kernel) * p.part_width + tap % p.kernel + lane % 16) *
              p.pixel_stride() +
          lane / 16 * 8);
    const uint32_t w_at =
        static_cast<uint32_t>(lane % 8 * p.output_stride() + tap * p.channels + lane / 8 * 8);
#pragma unroll 4
    for (uint32_t c = 0; c < static_cast<uint32_t>(p.channels); c += kFewDepth) {
      FragmentA x[2][kFewLines];
      uint32_t w[4];
      ldmatrix_x4<false>(w, weights, w_at + c);
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < kFewLines; ++i)
          ldmatrix_x4<false>(x[half][i].x, part, x_at[i] + c + 16 * half);
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < kFewLines; ++i)
          mma(sums[i], x[half][i], FragmentB{{w[2 * half], w[2 * half + 1]}});
    }
  }

  const int output = lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kFewLines; ++i) {
    finish<Kind>(p.out, output, sums[i], sums[i]);
    const int y = top + first_line + i;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int x = left + lane / 4 + 8 * half;
      if (y < p.out_height && x < p.out_width)
        store_outputs<Kind>(p.out, y * p.out_width + x, output, sums[i].x[2 * half],
                            sums[i].x[2 * half + 1]);
    }
  }
}

FewParams few_params(const ConvolutionArgs& args) {
  const ConvolutionGeometry& g = args.geometry;
  FewParams p{};
  p.x = static_cast<const bf16*>(args.x.data);
  p.weight = static_cast<const bf16*>(args.weight.data);
  p.x_stride = args.x.stride;
  p.weight_stride = args.weight.stride;
  p.height = static_cast<int32_t>(g.height);
  p.width = static_cast<int32_t>(g.width);
  p.channels = static_cast<int32_t>(args.x.cols);
  p.kernel = static_cast<int32_t>(g.kernel);
  p.pad = static_cast<int32_t>(g.pad_before);
  p.out_width = static_cast<int32_t>(g.out_width());
  p.out_height = static_cast<int32_t>(g.out_height());
  p.across = static_cast<int32_t>(blocks_for(p.out_width, kFewWidth));
  p.part_width = kFewWidth + p.kernel - 1;
  p.pixels = (kFewHeight + p.kernel - 1) * p.part_width;
  p.out = epilogue_of(args.out, args.residual, args.bias, Activation::none);
  return p;
}

size_t few_shared(const FewParams& p) {
  return SharedBytes{}
      .take<bf16>(static_cast<size_t>(p.pixels) * static_cast<size_t>(p.pixel_stride()))
      .take<bf16>(static_cast<size_t>(kFewColumns * p.output_stride()))
      .used;
}

// Whatever the size of the image.
bool suits_few(const ConvolutionArgs& args, const DeviceLimits& limits) {
  return args.x.type == DType::bf16 && args.out.cols <= kFewColumns && args.geometry.stride == 1 &&
         args.geometry.upsample == 1 && args.x.cols % kFewDepth == 0 &&
         args.x.cols <= 8 * kFewThreads && aligned16(args.x) && aligned16(args.weight) &&
         few_shared(few_params(args)) <= limits.shared_bytes;
}

void launch_few(Queue& queue, const FewParams& p) {
  const unsigned down = blocks_for(p.out_height, kFewHeight);
  queue.launch(convolution_few, dim3(static_cast<unsigned>(p.across) * down), dim3(kFewThreads),
               few_shared(p), p);
}

// ---- float32 ----

// 16 x 16 threads, each with 4 x 4 outputs; 16 deep.
constexpr int kSide = 16, kEach = 4, kTile = kSide * kEach, kDepth = 16;
constexpr int kFloatThreads = kSide * kSide;
// One element longer than the tile, so that neither side of the exchange conflicts.
constexpr int kFloatStride = kTile + 1;

__global__ void __launch_bounds__(kFloatThreads) convolution_f32(Params p) {
  using Kind = EpilogueKind<false, false, true, true>;
  SharedArena arena;
  const auto x_tile = arena.take<float>(kDepth * kFloatStride);
  const auto w_tile = arena.take<float>(kDepth * kFloatStride);
  const int first_pixel = static_cast<int>(blockIdx.x) / p.output_tiles * kTile;
  const int first_output = static_cast<int>(blockIdx.x) % p.output_tiles * kTile;
  const int thread = static_cast<int>(threadIdx.x), ty = thread / kSide, tx = thread % kSide;
  const float* x = static_cast<const float*>(p.x);
  const float* weight = static_cast<const float*>(p.weight);

  // In a step a thread gathers element `tx` of four windows and of four weights.
  Corner corners[kEach];
  for (int i = 0; i < kEach; ++i) corners[i] = corner_of(p, first_pixel + ty + kSide * i);
  Tap tap{};
  advance(p, tap, tx);

  float sums[kEach][kEach] = {};
  for (int first = 0; first < p.window; first += kDepth) {
    const int k = first + tx;
    for (int i = 0; i < kEach; ++i) {
      const uint32_t at = static_cast<uint32_t>(tx * kFloatStride + ty + kSide * i);
      const int64_t element = element_at(p, corners[i], tap);
      x_tile.store(at, element < 0 ? 0.0f : x[element]);
      const int output = first_output + ty + kSide * i;
      w_tile.store(
          at, output < p.out.columns && k < p.window ? weight[output * p.weight_stride + k] : 0.0f);
    }
    advance(p, tap, kDepth);
    __syncthreads();
    for (int d = 0; d < min(kDepth, p.window - first); ++d) {
      float a[kEach];
      for (int i = 0; i < kEach; ++i)
        a[i] = x_tile.load(static_cast<uint32_t>(d * kFloatStride + ty + kSide * i));
      for (int j = 0; j < kEach; ++j) {
        const float b = w_tile.load(static_cast<uint32_t>(d * kFloatStride + tx + kSide * j));
        for (int i = 0; i < kEach; ++i) sums[i][j] = fmaf(a[i], b, sums[i][j]);
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < kEach; ++i)
    for (int j = 0; j < kEach; ++j) {
      const int output = first_output + tx + kSide * j;
      if (output >= p.out.columns) continue;
      const float v = finished<Kind>(p.out, output, sums[i][j], 0.0f);
      store_output<float>(p.out, first_pixel + ty + kSide * i, output, v);
    }
}

void launch_f32(Queue& queue, Params p) {
  p.output_tiles = static_cast<int32_t>(blocks_for(p.out.columns, kTile));
  const unsigned blocks = blocks_for(p.out.rows, kTile) * static_cast<unsigned>(p.output_tiles);
  const size_t shared =
      SharedBytes{}.take<float>(kDepth * kFloatStride).take<float>(kDepth * kFloatStride).used;
  queue.launch(convolution_f32, dim3(blocks), dim3(kFloatThreads), shared, p);
}

}  // namespace

void convolution(Queue& queue, const ConvolutionArgs& args) {
  if (args.out.size() == 0) return;
  if (queue.limits().warpgroups && args.out.cols > Narrow::kColumns && suits_warpgroups(args))
    return convolve_by_warpgroups(queue, args);
  if (suits_few(args, queue.limits())) return launch_few(queue, few_params(args));
  const ConvolutionGeometry& g = args.geometry;
  Params p{};
  p.x = args.x.data;
  p.weight = args.weight.data;
  p.x_stride = args.x.stride;
  p.weight_stride = args.weight.stride;
  p.height = static_cast<int32_t>(g.height * g.upsample);
  p.width = static_cast<int32_t>(g.width * g.upsample);
  p.row_pixels = static_cast<int32_t>(g.width);
  p.enlarged = g.upsample == 2;
  p.channels = static_cast<int32_t>(args.x.cols);
  p.kernel = static_cast<int32_t>(g.kernel);
  p.stride = static_cast<int32_t>(g.stride);
  p.pad = static_cast<int32_t>(g.pad_before);
  p.out_width = static_cast<int32_t>(g.out_width());
  p.window = static_cast<int32_t>(args.weight.cols);
  p.out = epilogue_of(args.out, args.residual, args.bias, Activation::none);
  if (args.x.type == DType::f32)
    launch_f32(queue, p);
  else if (aligned16(args.x) && aligned16(args.weight))
    launch<true>(queue, p);
  else
    launch<false>(queue, p);
}

}  // namespace unifluid::cuda
