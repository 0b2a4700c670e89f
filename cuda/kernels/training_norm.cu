// Gradients of rms_norm and layer norm, and the adaptive layer norm of the diffusion head.
//
// A block takes a row. The gradients of a norm's weight and bias are sums over rows: what they need
// of a row's statistics is kept, and a second kernel goes down the columns (training_sums.h).
#include "cuda/device/warp.h"
#include "cuda/kernels/training_sums.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

constexpr int kMostThreads = 512;

unsigned row_threads(int64_t cols) {
  const unsigned threads = blocks_for(cols, kWarp) * kWarp;
  return threads < kMostThreads ? threads : kMostThreads;
}
size_t row_shared() { return SharedBytes{}.take<float>(kMostThreads / kWarp).used; }

template <class P>
void launch_rows(Queue& queue, void (*kernel)(P), int64_t rows, int64_t cols, const P& p) {
  queue.launch(kernel, dim3(static_cast<unsigned>(rows)), dim3(row_threads(cols)), row_shared(), p);
}

// Calls body(column) for this thread's columns of a row.
template <class Body>
UNIFLUID_DEVICE void each_column(int cols, Body body) {
  for (int c = static_cast<int>(threadIdx.x); c < cols; c += static_cast<int>(blockDim.x)) body(c);
}

// ---- rms_norm ----

struct RmsParams {
  Rows x, dout, dx;
  const float* weight;
  float* roots;    // [rows]: 1 / sqrt(mean(x^2) + eps)
  float* partial;  // [runs, cols]
  int64_t rows;
  int32_t cols;
  float eps;
  bool accumulate;
};

// With r = 1 / sqrt(mean(x^2) + eps), g = dout (1 + weight): dx = r (g - x r^2 mean(g x)).
template <class T>
__global__ void __launch_bounds__(kMostThreads) rms_backward_row(RmsParams p) {
  SharedArena arena;
  const auto scratch = arena.take<float>(kMostThreads / kWarp);
  const int64_t row = blockIdx.x;
  const float *x = p.x.at(row), *dout = p.dout.at(row);
  float squares = 0, products = 0;
  each_column(p.cols, [&](int c) {
    squares = fmaf(x[c], x[c], squares);
    products = fmaf(dout[c] * (1.0f + p.weight[c]), x[c], products);
  });
  const float n = static_cast<float>(p.cols);
  const float r = 1.0f / sqrtf(block_sum(squares, scratch) / n + p.eps);
  const float pull = r * r * r * block_sum(products, scratch) / n;
  each_column(p.cols, [&](int c) {
    const float d = fmaf(-x[c], pull, dout[c] * (1.0f + p.weight[c]) * r);
    p.dx.put<T>(row, c, p.accumulate ? p.dx.get<T>(row, c) + d : d);
  });
  if (threadIdx.x == 0) p.roots[row] = r;
}

__global__ void __launch_bounds__(kElementThreads) rms_weight_run(RmsParams p) {
  const SumPlace at = sum_place(p.rows, p.cols);
  if (!at.inside) return;
  float total = 0;
  for (int64_t row = at.first; row < at.end; ++row)
    total = fmaf(p.dout.at(row, at.column) * p.x.at(row, at.column), p.roots[row], total);
  p.partial[at.run * p.cols + at.column] = total;
}

// ---- layer norm, modulated ----

struct Moments {
  float mean, root;
};

// Of a row, for all threads of its block.
UNIFLUID_DEVICE Moments row_moments(const float* x, int cols, float eps,
                                    const Shared<float>& scratch) {
  const float n = static_cast<float>(cols);
  float total = 0, squares = 0;
  each_column(cols, [&](int c) { total += x[c]; });
  const float mean = block_sum(total, scratch) / n;
  each_column(cols, [&](int c) { squares = fmaf(x[c] - mean, x[c] - mean, squares); });
  return {mean, 1.0f / sqrtf(block_sum(squares, scratch) / n + eps)};
}

struct ModulatedParams {
  Rows x, shift, scale, out;
  const float *weight, *bias;
  int32_t cols;
  float eps;
};

template <class T>
__global__ void __launch_bounds__(kMostThreads) modulated_row(ModulatedParams p) {
  SharedArena arena;
  const auto scratch = arena.take<float>(kMostThreads / kWarp);
  const int64_t row = blockIdx.x;
  const float* x = p.x.at(row);
  const Moments m = row_moments(x, p.cols, p.eps, scratch);
  each_column(p.cols, [&](int c) {
    float v = (x[c] - m.mean) * m.root;
    if (p.weight) v *= p.weight[c];
    if (p.bias) v += p.bias[c];
    if (p.shift.data) v = fmaf(v, 1.0f + p.scale.at(row, c), p.shift.at(row, c));
    p.out.put<T>(row, c, v);
  });
}

struct ModulatedBackwardParams {
  Rows x, scale, dout, dx, dshift, dscale;
  const float *weight, *bias;
  Moments* moments;           // [rows]
  float *dweights, *dbiases;  // [runs, cols], or null
  int64_t rows;
  int32_t cols;
  float eps;
  bool accumulate;
};

