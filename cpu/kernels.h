// The operations of core/backend.h for one instruction set: a table of functions that
// cpu/backend.cpp calls. Each has the contract of the method of the same name; tensors are float32
// but for weights.
#pragma once

#include "core/backend.h"
#include "core/training_backend.h"
#include "cpu/parallel.h"

namespace unifluid::cpu {

// How activations are multiplied with matrices that are stored in bfloat16. `bf16`: rounded to
// bfloat16 themselves, with float32 sums; only where InstructionSet::multiplies_bf16.
enum class Products : uint8_t { f32, bf16 };

// Operations on float32 activations in host memory. Those that can fail return false when they did,
// for want of scratch memory. `sample_text` writes -1 where a row of logits is not finite.
struct Kernels {
  void (*linear)(const LinearArgs&, Products, Parallel&);
  void (*gated_linear)(const GatedLinearArgs&, Products, Parallel&);
  void (*rms_norm)(const RmsNormArgs&, Parallel&);
  void (*layer_norm)(const LayerNormArgs&, Parallel&);
  bool (*attention)(const AttentionArgs&, Parallel&);
  void (*embed_tokens)(const EmbedTokensArgs&, Parallel&);
  void (*image_embed)(const ImageEmbedArgs&, Products, Parallel&);
  void (*add_rows)(const AddRowsArgs&, Parallel&);
  void (*soft_cap)(const SoftCapArgs&, Parallel&);
  void (*sample_text)(const SampleTextArgs&, Parallel&);
  bool (*diffusion_head)(const DiffusionHeadArgs&, Products, Parallel&);
  bool (*diffusion_sample)(const DiffusionSampleArgs&, Products, Parallel&);
  bool (*convolution)(const ConvolutionArgs&, Products, Parallel&);
  bool (*group_norm)(const GroupNormArgs&, Parallel&);
};

// The operations of core/training_backend.h, in the same way.
struct TrainingKernels {
  bool (*gemm)(const GemmArgs&, Parallel&);
  void (*add_tensors)(const AddArgs&, Parallel&);
  void (*activation)(const ActivationArgs&, Parallel&);
  void (*activation_backward)(const ActivationBackwardArgs&, Parallel&);
  void (*gated)(const GatedArgs&, Parallel&);
  void (*gated_backward)(const GatedBackwardArgs&, Parallel&);
  void (*gated_add)(const GatedAddArgs&, Parallel&);
  void (*gated_add_backward)(const GatedAddBackwardArgs&, Parallel&);
  void (*column_sum)(const ColumnSumArgs&, Parallel&);
  bool (*rms_norm_backward)(const RmsNormBackwardArgs&, Parallel&);
  void (*modulated_norm)(const ModulatedNormArgs&, Parallel&);
  bool (*modulated_norm_backward)(const ModulatedNormBackwardArgs&, Parallel&);
  bool (*group_norm_backward)(const GroupNormBackwardArgs&, Parallel&);
  bool (*attention_backward)(const AttentionBackwardArgs&, Parallel&);
  void (*gather_rows)(const GatherRowsArgs&, Parallel&);
  void (*scatter_rows)(const ScatterRowsArgs&, Parallel&);
  void (*time_features)(const TimeFeaturesArgs&, Parallel&);
  void (*patches)(const PatchesArgs&, Parallel&);
  void (*patches_backward)(const PatchesBackwardArgs&, Parallel&);
  void (*cross_entropy)(const CrossEntropyArgs&, Parallel&);
  void (*training_noise)(const TrainingNoiseArgs&, Parallel&);
  void (*diffuse)(const DiffuseArgs&, Parallel&);
  void (*diffusion_loss)(const DiffusionLossArgs&, Parallel&);
  void (*adamw)(const AdamWArgs&, Parallel&);
  bool (*sum_of_squares)(const float* values, int64_t count, double* result, Parallel&);
};

struct InstructionSet {
  const char* name;
  bool supported;        // this processor and operating system have it
  bool multiplies_bf16;  // and this one's kernels have Products::bf16
  const Kernels* kernels;
  const TrainingKernels* training;
};

// Those compiled in, from the plainest to the best.
struct InstructionSets {
  const InstructionSet* begin;
  int count;
};
InstructionSets instruction_sets();

}  // namespace unifluid::cpu
