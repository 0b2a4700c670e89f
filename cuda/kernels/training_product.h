// Products of training on Hopper.
#pragma once

#include "core/tensor.h"
#include "cuda/queue.h"

namespace unifluid::cuda {

// out [m, n] = (accumulate ? out : 0) + a b + bias
struct TrainingProduct {
  // bfloat16, in the form that they were made in; rows begin at 16 bytes.
  Tensor a;  // [m, k], or with turned_a [k, m]
  bool turned_a = false;
  Tensor b;  // [n, k], or with turned_b [k, n]
  bool turned_b = false;
  const float* bias = nullptr;
  bool accumulate = false;
  Tensor out;  // float32
  // Whether k may be taken in parts, each with sums of its own: then an output of few tiles keeps
  // all processors busy. The order of sums follows from m, n and k.
  bool parts = false;

  int64_t k() const { return turned_a ? a.rows : a.cols; }
};

// Floats of scratch that `multiply` takes.
size_t partial_sums(const TrainingProduct&);

// Only where `limits().transposed`; not a transposed and b not; k is at least 1. `partial`: scratch
// of `partial_sums`.
void multiply(Queue&, const TrainingProduct&, float* partial);

}  // namespace unifluid::cuda
