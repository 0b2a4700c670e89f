// rms_norm and layer_norm: a block for each row.
//
// A row is a few kilobytes, and where few are normalized the time is that of memory's answers, one
// after another. So rms_norm holds rows of a piece a thread in registers, asks for all it needs at
// once, and for weights before the row is there. Of longer rows, and in layer_norm, the second and
// third reading come from the first-level cache. The number of threads follows from the width
// alone, and with it the order of the sums; each thread reads a row's elements before it writes the
// same ones, so that out may be x.
#include "cuda/device/dependence.h"
#include "cuda/device/warp.h"
#include "cuda/kernels.h"
#include "cuda/kernels/norm.h"

namespace unifluid::cuda {
namespace {

constexpr int kMostThreads = kMostNormThreads;

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

// Calls body(column) for this thread's pieces of a row.
template <class Body>
UNIFLUID_DEVICE void each_piece(int n, Body body) {
  for (int column = static_cast<int>(threadIdx.x) * kPiece; column < n;
       column += static_cast<int>(blockDim.x) * kPiece)
    body(column);
}

// out = residual + x / sqrt(mean(x^2) + eps) * (1 + weight); by all threads
template <bool kAligned, class T, class Out>
UNIFLUID_DEVICE void normalize(const Params& p, const Shared<float>& scratch, const T* x,
                               const float* weights, const T* residual, Out* out) {
  float squares = 0;
  each_piece(p.n, [&](int column) {
    const Piece v = load_piece<kAligned>(x, column, p.n);
    for (int i = 0; i < kPiece; ++i) squares = fmaf(v.value[i], v.value[i], squares);
  });
  const float scale = root_scale(block_sum(squares, scratch), p.n, p.eps);
  each_piece(p.n, [&](int column) {
    Piece v = load_piece<kAligned>(x, column, p.n);
    const Piece weight = load_piece<kAligned>(weights, column, p.n);
    scale_piece(v, scale, weight);
    if (residual) {
      const Piece r = load_piece<kAligned>(residual, column, p.n);
      for (int i = 0; i < kPiece; ++i) v.value[i] += r.value[i];
    }
    store_piece<kAligned>(out, column, p.n, v);
  });
}

// x / sqrt(mean(x^2) + eps) * (1 + weight) of a row whose pieces the threads hold; zeros past it
UNIFLUID_DEVICE void normalize_held(const Params& p, const Shared<float>& scratch, Piece& v,
                                    const Piece& weight) {
  const float scale = root_scale(block_sum(squares_of(v), scratch), p.n, p.eps);
  scale_piece(v, scale, weight);
}

// Rows of at most a piece a thread. The bits of `rms_norm_row`.
template <class T, class Out, bool kAligned>
__global__ void __launch_bounds__(kMostThreads) rms_norm_held(Params p) {
  let_dependents_start();
  SharedArena arena;
  const auto scratch = arena.take<float>(kMostThreads / kWarp);
  const int64_t row = blockIdx.x;
  const int column = static_cast<int>(threadIdx.x) * kPiece;
  const bool inside = column < p.n;
  Piece weight{}, next_weight{};
  if (inside) {
    weight = load_piece<kAligned>(p.weight, column, p.n);
    if (p.next_weight) next_weight = load_piece<kAligned>(p.next_weight, column, p.n);
  }
  wait_for_inputs();

  Piece v{}, residual{};
  if (inside) {
    v = load_piece<kAligned>(static_cast<const T*>(p.x) + row * p.x_stride, column, p.n);
    if (p.residual)
      residual = load_piece<kAligned>(static_cast<const T*>(p.residual) + row * p.residual_stride,
                                      column, p.n);
  }
  normalize_held(p, scratch, v, weight);
  if (p.residual)
    for (int i = 0; i < kPiece; ++i) v.value[i] += residual.value[i];
  if (inside) store_piece<kAligned>(static_cast<Out*>(p.out) + row * p.out_stride, column, p.n, v);
  if (!p.next_weight) return;
  // Of the row as it is stored.
  for (int i = 0; i < kPiece; ++i) v.value[i] = rounded<Out>(v.value[i]);
  normalize_held(p, scratch, v, next_weight);
  if (inside)
    store_piece<kAligned>(static_cast<Out*>(p.next_out) + row * p.next_stride, column, p.n, v);
}

template <class T, class Out, bool kAligned>
__global__ void __launch_bounds__(kMostThreads) rms_norm_row(Params p) {
  let_dependents_start();
  wait_for_inputs();
  SharedArena arena;
  const auto scratch = arena.take<float>(kMostThreads / kWarp);
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* residual =
      p.residual ? static_cast<const T*>(p.residual) + row * p.residual_stride : nullptr;
  Out* out = static_cast<Out*>(p.out) + row * p.out_stride;
  normalize<kAligned>(p, scratch, x, p.weight, residual, out);
  // Of the row as it is stored; a thread reads what it wrote itself.
  if (p.next_weight)
    normalize<kAligned, Out>(p, scratch, out, p.next_weight, nullptr,
                             static_cast<Out*>(p.next_out) + row * p.next_stride);
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
  const float scale = root_scale(block_sum(squares, scratch), p.n, p.eps);

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

dim3 threads_of(const Params& p) {
  const unsigned threads = norm_warps(p.n) * kWarp;
  return dim3(threads < kMostThreads ? threads : kMostThreads);
}
size_t shared_bytes() { return SharedBytes{}.take<float>(kMostThreads / kWarp).used; }

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
  const auto launch = [&](auto t, auto o) {
    using T = decltype(t);
    using Out = decltype(o);
    const bool held = p.n <= kMostThreads * kPiece;
    const auto kernel = aligned ? held ? rms_norm_held<T, Out, true> : rms_norm_row<T, Out, true>
                        : held ? rms_norm_held<T, Out, false>
                                : rms_norm_row<T, Out, false>;
    queue.launch_dependent(kernel, dim3(static_cast<unsigned>(args.x.rows)), threads_of(p),
                           shared_bytes(), p);
  };
  if (args.x.type == args.out.type)
    with_type(args.x.type, [&](auto t) { launch(t, t); });
  else
    launch(float{}, bf16{});  // training's (core/training_backend.h)
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
    queue.launch(aligned ? layer_norm_row<T, true> : layer_norm_row<T, false>,
                 dim3(static_cast<unsigned>(args.x.rows)), threads_of(p), shared_bytes(), p);
  });
}

}  // namespace unifluid::cuda
