#include "core/error.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
void gemm(Queue&, const GemmArgs&) { throw Error(error_code::kInternal, "missing gemm"); }
void column_sum(Queue&, const ColumnSumArgs&) {
  throw Error(error_code::kInternal, "missing column_sum");
}
void add(Queue&, const AddArgs&) { throw Error(error_code::kInternal, "missing add"); }
void activation(Queue&, const ActivationArgs&) {
  throw Error(error_code::kInternal, "missing activation");
}
void activation_backward(Queue&, const ActivationBackwardArgs&) {
  throw Error(error_code::kInternal, "missing activation_backward");
}
void gated(Queue&, const GatedArgs&) { throw Error(error_code::kInternal, "missing gated"); }
void gated_backward(Queue&, const GatedBackwardArgs&) {
  throw Error(error_code::kInternal, "missing gated_backward");
}
void gated_add(Queue&, const GatedAddArgs&) {
  throw Error(error_code::kInternal, "missing gated_add");
}
void gated_add_backward(Queue&, const GatedAddBackwardArgs&) {
  throw Error(error_code::kInternal, "missing gated_add_backward");
}
void rms_norm_backward(Queue&, const RmsNormBackwardArgs&) {
  throw Error(error_code::kInternal, "missing rms_norm_backward");
}
void modulated_norm(Queue&, const ModulatedNormArgs&) {
  throw Error(error_code::kInternal, "missing modulated_norm");
}
void modulated_norm_backward(Queue&, const ModulatedNormBackwardArgs&) {
  throw Error(error_code::kInternal, "missing modulated_norm_backward");
}
void attention_backward(Queue&, const AttentionBackwardArgs&) {
  throw Error(error_code::kInternal, "missing attention_backward");
}
void gather_rows(Queue&, const GatherRowsArgs&) {
  throw Error(error_code::kInternal, "missing gather_rows");
}
void scatter_rows(Queue&, const ScatterRowsArgs&) {
  throw Error(error_code::kInternal, "missing scatter_rows");
}
const float* cross_entropy(Queue&, const CrossEntropyArgs&) {
  throw Error(error_code::kInternal, "missing cross_entropy");
}
void time_features(Queue&, const TimeFeaturesArgs&) {
  throw Error(error_code::kInternal, "missing time_features");
}
void training_noise(Queue&, const TrainingNoiseArgs&) {
  throw Error(error_code::kInternal, "missing training_noise");
}
void diffuse(Queue&, const DiffuseArgs&) { throw Error(error_code::kInternal, "missing diffuse"); }
const float* diffusion_loss(Queue&, const DiffusionLossArgs&) {
  throw Error(error_code::kInternal, "missing diffusion_loss");
}
void patches(Queue&, const PatchesArgs&) { throw Error(error_code::kInternal, "missing patches"); }
void patches_backward(Queue&, const PatchesBackwardArgs&) {
  throw Error(error_code::kInternal, "missing patches_backward");
}
void group_norm_backward(Queue&, const GroupNormBackwardArgs&) {
  throw Error(error_code::kInternal, "missing group_norm_backward");
}
void adamw(Queue&, const AdamWArgs&) { throw Error(error_code::kInternal, "missing adamw"); }
const double* sum_of_squares(Queue&, const float* values, int64_t count) {
  throw Error(error_code::kInternal, "missing sum_of_squares");
}
void fill(Queue&, const Tensor&, float value) {
  throw Error(error_code::kInternal, "missing fill");
}
}  // namespace unifluid::cuda
