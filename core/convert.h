// Elements of one type into another, and into another order, on the host.
#pragma once

#include <cstddef>

#include "core/tensor.h"

namespace unifluid {

// Exact. `from` may be unaligned.
void convert_to_float(const void* from, DType type, size_t count, float* to);

// From any type to bfloat16, to nearest even; NaN stays NaN. `from` may be unaligned.
void convert_to_bf16(const void* from, DType type, size_t count, uint16_t* to);

// [outer, rows, cols] to [outer, cols, rows], elements of `size` bytes. A convolution's weight
// comes as [out, in, taps] and is used as [out, taps, in], the order of channels-last patches.
void transpose_inner(const void* from, int64_t outer, int64_t rows, int64_t cols, size_t size,
                     void* to);

}  // namespace unifluid