template <class T>
__global__ void __launch_bounds__(kMostThreads) modulated_backward_row(ModulatedBackwardParams p) {
  SharedArena arena;
  const auto scratch = arena.take<float>(kMostThreads / kWarp);
  const int64_t row = blockIdx.x;
  const float *x = p.x.at(row), *dout = p.dout.at(row);
  float* dx = p.dx.at(row);
  const Moments m = row_moments(x, p.cols, p.eps, scratch);
  // The gradient of the normalized values.
  const auto slope = [&](int c) {
    float g = dout[c];
    if (p.scale.data) g *= 1.0f + p.scale.at(row, c);
    if (p.weight) g *= p.weight[c];
    return g;
  };
  float total = 0, products = 0;
  each_column(p.cols, [&](int c) {
    const float hat = (x[c] - m.mean) * m.root, g = slope(c);
    total += g;
    products = fmaf(g, hat, products);
    if (p.dshift.data) {
      float affine = hat;
      if (p.weight) affine *= p.weight[c];
      if (p.bias) affine += p.bias[c];
      p.dshift.put<T>(row, c, dout[c]);
      p.dscale.put<T>(row, c, dout[c] * affine);
    }
  });
  const float n = static_cast<float>(p.cols);
  const float center = block_sum(total, scratch) / n, pull = block_sum(products, scratch) / n;
  each_column(p.cols, [&](int c) {
    const float hat = (x[c] - m.mean) * m.root;
    const float d = m.root * fmaf(-hat, pull, slope(c) - center);
    dx[c] = p.accumulate ? dx[c] + d : d;
  });
  if (threadIdx.x == 0) p.moments[row] = m;
}

__global__ void __launch_bounds__(kElementThreads) modulated_weight_run(ModulatedBackwardParams p) {
  const SumPlace at = sum_place(p.rows, p.cols);
  if (!at.inside) return;
  float weight = 0, bias = 0;
  for (int64_t row = at.first; row < at.end; ++row) {
    const Moments m = p.moments[row];
    float g = p.dout.at(row, at.column);
    if (p.scale.data) g *= 1.0f + p.scale.at(row, at.column);
    weight = fmaf(g, (p.x.at(row, at.column) - m.mean) * m.root, weight);
    bias += g;
  }
  const int64_t to = at.run * p.cols + at.column;
  if (p.dweights) p.dweights[to] = weight;
  if (p.dbiases) p.dbiases[to] = bias;
}

}  // namespace

void rms_norm_backward(Queue& queue, const RmsNormBackwardArgs& args) {
  const int64_t rows = args.x.rows, cols = args.x.cols, runs = sum_runs(rows);
  if (rows == 0) return;
  queue.reserve_scratch(Queue::piece_bytes(static_cast<size_t>(rows) * sizeof(float)) +
                        Queue::piece_bytes(static_cast<size_t>(runs * cols) * sizeof(float)));
  RmsParams p{};
  p.x = args.x;
  p.dout = args.dout;
  p.dx = args.dx;
  p.weight = args.weight;
  p.roots = queue.scratch<float>(static_cast<size_t>(rows));
  p.rows = rows;
  p.cols = static_cast<int32_t>(cols);
  p.eps = args.eps;
  p.accumulate = args.accumulate;
  with_type(args.dx.type,
            [&](auto t) { launch_rows(queue, rms_backward_row<decltype(t)>, rows, cols, p); });
  if (!args.dweight) return;
  p.partial = queue.scratch<float>(static_cast<size_t>(runs * cols));
  queue.launch(rms_weight_run, sum_blocks(rows, cols), dim3(kElementThreads), 0, p);
  add_runs(queue, p.partial, runs, cols, args.dweight);
}

void modulated_norm(Queue& queue, const ModulatedNormArgs& args) {
  if (args.x.rows == 0) return;
  ModulatedParams p{};
  p.x = args.x;
  p.shift = args.shift;
  p.scale = args.scale;
  p.out = args.out;
  p.weight = args.weight;
  p.bias = args.bias;
  p.cols = static_cast<int32_t>(args.x.cols);
  p.eps = args.eps;
  with_type(args.out.type, [&](auto t) {
    launch_rows(queue, modulated_row<decltype(t)>, args.x.rows, args.x.cols, p);
  });
}

void modulated_norm_backward(Queue& queue, const ModulatedNormBackwardArgs& args) {
  const int64_t rows = args.x.rows, cols = args.x.cols, runs = sum_runs(rows);
  if (rows == 0) return;
  const size_t partial = static_cast<size_t>(runs * cols);
  queue.reserve_scratch(Queue::piece_bytes(static_cast<size_t>(rows) * sizeof(Moments)) +
                        2 * Queue::piece_bytes(partial * sizeof(float)));
  ModulatedBackwardParams p{};
  p.x = args.x;
  p.scale = args.scale;
  p.dout = args.dout;
  p.dx = args.dx;
  p.dshift = args.dshift;
  p.dscale = args.dscale;
  p.weight = args.weight;
  p.bias = args.bias;
  p.moments = queue.scratch<Moments>(static_cast<size_t>(rows));
  p.rows = rows;
  p.cols = static_cast<int32_t>(cols);
  p.eps = args.eps;
  p.accumulate = args.accumulate;
  with_type(args.dshift.type, [&](auto t) {
    launch_rows(queue, modulated_backward_row<decltype(t)>, rows, cols, p);
  });
  if (!args.dweight && !args.dbias) return;
  if (args.dweight) p.dweights = queue.scratch<float>(partial);
  if (args.dbias) p.dbiases = queue.scratch<float>(partial);
  queue.launch(modulated_weight_run, sum_blocks(rows, cols), dim3(kElementThreads), 0, p);
  if (args.dweight) add_runs(queue, p.dweights, runs, cols, args.dweight);
  if (args.dbias) add_runs(queue, p.dbiases, runs, cols, args.dbias);
}

}  // namespace unifluid::cuda
