// A dense row-major matrix in a backend's memory. It owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace unifluid {

enum class DType : uint8_t { f32, f16, bf16 };

inline constexpr size_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }

// `data` may be unaligned where it points into a mapped safetensors file.
struct Tensor {
  void* data = nullptr;
  DType type = DType::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next; at least cols

  Tensor() = default;
  Tensor(void* data_, DType type_, int64_t rows_, int64_t cols_)
      : data(data_), type(type_), rows(rows_), cols(cols_), stride(cols_) {}

  explicit operator bool() const { return data != nullptr; }
  int64_t size() const { return rows * cols; }
  size_t bytes() const { return static_cast<size_t>(size()) * size_of(type); }
  void* row(int64_t index) const {
    return static_cast<char*>(data) + static_cast<size_t>(index * stride) * size_of(type);
  }
  // Rows [first, first + count).
  Tensor slice(int64_t first, int64_t count) const {
    Tensor t = *this;
    t.data = row(first);
    t.rows = count;
    return t;
  }
  // Columns [first, first + count) of every row.
  Tensor columns(int64_t first, int64_t count) const {
    Tensor t = *this;
    t.data = static_cast<char*>(data) + static_cast<size_t>(first) * size_of(type);
    t.cols = count;
    return t;
  }
};

}  // namespace unifluid
