// The update of parameters.
#include "cuda/kernels/training_elements.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

// Elements that a thread takes, a block's width apart.
constexpr int kEach = 4;
constexpr int64_t kBlockElements = int64_t{kEach} * kElementThreads;

__global__ void __launch_bounds__(kElementThreads) adamw_run(AdamWArgs a) {
  const float inverse1 = 1 / a.correction1, inverse2 = 1 / a.correction2;
  const float shrink = 1 - a.rate * a.decay;
  const int64_t first = blockIdx.x * kBlockElements + threadIdx.x;
  for (int64_t i = first; i < first + kBlockElements && i < a.count; i += kElementThreads) {
    const float g = a.gradient[i] * a.gradient_scale;
    const float m = fmaf(a.beta1, a.first[i], (1 - a.beta1) * g);
    const float v = fmaf(a.beta2, a.second[i], (1 - a.beta2) * (g * g));
    a.first[i] = m;
    a.second[i] = v;
    const float step = m * inverse1 / (sqrtf(v * inverse2) + a.epsilon);
    const float value = fmaf(-a.rate, step, shrink * a.value[i]);
    a.value[i] = value;
    if (a.average) a.average[i] = fmaf(a.average_keep, a.average[i], (1 - a.average_keep) * value);
  }
}

}  // namespace

void adamw(Queue& queue, const AdamWArgs& args) {
  if (args.count == 0) return;
  queue.launch(adamw_run, dim3(blocks_for(args.count, kBlockElements)), dim3(kElementThreads), 0,
               args);
}

}  // namespace unifluid::cuda
