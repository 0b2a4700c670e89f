// Element types, one into another, on the host.
#pragma once

#include <cstddef>

#include "core/tensor.h"

namespace unifluid {

// Exact. `from` may be unaligned.
void convert_to_float(const void* from, DType type, size_t count, float* to);

// From any type to bfloat16, to nearest even; NaN stays NaN. `from` may be unaligned.
void convert_to_bf16(const void* from, DType type, size_t count, uint16_t* to);

}  // namespace unifluid
