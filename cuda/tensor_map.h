// Maps of matrices and images for Hopper's bulk copies: 128 opaque bytes that a kernel gets as a
// parameter.
#pragma once

#include <cuda.h>

#include "core/tensor.h"

namespace unifluid::cuda {

using TensorMap = CUtensorMap;

// Columns of a box: 128 bytes of bfloat16, a row of the swizzle.
inline constexpr int kBoxColumns = 64;

// Whether the driver here makes such maps.
bool has_tensor_maps();

// For boxes of `box_rows` rows (at most 256) and kBoxColumns columns of a bfloat16 matrix that is
// `aligned16`. Throws DEVICE_ERROR.
TensorMap tensor_map(const Tensor& matrix, int box_rows);

// For boxes of box_height x box_width pixels and kBoxColumns channels of an image, whose rows are
// pixels, `width` to a line. As above.
TensorMap image_map(const Tensor& image, int64_t width, int box_width, int box_height);

}  // namespace unifluid::cuda
