// The packed forms of gemm.cpp's operands.
#pragma once

#include "cpu/kernels/bf16_pairs.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/gemm_tile.h"

namespace unifluid::cpu::UNIFLUID_ISA {

enum class Form { f32, rounded, pairs };

// How many elements of k one element of the packed forms holds.
constexpr int64_t depth_of(Form form) { return form == Form::pairs ? 2 : 1; }

// low, high: a[0], b[0], a[1], b[1] and so on, in all of low and then high.
UNIFLUID_INLINE void interleave(Vec a, Vec b, Vec* low, Vec* high) {
#if UNIFLUID_SIMD_AVX512
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *low = _mm512_permutex2var_ps(a, first, b);
  *high = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(8)), b);
#elif UNIFLUID_SIMD_AVX2
  const Vec x = _mm256_unpacklo_ps(a, b), y = _mm256_unpackhi_ps(a, b);
  *low = _mm256_permute2f128_ps(x, y, 0x20);
  *high = _mm256_permute2f128_ps(x, y, 0x31);
#elif UNIFLUID_SIMD_SSE2
  *low = _mm_unpacklo_ps(a, b);
  *high = _mm_unpackhi_ps(a, b);
#elif UNIFLUID_SIMD_NEON
  *low = vzip1q_f32(a, b);
  *high = vzip2q_f32(a, b);
#endif
}

// The transpose of kLanes vectors. Take the place of an element as the number whose upper half of
// bits is the vector and whose lower half is the lane: interleaving the first half of the vectors
// with the second rotates those bits by one, and a rotation by half of them is the transpose.
UNIFLUID_INLINE void transpose(Vec* t) {
#pragma GCC unroll 4
  for (int turned = 1; turned < kLanes; turned *= 2) {
    Vec u[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i)
      interleave(t[i], t[i + kLanes / 2], &u[2 * i], &u[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) t[i] = u[i];
  }
}

UNIFLUID_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
UNIFLUID_INLINE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
// The bfloat16 nearest to x, ties to even, in the upper half.
UNIFLUID_INLINE uint32_t rounded_bits(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits | 0x00400000u;  // a NaN stays one
  return (bits + 0x7fffu + ((bits >> 16) & 1)) & 0xffff0000u;
}

// One element of a packed form: x(0), or x(0) and x(1) as a pair, the second being 0 past the end.
template <Form form, class Get>
UNIFLUID_INLINE float element(Get x, bool second) {
  if constexpr (form == Form::f32) return x(0);
  if constexpr (form == Form::rounded) return float_of(rounded_bits(x(0)));
  const uint32_t low = rounded_bits(x(0)) >> 16;
  const uint32_t high = second ? rounded_bits(x(1)) : 0;
  return float_of(high | low);
}

// Steps [0, count) of a line along k, at most whole vectors of them: how many were packed. Elements
// of k lie together.
template <Form form>
UNIFLUID_INLINE int64_t pack_along(const float* from, int64_t count, float* out) {
  int64_t s = 0;
  if constexpr (form == Form::pairs)
    for (; s + kLanes <= count; s += kLanes)
      store(out + s, round_neighbours(load(from + 2 * s), load(from + 2 * s + kLanes)));
  return s;
}

// One step of `count` lines that lie together: how many were packed. `next`: the second element of
// each pair, or null past the end.
template <Form form>
UNIFLUID_INLINE int64_t pack_across(const float* from, const float* next, int64_t count,
                                    float* out) {
  if constexpr (form != Form::pairs) return 0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store(out + i, round_across(load(from + i), next ? load(next + i) : zero()));
  if (i < count) {
    const int n = static_cast<int>(count - i);
    store_n(out + i, round_across(load_n(from + i, n), next ? load_n(next + i, n) : zero()), n);
  }
  return count;
}

// The same of elements that are bfloat16 already, as pairs.
UNIFLUID_INLINE void join_across(const BFloat16* from, const BFloat16* next, int64_t count,
                                 float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store(out + i, join_n(from + i, next ? next + i : nullptr, kLanes));
  const int rest = static_cast<int>(count - i);
  if (rest > 0) store_n(out + i, join_n(from + i, next ? next + i : nullptr, rest), rest);
}

// Columns [0, columns) of a vector of columns, at most kLanes, each contiguous in memory and
// `stride` from the next, as whole vectors of steps of a panel: how many steps were packed.
template <Form form>
UNIFLUID_INLINE int64_t pack_turned(const float* from, int64_t stride, int64_t columns,
                                    int64_t steps, float* out) {
  int64_t s = 0;
  for (; s + kLanes <= steps; s += kLanes) {
    Vec t[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      const float* at = from + j * stride + s * depth_of(form);
      if (j >= columns)
        t[j] = zero();
      else if constexpr (form == Form::pairs)
        t[j] = round_neighbours(load(at), load(at + kLanes));
      else
        t[j] = load(at);
    }
    transpose(t);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      float* to = out + (s + i) * kPanel;
      store(to, t[i]);
      if constexpr (form == Form::rounded)
        for (int j = 0; j < kLanes; ++j) to[j] = float_of(rounded_bits(to[j]));
    }
  }
  return s;
}

