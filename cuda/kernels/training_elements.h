// What the kernels of training share that take their tensors element by element: a thread for each,
// neighbours on neighbouring columns.
//
// Training reads and writes float32, where a warp's single floats are whole lines already: vectors
// would save instructions, not traffic, and need a second form for rows that are not aligned.
#pragma once

#include "core/tensor.h"
#include "cuda/dispatch.h"
#include "cuda/queue.h"

namespace unifluid::cuda {

inline constexpr int kElementThreads = 256;

// A tensor as kernels see it.
struct Rows {
  float* data = nullptr;
  int64_t stride = 0;

  Rows() = default;
  Rows(const Tensor& t) : data(static_cast<float*>(t.data)), stride(t.stride) {}
  UNIFLUID_DEVICE float* at(int64_t row) const { return data + row * stride; }
  UNIFLUID_DEVICE float& at(int64_t row, int64_t column) const {
    return data[row * stride + column];
  }
  // Of a tensor that may be bfloat16: T is its type.
  template <class T>
  UNIFLUID_DEVICE float get(int64_t row, int64_t column) const {
    return to_float(reinterpret_cast<const T*>(data)[row * stride + column]);
  }
  template <class T>
  UNIFLUID_DEVICE void put(int64_t row, int64_t column, float v) const {
    reinterpret_cast<T*>(data)[row * stride + column] = from_float<T>(v);
  }
};

// The elements of [rows, cols].
struct ElementGrid {
  int64_t count = 0, cols = 1;

  ElementGrid() = default;
  ElementGrid(int64_t rows, int64_t cols_) : count(rows * cols_), cols(cols_) {}
  dim3 blocks() const { return dim3(blocks_for(count, kElementThreads)); }
};

struct ElementPlace {
  int64_t row, column;
  bool inside;  // threads past the last element have none
};
UNIFLUID_DEVICE ElementPlace element_place(const ElementGrid& grid) {
  const int64_t index = int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
  if (index >= grid.count) return {0, 0, false};
  // The 64-bit division is many instructions, and hardly any tensor needs it.
  if (grid.count <= UINT32_MAX) {
    const uint32_t i = static_cast<uint32_t>(index), cols = static_cast<uint32_t>(grid.cols);
    return {i / cols, i % cols, true};
  }
  return {index / grid.cols, index % grid.cols, true};
}

template <class P>
void launch_elements(Queue& queue, void (*kernel)(P), const ElementGrid& grid, const P& params) {
  if (grid.count > 0) queue.launch(kernel, grid.blocks(), dim3(kElementThreads), 0, params);
}

}  // namespace unifluid::cuda
