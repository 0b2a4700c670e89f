// Sums over the rows of a matrix, as the gradients of biases and of norms' weights are: runs of
// rows are summed apart, then the runs in order. Runs depend on the number of rows alone.
#pragma once

#include "cuda/kernels/training_elements.h"

namespace unifluid::cuda {

// A thread sums a column of a run: short enough that a step's few thousand rows make many blocks.
inline constexpr int64_t kSumRows = 32;
inline int64_t sum_runs(int64_t rows) { return (rows + kSumRows - 1) / kSumRows; }

struct SumPlace {
  int column;
  int64_t run, first, end;  // rows
  bool inside;
};
// Of a grid of (runs, columns / kElementThreads) blocks: the pixels of a batch of pictures are more
// runs than a grid has room for in its second dimension.
UNIFLUID_DEVICE SumPlace sum_place(int64_t rows, int cols) {
  const int column = static_cast<int>(blockIdx.y * kElementThreads + threadIdx.x);
  const int64_t first = blockIdx.x * kSumRows;
  const int64_t end = first + kSumRows < rows ? first + kSumRows : rows;
  return {column, blockIdx.x, first, end, column < cols};
}
inline dim3 sum_blocks(int64_t rows, int64_t cols) {
  return dim3(static_cast<unsigned>(sum_runs(rows)), blocks_for(cols, kElementThreads));
}

// out[j] += sum over runs of partial[run, j]
void add_runs(Queue&, const float* partial, int64_t runs, int64_t cols, float* out);

}  // namespace unifluid::cuda