// Columns [column, column + kPanel) of b as a panel: out[step][kPanel]. If b is rounded its columns
// lie together.
template <Form form>
static void pack_panel(View b, int64_t k, int64_t column, int64_t n, float* out) {
  constexpr int64_t depth = depth_of(form);
  const int64_t columns = smaller(kPanel, n - column), steps = divide_up(k, depth);
  const float* from = b.data + column * b.column;
  if (b.column == 1) {
    for (int64_t s = 0; s < steps; ++s) {
      const bool second = s * depth + 1 < k;
      float* to = out + s * kPanel;
      if (b.rounded) {
        const BFloat16* row = rounded_data(b) + column + s * depth * b.row;
        join_across(row, second ? row + b.row : nullptr, columns, to);
        for (int64_t j = columns; j < kPanel; ++j) to[j] = 0;
        continue;
      }
      const float* row = from + s * depth * b.row;
      const int64_t packed = pack_across<form>(row, second ? row + b.row : nullptr, columns, to);
#pragma GCC ivdep
      for (int64_t j = packed; j < columns; ++j)
        to[j] = element<form>([&](int64_t d) { return row[d * b.row + j]; }, second);
      for (int64_t j = columns; j < kPanel; ++j) to[j] = 0;
    }
    return;
  }
  const int64_t whole = k / depth;  // without half of a pair
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    const float* source = from + j * b.column;
    const int64_t here = smaller(kLanes, columns - j);
    const int64_t packed = pack_turned<form>(source, b.column, here, whole, out + j);
    for (int64_t s = packed; s < steps; ++s)
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* at = source + i * b.column + s * depth;
        out[s * kPanel + j + i] =
            i < here ? element<form>([&](int64_t d) { return at[d]; }, s < whole) : 0;
      }
  }
}

// Pairs of rows [0, rows) and steps [first, end) of a, which is rounded.
static void join_rows(View a, int64_t rows, int64_t k, int64_t first, int64_t end, float* out,
                      int64_t row, int64_t column) {
  if (a.column != 1) {
    for (int64_t s = first; s < end; ++s) {
      const BFloat16* from = rounded_data(a) + 2 * s * a.column;
      join_across(from, 2 * s + 1 < k ? from + a.column : nullptr, rows,
                  out + (s - first) * column);
    }
    return;
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t s = first; s < end; ++s) {
      const BFloat16* from = rounded_data(a) + i * a.row + 2 * s;
      const uint32_t high = 2 * s + 1 < k ? from[1].bits : 0;
      out[i * row + s - first] = float_of(high << 16 | from[0].bits);
    }
}

// Rows [0, rows) and steps [first, end) of a, rounded: out[i * row + s * column].
template <Form form>
static void pack_rows(View a, int64_t rows, int64_t k, int64_t first, int64_t end, float* out,
                      int64_t row, int64_t column) {
  constexpr int64_t depth = depth_of(form);
  if (a.rounded) return join_rows(a, rows, k, first, end, out, row, column);
  if (a.column == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = a.data + i * a.row;
      float* to = out + i * row;
      const int64_t whole = smaller(end, k / depth);
      const int64_t packed = pack_along<form>(from + first * depth, whole - first, to);
#pragma GCC ivdep
      for (int64_t s = first + packed; s < whole; ++s)
        to[s - first] = element<form>([&](int64_t d) { return from[s * depth + d]; }, true);
      for (int64_t s = whole < first ? first : whole; s < end; ++s)
        to[s - first] = element<form>([&](int64_t d) { return from[s * depth + d]; }, false);
    }
  } else {
    for (int64_t s = first; s < end; ++s) {
      const float* from = a.data + s * depth * a.column;
      const bool second = s * depth + 1 < k;
      float* to = out + (s - first) * column;
      const int64_t packed = pack_across<form>(from, second ? from + a.column : nullptr, rows, to);
#pragma GCC ivdep
      for (int64_t i = packed; i < rows; ++i)
        to[i] = element<form>([&](int64_t d) { return from[i + d * a.column]; }, second);
    }
  }
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
