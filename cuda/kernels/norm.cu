// rms_norm and layer_norm: a block for each row.
//
// A row is a few kilobytes. Its second and third reading come from the first-level cache, which
// costs less than holding it in registers would: those would bound the width and the number of
// blocks at once. The number of threads follows from the width alone, and with it the order of the
// sums; each thread reads a row's elements before it writes the same ones, so that out may be x.
#include "cuda/device/warp.h"
#include "cuda/kernels.h"
#include "cuda/kernels/rows.h"

namespace unifluid::cuda {
namespace {

// With 16 warps a row of 4096 elements is one piece a thread; more would wait for one another.
constexpr int kMostThreads = 512;

struct Params {
  const void* x;
  const float* weight;
  const float* bias;
  const void* residual;
  void* out;
  const float* next_weight;
  void* next_out;
  int64_t x_stride, residual_stride, out_stride, next_stride;
  int32_t n;
  float eps;
};

UNIFLUID_DEVICE float inverse_root(float x) { return 1.0f / sqrtf(x); }

// Calls body(column) for this thread's pieces of a row.
template <class Body>
UNIFLUID_DEVICE void each_piece(int n, Body body) {
  for (int column = static_cast<int>(threadIdx.x) * kPiece; column < n;
       column += static_cast<int>(blockDim.x) * kPiece)
    body(column);
}

// out = residual + x / sqrt(mean(x^2) + eps) * (1 + weight); by all threads
template <bool kAligned, class T>
UNIFLUID_DEVICE void normalize(const Params& p, const Shared<float>& scratch, const T* x,
                               const float* weights, const T* residual, T* out) {
  float squares = 0;
  each_piece(p.n, [&](int column) {
    const Piece v = load_piece<kAligned>(x, column, p.n);
    for (int i = 0; i < kPiece; ++i) squares = fmaf(v.value[i], v.value[i], squares);
  });
  const float scale = inverse_root(block_sum(squares, scratch) / static_cast<float>(p.n) + p.eps);
  each_piece(p.n, [&](int column) {
    Piece v = load_piece<kAligned>(x, column, p.n);
    const Piece weight = load_piece<kAligned>(weights, column, p.n);
    for (int i = 0; i < kPiece; ++i) v.value[i] = v.value[i] * scale * (1.0f + weight.value[i]);
    if (residual) {
      const Piece r = load_piece<kAligned>(residual, column, p.n);
      for (int i = 0; i < kPiece; ++i) v.value[i] += r.value[i];
    }
    store_piece<kAligned>(out, column, p.n, v);
  });
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kMostThreads) rms_norm_row(Params p) {
  SharedArena arena;
  const auto scratch = arena.take<float>(kMostThreads / kWarp);
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* residual =
      p.residual ? static_cast<const T*>(p.residual) + row * p.residual_stride : nullptr;
  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  normalize<kAligned>(p, scratch, x, p.weight, residual, out);
  // Of the row as it is stored; a thread reads what it wrote itself.
  if (p.next_weight)
    normalize<kAligned, T>(p, scratch, out, p.next_weight, nullptr,
                           static_cast<T*>(p.next_out) + row * p.next_stride);
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kMostThreads) layer_norm_row(Params p) {
  SharedArena arena;
  const auto scratch = arena.take<float>(kMostThreads / kWarp);
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;

  float total = 0;
  each_piece(p.n, [&](int column) {
    const Piece v = load_piece<kAligned>(x, column, p.n);
    for (int i = 0; i < kPiece; ++i) total += v.value[i];
  });
  const float mean = block_sum(total, scratch) / static_cast<float>(p.n);

  float squares = 0;
  each_piece(p.n, [&](int column) {
    const Piece v = load_piece<kAligned>(x, column, p.n);
    for (int i = 0; i < kPiece; ++i) {
      const float d = kAligned || column + i < p.n ? v.value[i] - mean : 0.0f;
      squares = fmaf(d, d, squares);
    }
  });
  const float scale = inverse_root(block_sum(squares, scratch) / static_cast<float>(p.n) + p.eps);

  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  each_piece(p.n, [&](int column) {
    Piece v = load_piece<kAligned>(x, column, p.n);
    for (int i = 0; i < kPiece; ++i) v.value[i] = (v.value[i] - mean) * scale;
    if (p.weight) {
      const Piece weight = load_piece<kAligned>(p.weight, column, p.n);
      for (int i = 0; i < kPiece; ++i) v.value[i] *= weight.value[i];
    }
    if (p.bias) {
      const Piece bias = load_piece<kAligned>(p.bias, column, p.n);
      for (int i = 0; i < kPiece; ++i) v.value[i] += bias.value[i];
    }
    store_piece<kAligned>(out, column, p.n, v);
  });
}

void launch(Queue& queue, void (*kernel)(Params), int64_t rows, const Params& p) {
  const unsigned threads = blocks_for(blocks_for(p.n, kPiece), kWarp) * kWarp;
  queue.launch(kernel, dim3(static_cast<unsigned>(rows)),
               dim3(threads < kMostThreads ? threads : kMostThreads),
               SharedBytes{}.take<float>(kMostThreads / kWarp).used, p);
}

}  // namespace

void rms_norm(Queue& queue, const RmsNormArgs& args) {
  if (args.x.rows == 0) return;
  Params p{};
  p.x = args.x.data;
  p.weight = args.weight;
  p.residual = args.residual.data;
  p.out = args.out.data;
  p.x_stride = args.x.stride;
  p.residual_stride = args.residual.stride;
  p.out_stride = args.out.stride;
  p.next_weight = args.next_weight;
  p.next_out = args.next_out.data;
  p.next_stride = args.next_out.stride;
  p.n = static_cast<int32_t>(args.x.cols);
  p.eps = args.eps;
  const bool aligned = whole_pieces(args.x) && whole_pieces(args.weight) &&
                       whole_pieces(args.residual) && whole_pieces(args.out) &&
                       whole_pieces(args.next_weight) && whole_pieces(args.next_out);
  with_type(args.x.type, [&](auto t) {
    using T = decltype(t);
    launch(queue, aligned ? rms_norm_row<T, true> : rms_norm_row<T, false>, args.x.rows, p);
  });
}

void layer_norm(Queue& queue, const LayerNormArgs& args) {
  if (args.x.rows == 0) return;
  Params p{};
  p.x = args.x.data;
  p.weight = args.weight;
  p.bias = args.bias;
  p.out = args.out.data;
  p.x_stride = args.x.stride;
  p.out_stride = args.out.stride;
  p.n = static_cast<int32_t>(args.x.cols);
  p.eps = args.eps;
  const bool aligned = whole_pieces(args.x) && whole_pieces(args.weight) &&
                       whole_pieces(args.bias) && whole_pieces(args.out);
  with_type(args.x.type, [&](auto t) {
    using T = decltype(t);
    launch(queue, aligned ? layer_norm_row<T, true> : layer_norm_row<T, false>, args.x.rows, p);
  });
}

}  // namespace unifluid::cuda
