// One vector of floats, as wide as the instruction set this file is compiled for.
//
// Every file of cpu/kernels/ is compiled once per instruction set, with UNIFLUID_ISA naming the
// namespace that its functions live in, so that the variants lie side by side in one addon and the
// best is chosen at load (cpu/instruction_sets.cpp). Such files include no header that defines
// inline functions outside of that namespace (no <vector>, <algorithm>, <cmath>): the linker keeps
// only one copy of those, and it could be the one compiled for a processor that we are not on. A
// test checks the objects for such symbols.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef UNIFLUID_ISA
#error "compile with -DUNIFLUID_ISA=baseline, avx2, avx512 or neon"
#endif

#if defined(__AVX512F__)
#define UNIFLUID_SIMD_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__)
#define UNIFLUID_SIMD_AVX2 1
#include <immintrin.h>
#elif defined(__SSE2__)
#define UNIFLUID_SIMD_SSE2 1
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#define UNIFLUID_SIMD_NEON 1
#include <arm_neon.h>
#else
#error "no vector instructions that cpu/simd.h knows"
#endif

#define UNIFLUID_INLINE static inline __attribute__((always_inline))

namespace unifluid::cpu::UNIFLUID_ISA {

// What <algorithm> may not be included for.
UNIFLUID_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
UNIFLUID_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
UNIFLUID_INLINE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// ---- the vector type and what the hardware does with it ----
// load_n and store_n touch only the first n elements (0 <= n <= kLanes); the other lanes load as 0.

#if UNIFLUID_SIMD_AVX512

using Vec = __m512;
using Mask = __mmask16;
inline constexpr int kLanes = 16;
// Vector registers, for the choice of tile sizes.
inline constexpr int kRegisters = 32;

UNIFLUID_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
UNIFLUID_INLINE Vec zero() { return _mm512_setzero_ps(); }
UNIFLUID_INLINE Vec set1(float x) { return _mm512_set1_ps(x); }
UNIFLUID_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
UNIFLUID_INLINE Vec load_n(const float* p, int n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
UNIFLUID_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
UNIFLUID_INLINE void store_n(float* p, Vec v, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}
UNIFLUID_INLINE Vec from_bf16(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
UNIFLUID_INLINE Vec load(const BFloat16* p) {
  return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
UNIFLUID_INLINE Vec load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
UNIFLUID_INLINE Vec load_n(const BFloat16* p, int n) {
  return from_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
UNIFLUID_INLINE Vec load_n(const Float16* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
UNIFLUID_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
UNIFLUID_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
UNIFLUID_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
UNIFLUID_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
UNIFLUID_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
UNIFLUID_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
UNIFLUID_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
UNIFLUID_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
UNIFLUID_INLINE Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
UNIFLUID_INLINE Vec round(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// 2^n for whole n in [-126, 127]
UNIFLUID_INLINE Vec pow2(Vec n) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
UNIFLUID_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
// a's magnitude with the sign of s
UNIFLUID_INLINE Vec copy_sign(Vec a, Vec s) {
  const __m512i bit = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_andnot_si512(bit, _mm512_castps_si512(a)),
                                             _mm512_and_si512(bit, _mm512_castps_si512(s))));
}
UNIFLUID_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
// m ? a : b
UNIFLUID_INLINE Vec select(Mask m, Vec a, Vec b) { return _mm512_mask_blend_ps(m, b, a); }
UNIFLUID_INLINE __m128 fold_to_4(Vec v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}
// Each of these adds the halves of runs of 16, 8, 4 or 2 lanes, of a in the low or even places of
// the result and of b in the others.
UNIFLUID_INLINE Vec fold16(Vec a, Vec b) {
  return add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
UNIFLUID_INLINE Vec fold8(Vec a, Vec b) {
  return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
UNIFLUID_INLINE Vec fold4(Vec a, Vec b) {
  return add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
UNIFLUID_INLINE Vec fold2(Vec a, Vec b) {
  return add(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

#elif UNIFLUID_SIMD_AVX2

using Vec = __m256;
using Mask = __m256;
inline constexpr int kLanes = 8;
inline constexpr int kRegisters = 16;

UNIFLUID_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
UNIFLUID_INLINE Vec zero() { return _mm256_setzero_ps(); }
UNIFLUID_INLINE Vec set1(float x) { return _mm256_set1_ps(x); }
UNIFLUID_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
UNIFLUID_INLINE Vec load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
UNIFLUID_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
UNIFLUID_INLINE void store_n(float* p, Vec v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
UNIFLUID_INLINE Vec load(const BFloat16* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
UNIFLUID_INLINE Vec load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
UNIFLUID_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
UNIFLUID_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
UNIFLUID_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
UNIFLUID_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
UNIFLUID_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
UNIFLUID_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
UNIFLUID_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
UNIFLUID_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
UNIFLUID_INLINE Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
UNIFLUID_INLINE Vec round(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
UNIFLUID_INLINE Vec pow2(Vec n) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
UNIFLUID_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
UNIFLUID_INLINE Vec copy_sign(Vec a, Vec s) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(bit, a), _mm256_and_ps(bit, s));
}
UNIFLUID_INLINE Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
UNIFLUID_INLINE Vec select(Mask m, Vec a, Vec b) { return _mm256_blendv_ps(b, a, m); }
UNIFLUID_INLINE __m128 fold_to_4(Vec v) {
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
UNIFLUID_INLINE Vec fold8(Vec a, Vec b) {
  return add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
UNIFLUID_INLINE Vec fold4(Vec a, Vec b) {
  return add(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}
UNIFLUID_INLINE Vec fold2(Vec a, Vec b) {
  return add(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

#elif UNIFLUID_SIMD_SSE2

using Vec = __m128;
using Mask = __m128;
inline constexpr int kLanes = 4;
inline constexpr int kRegisters = 16;

UNIFLUID_INLINE Vec zero() { return _mm_setzero_ps(); }
UNIFLUID_INLINE Vec set1(float x) { return _mm_set1_ps(x); }
UNIFLUID_INLINE Vec load(const float* p) { return _mm_loadu_ps(p); }
UNIFLUID_INLINE Vec load_n(const float* p, int n) {
  if (n == kLanes) return load(p);
  float t[4] = {0, 0, 0, 0};
  for (int i = 0; i < n; ++i) __builtin_memcpy(t + i, p + i, 4);
  return _mm_loadu_ps(t);
}
UNIFLUID_INLINE void store(float* p, Vec v) { _mm_storeu_ps(p, v); }
UNIFLUID_INLINE void store_n(float* p, Vec v, int n) {
  if (n == kLanes) return store(p, v);
  float t[4];
  _mm_storeu_ps(t, v);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}
UNIFLUID_INLINE Vec load(const BFloat16* p) {
  const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), v));
}
// Exact for all values, infinities, NaN and subnormals included, without F16C: the magnitude is
// moved into float's exponent field and scaled by 2^112, which multiplies subnormals right as well.
UNIFLUID_INLINE Vec load(const Float16* p) {
  const __m128i h =
      _mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
  const __m128i magnitude = _mm_and_si128(h, _mm_set1_epi32(0x7fff));
  const __m128i sign = _mm_slli_epi32(_mm_xor_si128(h, magnitude), 16);
  const __m128 scaled = _mm_mul_ps(_mm_castsi128_ps(_mm_slli_epi32(magnitude, 13)),
                                   _mm_castsi128_ps(_mm_set1_epi32(0x77800000)));
  const __m128i special =
      _mm_and_si128(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7bff)), _mm_set1_epi32(0x7f800000));
  return _mm_or_ps(_mm_castsi128_ps(_mm_or_si128(sign, special)), scaled);
}
UNIFLUID_INLINE Vec add(Vec a, Vec b) { return _mm_add_ps(a, b); }
UNIFLUID_INLINE Vec sub(Vec a, Vec b) { return _mm_sub_ps(a, b); }
UNIFLUID_INLINE Vec mul(Vec a, Vec b) { return _mm_mul_ps(a, b); }
UNIFLUID_INLINE Vec div(Vec a, Vec b) { return _mm_div_ps(a, b); }
UNIFLUID_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
UNIFLUID_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm_sub_ps(c, _mm_mul_ps(a, b)); }
UNIFLUID_INLINE Vec min(Vec a, Vec b) { return _mm_min_ps(a, b); }
UNIFLUID_INLINE Vec max(Vec a, Vec b) { return _mm_max_ps(a, b); }
UNIFLUID_INLINE Vec sqrt(Vec a) { return _mm_sqrt_ps(a); }
// For magnitudes below 2^31, which is all that exp asks for.
UNIFLUID_INLINE Vec round(Vec a) { return _mm_cvtepi32_ps(_mm_cvtps_epi32(a)); }
UNIFLUID_INLINE Vec pow2(Vec n) {
  return _mm_castsi128_ps(
      _mm_slli_epi32(_mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127)), 23));
}
UNIFLUID_INLINE Vec abs(Vec a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
UNIFLUID_INLINE Vec copy_sign(Vec a, Vec s) {
  const __m128 bit = _mm_set1_ps(-0.0f);
  return _mm_or_ps(_mm_andnot_ps(bit, a), _mm_and_ps(bit, s));
}
UNIFLUID_INLINE Mask less(Vec a, Vec b) { return _mm_cmplt_ps(a, b); }
UNIFLUID_INLINE Vec select(Mask m, Vec a, Vec b) {
  return _mm_or_ps(_mm_and_ps(m, a), _mm_andnot_ps(m, b));
}
UNIFLUID_INLINE __m128 fold_to_4(Vec v) { return v; }
UNIFLUID_INLINE Vec fold4(Vec a, Vec b) {
  return add(_mm_shuffle_ps(a, b, 0x44), _mm_shuffle_ps(a, b, 0xee));
}
UNIFLUID_INLINE Vec fold2(Vec a, Vec b) {
  return add(_mm_shuffle_ps(a, b, 0x88), _mm_shuffle_ps(a, b, 0xdd));
}

#elif UNIFLUID_SIMD_NEON

using Vec = float32x4_t;
using Mask = uint32x4_t;
inline constexpr int kLanes = 4;
inline constexpr int kRegisters = 32;

UNIFLUID_INLINE Vec zero() { return vdupq_n_f32(0); }
UNIFLUID_INLINE Vec set1(float x) { return vdupq_n_f32(x); }
UNIFLUID_INLINE Vec load(const float* p) { return vld1q_f32(p); }
UNIFLUID_INLINE Vec load_n(const float* p, int n) {
  if (n == kLanes) return load(p);
  float t[4] = {0, 0, 0, 0};
  for (int i = 0; i < n; ++i) __builtin_memcpy(t + i, p + i, 4);
  return vld1q_f32(t);
}
UNIFLUID_INLINE void store(float* p, Vec v) { vst1q_f32(p, v); }
UNIFLUID_INLINE void store_n(float* p, Vec v, int n) {
  if (n == kLanes) return store(p, v);
  float t[4];
  vst1q_f32(t, v);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}
UNIFLUID_INLINE Vec load(const BFloat16* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
}
UNIFLUID_INLINE Vec load(const Float16* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
}
UNIFLUID_INLINE Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
UNIFLUID_INLINE Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
UNIFLUID_INLINE Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
UNIFLUID_INLINE Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
UNIFLUID_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
UNIFLUID_INLINE Vec fnma(Vec a, Vec b, Vec c) { return vfmsq_f32(c, a, b); }
UNIFLUID_INLINE Vec min(Vec a, Vec b) { return vminq_f32(a, b); }
UNIFLUID_INLINE Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
UNIFLUID_INLINE Vec sqrt(Vec a) { return vsqrtq_f32(a); }
UNIFLUID_INLINE Vec round(Vec a) { return vrndnq_f32(a); }
UNIFLUID_INLINE Vec pow2(Vec n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
UNIFLUID_INLINE Vec abs(Vec a) { return vabsq_f32(a); }
UNIFLUID_INLINE Vec copy_sign(Vec a, Vec s) { return vbslq_f32(vdupq_n_u32(0x80000000u), s, a); }
UNIFLUID_INLINE Mask less(Vec a, Vec b) { return vcltq_f32(a, b); }
UNIFLUID_INLINE Vec select(Mask m, Vec a, Vec b) { return vbslq_f32(m, a, b); }
UNIFLUID_INLINE Vec fold4(Vec a, Vec b) {
  return add(vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
             vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
}
UNIFLUID_INLINE Vec fold2(Vec a, Vec b) { return vpaddq_f32(a, b); }

#endif

// ---- the same for every width ----

#if !UNIFLUID_SIMD_AVX512
template <class T>
UNIFLUID_INLINE Vec load_half_n(const T* p, int n) {
  T t[kLanes] = {};
  for (int i = 0; i < n; ++i) __builtin_memcpy(t + i, p + i, sizeof(T));
  return load(t);
}
UNIFLUID_INLINE Vec load_n(const BFloat16* p, int n) { return load_half_n(p, n); }
UNIFLUID_INLINE Vec load_n(const Float16* p, int n) { return load_half_n(p, n); }
#endif

// The upper half of the lanes is added to the lower half until one is left. Every sum over lanes
// has this order.
UNIFLUID_INLINE float sum(Vec v) {
#if UNIFLUID_SIMD_NEON
  const float32x2_t pair = vadd_f32(vget_low_f32(v), vget_high_f32(v));
  return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
#else
  const __m128 four = fold_to_4(v);
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#endif
}
// Lane i of the result is sum(v[i]), for i < kLanes, bit for bit.
UNIFLUID_INLINE Vec sums(const Vec* v) {
  Vec t[kLanes] = {v[0], v[1], v[2], v[3]};
#if UNIFLUID_SIMD_AVX512
  // Lane 8 i + 4 j + 2 k + l of the result comes from v[8 i + 4 j + 2 k + l]: i is chosen by fold8,
  // j by fold16, k by fold2 and l by fold4.
  for (int i = 0; i < 8; ++i) t[i] = fold16(v[i % 4 + i / 4 * 8], v[i % 4 + i / 4 * 8 + 4]);
  for (int i = 0; i < 4; ++i) t[i] = fold8(t[i], t[i + 4]);
#elif UNIFLUID_SIMD_AVX2
  for (int i = 0; i < 4; ++i) t[i] = fold8(v[i], v[i + 4]);
#endif
  return fold2(fold4(t[0], t[1]), fold4(t[2], t[3]));
}
// Of numbers; where a lane is none, any of the lanes.
UNIFLUID_INLINE float max_of(Vec v) {
  float t[kLanes];
  store(t, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) t[i] = t[i] > t[i + width] ? t[i] : t[i + width];
  return t[0];
}

// `min` and `max` of x86 give their second operand where either is no number, so what comes from a
// tensor stands there: a NaN must not become one of the bounds, or a model with broken weights
// would answer as if it were sound.

// e^x to about 2 units in the last place; 0 below -87.3, and held at e^88 above 88 (no caller of
// ours can use more, and it keeps infinities out). NaN of NaN. Range reduction by ln 2 in two
// parts, then the polynomial of Cephes' expf.
UNIFLUID_INLINE Vec exp(Vec x) {
  const Vec low = set1(-87.3f);
  const Mask tiny = less(x, low);
  x = min(set1(88.0f), max(low, x));
  const Vec n = round(mul(x, set1(1.44269504088896341f)));
  Vec r = fnma(n, set1(0.693359375f), x);
  r = fnma(n, set1(-2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(mul(r, r), p, r), set1(1.0f));
  return select(tiny, zero(), mul(p, pow2(n)));
}

// tanh: a polynomial near 0, where the quotient would cancel, and 1 - 2 / (e^2|x| + 1) elsewhere.
UNIFLUID_INLINE Vec tanh(Vec x) {
  const Vec a = abs(x);
  const Vec s = mul(x, x);
  Vec p = set1(-5.70498872745e-3f);
  p = fma(p, s, set1(2.06390887954e-2f));
  p = fma(p, s, set1(-5.37397155531e-2f));
  p = fma(p, s, set1(1.33314422036e-1f));
  p = fma(p, s, set1(-3.33332819422e-1f));
  const Vec near = fma(mul(p, s), x, x);
  const Vec e = exp(min(set1(40.0f), add(a, a)));
  const Vec far = sub(set1(1.0f), div(set1(2.0f), add(e, set1(1.0f))));
  return select(less(a, set1(0.625f)), near, copy_sign(far, x));
}

// cap tanh(x / cap). An infinite x is no large number but the trace of a broken weight, which the
// cap would hide: it becomes NaN. The last term is 0 for all others.
UNIFLUID_INLINE Vec soft_capped(Vec x, Vec cap) {
  return fma(x, zero(), mul(cap, tanh(div(x, cap))));
}

UNIFLUID_INLINE Vec silu(Vec x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

UNIFLUID_INLINE Vec gelu_tanh(Vec x) {
  const Vec inner = mul(set1(0.7978845608028654f), fma(mul(mul(x, x), x), set1(0.044715f), x));
  return mul(mul(set1(0.5f), x), add(set1(1.0f), tanh(inner)));
}

// erf by Abramowitz and Stegun 7.1.26 would leave 1e-7 errors; this takes libm's, lane by lane: the
// exact GELU occurs only in checkpoints whose hidden_act says "gelu".
UNIFLUID_INLINE Vec gelu_erf(Vec x) {
  float t[kLanes];
  store(t, x);
  for (int i = 0; i < kLanes; ++i)
    t[i] = 0.5f * t[i] * (1.0f + __builtin_erff(t[i] * 0.70710678118654752f));
  return load(t);
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
