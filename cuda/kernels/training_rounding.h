// Operands of training's products in bfloat16.
#pragma once

#include "core/tensor.h"
#include "cuda/queue.h"

namespace unifluid::cuda {

// Operands that are rounded in one launch, into scratch; those that are bfloat16 stay where they
// are.
class RoundedOperands {
 public:
  static constexpr int kMost = 3;
  // Of scratch, for the caller to reserve.
  static size_t bytes(const Tensor& from);

  explicit RoundedOperands(Queue& queue) : queue_(queue) {}
  // What `from` becomes; rows begin at 16 bytes, and what lies behind columns is zeros. `runs`: for
  // the sums of runs of rows of float32, as `add_runs` (training_sums.h) takes them; or null.
  Tensor add(const Tensor& from, float* runs = nullptr);
  void round();

 private:
  struct Operand {
    Tensor from, to;
    float* runs;
  };

  Queue& queue_;
  Operand operands_[kMost];
  int count_ = 0;
};

}  // namespace unifluid::cuda
