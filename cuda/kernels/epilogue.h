// The epilogue of products and convolutions: what becomes of their sums.
//   out = residual + activation(sum + bias), or with a gate activation(sum) * other sum
// Kernels of bf16 hold sums in fragments of mma and wgmma, two columns side by side of two rows:
// what is said of all is looked up once for the four, and columns are read and written in pairs.
#pragma once

#include "core/tensor.h"
#include "cuda/device/math.h"
#include "cuda/device/mma.h"
#include "cuda/device/types.h"

namespace unifluid::cuda {

struct Epilogue {
  const float* bias;     // [columns], or null; null with a gate
  const void* residual;  // or null
  void* out;
  int64_t residual_stride, out_stride;
  int32_t rows, columns;
  Activation activation;
  bool float_out;  // and residual, beside bf16 operands
  bool pairs;      // an even column and the next can be read and written at once
};

// What of it a kernel has; the rest is not compiled.
template <bool kGated_, bool kActivation_, bool kFloatOut_, bool kOddColumns_>
struct EpilogueKind {
  static constexpr bool kGated = kGated_;            // all products have a gate, or none
  static constexpr bool kActivation = kActivation_;  // there may be one
  static constexpr bool kFloatOut = kFloatOut_;      // it may hold
  static constexpr bool kOddColumns = kOddColumns_;  // `pairs` may not hold
};

// ---- one element ----

// What is added to the residual.
template <class Kind>
UNIFLUID_DEVICE float finished(const Epilogue& e, int column, float sum, float other) {
  if (!Kind::kGated && e.bias) sum += e.bias[column];
  if constexpr (Kind::kActivation)
    sum = activate(e.activation, make_float4(sum, 0.0f, 0.0f, 0.0f)).x;
  return Kind::kGated ? sum * other : sum;
}

// Writes out[row, column], if there is such an element. T: of the operands.
template <class T>
UNIFLUID_DEVICE void store_output(const Epilogue& e, int row, int column, float v) {
  if (row >= e.rows || column >= e.columns) return;
  const int64_t from = row * e.residual_stride + column, at = row * e.out_stride + column;
  if (e.float_out) {
    if (e.residual) v += static_cast<const float*>(e.residual)[from];
    static_cast<float*>(e.out)[at] = v;
  } else {
    if (e.residual) v += to_float(static_cast<const T*>(e.residual)[from]);
    static_cast<T*>(e.out)[at] = from_float<T>(v);
  }
}

// ---- pairs of columns, the first an even one ----

// Of columns of a product without a gate that has a bias.
template <class Kind>
UNIFLUID_DEVICE float2 bias_pair(const Epilogue& e, int column) {
  float2 bias = make_float2(0.0f, 0.0f);
  if (!Kind::kOddColumns || e.pairs) {
    if (column < e.columns) bias = *reinterpret_cast<const float2*>(e.bias + column);
  } else {
    if (column < e.columns) bias.x = e.bias[column];
    if (column + 1 < e.columns) bias.y = e.bias[column + 1];
  }
  return bias;
}
UNIFLUID_DEVICE void add_bias(FragmentC& sums, float2 bias) {
  for (int i = 0; i < 4; ++i) sums.x[i] += i % 2 ? bias.y : bias.x;
}
UNIFLUID_DEVICE void activate_sums(const Epilogue& e, FragmentC& sums) {
  float(&x)[4] = sums.x;
  const float4 active = activate(e.activation, make_float4(x[0], x[1], x[2], x[3]));
  sums = {{active.x, active.y, active.z, active.w}};
}

// The sums of two rows become what is added to the residual.
template <class Kind>
UNIFLUID_DEVICE void finish(const Epilogue& e, int column, FragmentC& sums,
                            const FragmentC& other) {
  if (!Kind::kGated && e.bias) add_bias(sums, bias_pair<Kind>(e, column));
  if constexpr (Kind::kActivation) activate_sums(e, sums);
  if constexpr (Kind::kGated)
    for (int i = 0; i < 4; ++i) sums.x[i] *= other.x[i];
}
// The same of pieces of 8 columns, the first of which is `column`. Each question is asked once, and
// all biases are on their way before the first is added.
template <class Kind, int kPieces>
UNIFLUID_DEVICE void finish_all(const Epilogue& e, int column, FragmentC* sums,
                                const FragmentC* other) {
  if (!Kind::kGated && e.bias) {
    float2 bias[kPieces];
#pragma unroll
    for (int j = 0; j < kPieces; ++j) bias[j] = bias_pair<Kind>(e, column + 8 * j);
#pragma unroll
    for (int j = 0; j < kPieces; ++j) add_bias(sums[j], bias[j]);
  }
  if (Kind::kActivation && e.activation != Activation::none)
#pragma unroll
    for (int j = 0; j < kPieces; ++j) activate_sums(e, sums[j]);
  if constexpr (Kind::kGated)
#pragma unroll
    for (int j = 0; j < kPieces; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[j].x[i] *= other[j].x[i];
}

UNIFLUID_DEVICE void add_pair(uint32_t pair, float& first, float& second) {
  first += __uint_as_float(pair << 16);
  second += __uint_as_float(pair & 0xffff0000u);
}
template <bool kFloatOut>
UNIFLUID_DEVICE void add_residual(const Epilogue& e, int row, int column, float& first,
                                  float& second) {
  if (!e.residual) return;
  const int64_t at = row * e.residual_stride + column;
  if constexpr (kFloatOut) {
    const float* from = static_cast<const float*>(e.residual) + at;
    const float2 pair = *reinterpret_cast<const float2*>(from);
    first += pair.x;
    second += pair.y;
  } else {
    const bf16* from = static_cast<const bf16*>(e.residual) + at;
    add_pair(*reinterpret_cast<const uint32_t*>(from), first, second);
  }
}

template <class Kind>
UNIFLUID_DEVICE void store_outputs(const Epilogue& e, int row, int column, float first,
                                   float second) {
  if (Kind::kOddColumns && !e.pairs) {
    store_output<bf16>(e, row, column, first);
    store_output<bf16>(e, row, column + 1, second);
    return;
  }
  if (row >= e.rows || column >= e.columns) return;
  const int64_t at = row * e.out_stride + column;
  if (Kind::kFloatOut && e.float_out) {
    add_residual<true>(e, row, column, first, second);
    *reinterpret_cast<float2*>(static_cast<float*>(e.out) + at) = make_float2(first, second);
  } else {
    add_residual<false>(e, row, column, first, second);
    *reinterpret_cast<uint32_t*>(static_cast<bf16*>(e.out) + at) = pack_bf16(first, second);
  }
}

// ---- host ----

inline Epilogue epilogue_of(const Tensor& out, const Tensor& residual, const float* bias,
                            Activation activation) {
  const auto pairs = [](const Tensor& t) {
    return !t ||
           (reinterpret_cast<uintptr_t>(t.data) % (2 * size_of(t.type)) == 0 && t.stride % 2 == 0);
  };
  Epilogue e{};
  e.bias = bias;
  e.residual = residual.data;
  e.out = out.data;
  e.residual_stride = residual.stride;
  e.out_stride = out.stride;
  e.rows = static_cast<int32_t>(out.rows);
  e.columns = static_cast<int32_t>(out.cols);
  e.activation = activation;
  e.float_out = out.type == DType::f32;
  e.pairs = out.cols % 2 == 0 && pairs(out) && pairs(residual) &&
            reinterpret_cast<uintptr_t>(bias) % (2 * sizeof(float)) == 0;
  return e;
}

}  // namespace unifluid::cuda
