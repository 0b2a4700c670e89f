// column_sum, the sum of squares, and sums of runs (training_sums.h).
#include "cuda/device/warp.h"
#include "cuda/kernels/training_sums.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

struct ColumnParams {
  Rows x;
  float* partial;  // [runs, cols]
  int64_t rows;
  int32_t cols;
};
template <class T>
__global__ void __launch_bounds__(kElementThreads) sum_run(ColumnParams p) {
  const SumPlace at = sum_place(p.rows, p.cols);
  if (!at.inside) return;
  float total = 0;
  for (int64_t row = at.first; row < at.end; ++row) total += p.x.get<T>(row, at.column);
  p.partial[at.run * p.cols + at.column] = total;
}

struct RunParams {
  const float* partial;
  float* out;
  int64_t runs;
  int32_t cols;
};
__global__ void __launch_bounds__(kElementThreads) add_run(RunParams p) {
  const int column = static_cast<int>(blockIdx.x * kElementThreads + threadIdx.x);
  if (column >= p.cols) return;
  float total = 0;
  // Few threads wait for many numbers: most of them are asked for at once.
#pragma unroll 16
  for (int64_t run = 0; run < p.runs; ++run) total += p.partial[run * p.cols + column];
  p.out[column] += total;
}

// ---- the sum of squares ----

constexpr int64_t kSquares = int64_t{1} << 14;  // elements that a block takes

struct SquaresParams {
  const float* values;
  double* partial;
  double* total;
  int64_t count, pieces;
};

__global__ void __launch_bounds__(kElementThreads) square_piece(SquaresParams p) {
  SharedArena arena;
  const auto scratch = arena.take<double>(kElementThreads / kWarp);
  const int64_t first = blockIdx.x * kSquares;
  const int64_t end = first + kSquares < p.count ? first + kSquares : p.count;
  // 64 squares a thread in float32; what is larger in float64.
  float total = 0;
  for (int64_t i = first + threadIdx.x; i < end; i += kElementThreads)
    total = fmaf(p.values[i], p.values[i], total);
  const double sum = block_sum(static_cast<double>(total), scratch);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kElementThreads) square_total(SquaresParams p) {
  SharedArena arena;
  const auto scratch = arena.take<double>(kElementThreads / kWarp);
  double total = 0;
  for (int64_t i = threadIdx.x; i < p.pieces; i += kElementThreads) total += p.partial[i];
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) *p.total = total;
}

}  // namespace

void add_runs(Queue& queue, const float* partial, int64_t runs, int64_t cols, float* out) {
  RunParams p{partial, out, runs, static_cast<int32_t>(cols)};
  queue.launch(add_run, dim3(blocks_for(cols, kElementThreads)), dim3(kElementThreads), 0, p);
}

void column_sum(Queue& queue, const ColumnSumArgs& args) {
  const int64_t rows = args.x.rows, cols = args.x.cols, runs = sum_runs(rows);
  if (args.x.size() == 0) return;
  ColumnParams p{};
  p.x = args.x;
  p.partial = queue.scratch<float>(static_cast<size_t>(runs * cols));
  p.rows = rows;
  p.cols = static_cast<int32_t>(cols);
  with_type(args.x.type, [&](auto t) {
    queue.launch(sum_run<decltype(t)>, sum_blocks(rows, cols), dim3(kElementThreads), 0, p);
  });
  add_runs(queue, p.partial, runs, cols, args.out);
}

const double* sum_of_squares(Queue& queue, const float* values, int64_t count) {
  SquaresParams p{};
  p.values = values;
  p.count = count;
  p.pieces = blocks_for(count, kSquares);
  // The total behind the pieces.
  p.partial = queue.scratch<double>(static_cast<size_t>(p.pieces) + 1);
  p.total = p.partial + p.pieces;
  const size_t shared = SharedBytes{}.take<double>(kElementThreads / kWarp).used;
  queue.launch(square_piece, dim3(static_cast<unsigned>(p.pieces)), dim3(kElementThreads), shared,
               p);
  queue.launch(square_total, dim3(1), dim3(kElementThreads), shared, p);
  return p.total;
}

}  // namespace unifluid::cuda
