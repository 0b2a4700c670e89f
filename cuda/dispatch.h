// What the host code of kernels shares: from a tensor's type to a template's, sizes of grids.
#pragma once

#include "core/tensor.h"
#include "cuda/device/types.h"

namespace unifluid::cuda {

// Calls body(T{}) with the C++ type of `type`: float or bf16.
template <class Body>
void with_type(DType type, Body body) {
  if (type == DType::f32)
    body(float{});
  else
    body(bf16{});
}

// Whether all rows can be read in vectors of 16 bytes.
inline bool aligned16(const Tensor& t) {
  const int64_t step = 16 / static_cast<int64_t>(size_of(t.type));
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.cols % step == 0 &&
         t.stride % step == 0;
}

inline unsigned blocks_for(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

}  // namespace unifluid::cuda
