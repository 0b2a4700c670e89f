#include "core/convert.h"

#include <bit>
#include <cstring>

namespace unifluid {
namespace {

float float_of_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

// Exact. A subnormal half is its 10 bits times 2^-24.
float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 31;
  const uint32_t fraction = bits & 1023;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return float_of_bits(sign | wide << 23 | fraction << 13);
}

uint16_t bf16_of(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
T load(const void* from, size_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(from) + index * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

void convert_to_float(const void* from, DType type, size_t count, float* to) {
  if (type == DType::f32) {
    if (count) std::memcpy(to, from, count * sizeof(float));
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    const auto bits = load<uint16_t>(from, i);
    to[i] = type == DType::bf16 ? float_of_bits(static_cast<uint32_t>(bits) << 16)
                                : half_to_float(bits);
  }
}

void convert_to_bf16(const void* from, DType type, size_t count, uint16_t* to) {
  if (type == DType::bf16) {
    if (count) std::memcpy(to, from, count * sizeof(uint16_t));
    return;
  }
  for (size_t i = 0; i < count; ++i)
    to[i] =
        bf16_of(type == DType::f32 ? load<float>(from, i) : half_to_float(load<uint16_t>(from, i)));
}

void transpose_inner(const void* from, int64_t outer, int64_t rows, int64_t cols, size_t size,
                     void* to) {
  const char* matrix = static_cast<const char*>(from);
  char* out = static_cast<char*>(to);
  for (int64_t o = 0; o < outer; ++o, matrix += static_cast<size_t>(rows * cols) * size)
    for (int64_t c = 0; c < cols; ++c)
      for (int64_t r = 0; r < rows; ++r, out += size)
        std::memcpy(out, matrix + static_cast<size_t>(r * cols + c) * size, size);
}

}  // namespace unifluid
