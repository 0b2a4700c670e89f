// The operations of core/training_backend.h on a GPU, in cuda/kernels/training_*.cu. Tensors are
// float32. Sums have an order that follows from shapes alone.
#pragma once

#include "core/training_backend.h"
#include "cuda/queue.h"

namespace unifluid::cuda {

void gemm(Queue&, const GemmArgs&);
void column_sum(Queue&, const ColumnSumArgs&);
// Only where `limits().transposed`, and in bfloat16.
void linear_backward(Queue&, const LinearBackwardArgs&);
void add(Queue&, const AddArgs&);
void activation(Queue&, const ActivationArgs&);
void activation_backward(Queue&, const ActivationBackwardArgs&);
void gated(Queue&, const GatedArgs&);
void gated_backward(Queue&, const GatedBackwardArgs&);
void gated_add(Queue&, const GatedAddArgs&);
void gated_add_backward(Queue&, const GatedAddBackwardArgs&);
void rms_norm_backward(Queue&, const RmsNormBackwardArgs&);
void modulated_norm(Queue&, const ModulatedNormArgs&);
void modulated_norm_backward(Queue&, const ModulatedNormBackwardArgs&);
void attention_backward(Queue&, const AttentionBackwardArgs&);
void gather_rows(Queue&, const GatherRowsArgs&);
void scatter_rows(Queue&, const ScatterRowsArgs&);
// The losses [m] in this operation's scratch.
const float* cross_entropy(Queue&, const CrossEntropyArgs&);
void time_features(Queue&, const TimeFeaturesArgs&);
void training_noise(Queue&, const TrainingNoiseArgs&);
void diffuse(Queue&, const DiffuseArgs&);
// The losses [m] in this operation's scratch.
const float* diffusion_loss(Queue&, const DiffusionLossArgs&);
void patches(Queue&, const PatchesArgs&);
void patches_backward(Queue&, const PatchesBackwardArgs&);
void group_norm_backward(Queue&, const GroupNormBackwardArgs&);
void adamw(Queue&, const AdamWArgs&);
// In this operation's scratch.
const double* sum_of_squares(Queue&, const float* values, int64_t count);
void fill(Queue&, const Tensor&, float value);

}  // namespace unifluid::cuda
