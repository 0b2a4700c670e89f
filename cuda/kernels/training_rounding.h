// Operands of training's products in bfloat16.
#pragma once

#include "core/tensor.h"
#include "cuda/queue.h"

namespace unifluid::cuda {

struct Rounding {
  Tensor from;            // float32
  Tensor to;              // bfloat16; rows begin at 16 bytes, and what lies behind columns is zeros
  float* runs = nullptr;  // for `add_runs` (training_sums.h), the sums of runs of rows; or null

  // `from` in memory of `bytes`.
  static Tensor room(const Tensor& from, void* memory);
  static size_t bytes(const Tensor& from);
};

inline constexpr int kMostRounded = 3;
// In one launch.
void round_all(Queue&, const Rounding* operands, int count);

}  // namespace unifluid::cuda
