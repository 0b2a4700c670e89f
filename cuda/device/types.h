// The two types that kernels compute on, float and bf16, and vectors of them.
#pragma once

#include "cuda/device/platform.h"

namespace unifluid::cuda {

// bfloat16 as stored. Arithmetic is done in float.
struct bf16 {
  uint16_t bits;
};

UNIFLUID_DEVICE float to_float(float v) { return v; }
UNIFLUID_DEVICE float to_float(bf16 v) {
  return __uint_as_float(static_cast<uint32_t>(v.bits) << 16);
}

// Two values rounded to nearest even, the first in the low half.
UNIFLUID_DEVICE uint32_t pack_bf16(float low, float high) {
#ifdef UNIFLUID_SIMT
  return simt::bf16_bits(low) | static_cast<uint32_t>(simt::bf16_bits(high)) << 16;
#else
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#endif
}

template <class T>
UNIFLUID_DEVICE T from_float(float v);
template <>
UNIFLUID_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
UNIFLUID_DEVICE bf16 from_float<bf16>(float v) {
  return bf16{static_cast<uint16_t>(pack_bf16(v, 0.0f))};
}

// What storing in T and loading again gives.
template <class T>
UNIFLUID_DEVICE float rounded(float v) {
  return to_float(from_float<T>(v));
}

// 16 bytes of T: 4 floats or 8 bf16. `at` must be aligned to 16 bytes.
template <class T>
struct Vector {
  static constexpr int kSize = 16 / sizeof(T);
  float value[kSize];
};
template <class T>
UNIFLUID_DEVICE Vector<T> load_vector(const T* at) {
  const uint4 raw = *reinterpret_cast<const uint4*>(at);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  Vector<T> v;
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      v.value[i] = __uint_as_float(words[i]);
    } else {
      v.value[2 * i] = __uint_as_float(words[i] << 16);
      v.value[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  return v;
}
template <class T>
UNIFLUID_DEVICE void store_vector(T* at, const Vector<T>& v) {
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4)
      words[i] = __float_as_uint(v.value[i]);
    else
      words[i] = pack_bf16(v.value[2 * i], v.value[2 * i + 1]);
  }
  *reinterpret_cast<uint4*>(at) = make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace unifluid::cuda
