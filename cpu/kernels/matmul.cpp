// The matrix product of matmul.h.
#include "cpu/kernels/matmul.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

template <class W>
void multiply(const float* x, int64_t x_stride, int64_t rows, const W* weight,
              int64_t weight_stride, int64_t k, int64_t count, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < count; ++j) {
      const float* a = x + i * x_stride;
      const W* b = weight + j * weight_stride;
      Vec acc = zero();
      int64_t c = 0;
      for (; c + kLanes <= k; c += kLanes) acc = fma(load(a + c), load(b + c), acc);
      if (c < k) {
        const int n = static_cast<int>(k - c);
        acc = fma(load_n(a + c, n), load_n(b + c, n), acc);
      }
      out[i * out_stride + j] = sum(acc);
    }
  }
}

}  // namespace

void matmul(const float* x, int64_t x_stride, int64_t rows, const Tensor& weight, int64_t first,
            int64_t count, float* out, int64_t out_stride, void* scratch) {
  const void* w = weight.row(first);
  const int64_t stride = weight.stride;
  const int64_t k = weight.cols;
  switch (weight.type) {
    case DType::f32:
      return multiply(x, x_stride, rows, static_cast<const float*>(w), stride, k, count, out,
                      out_stride);
    case DType::f16:
      return multiply(x, x_stride, rows, static_cast<const Float16*>(w), stride, k, count, out,
                      out_stride);
    case DType::bf16:
      return multiply(x, x_stride, rows, static_cast<const BFloat16*>(w), stride, k, count, out,
                      out_stride);
  }
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
