// Resampling of RGB images with the results of Pillow's `Image.resize`, byte for byte.
//
// Checkpoints are trained on pictures that Pillow resized, and a model sees differences that people
// do not. So this is Pillow's algorithm in its own arithmetic: a separable filter whose support
// grows with the reduction (antialiasing), coefficients in fixed point, and rounding to bytes
// between the passes. The code follows Pillow's src/libImaging/Resample.c; THIRD_PARTY_NOTICES.md
// has its license.
#pragma once

#include <cstdint>

namespace unifluid {

// Half-widths in source pixels at scale 1: -, 1, 2 (Keys' cubic with a = -1/2), 3.
enum class ResizeFilter : uint8_t { nearest, bilinear, bicubic, lanczos };

// source [height, width, 3] -> target [to_height, to_width, 3], both packed. Nothing overlaps.
// All sizes lie in 1..kMaxResizeSide; throws INVALID_ARGUMENT otherwise, std::bad_alloc where the
// intermediate image finds no memory: [height, to_width, 3], of very tall ones [to_height, width,
// 3].
inline constexpr int64_t kMaxResizeSide = 1 << 20;
void resize_rgb(const uint8_t* source, int64_t width, int64_t height, uint8_t* target,
                int64_t to_width, int64_t to_height, ResizeFilter filter);

}  // namespace unifluid
