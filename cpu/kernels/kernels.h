// The kernels of one instruction set. Contracts: core/backend.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace unifluid::cpu::UNIFLUID_ISA {

// linear.cpp
void linear(const LinearArgs&, Products, Parallel&);
void gated_linear(const GatedLinearArgs&, Products, Parallel&);
// norm.cpp
void rms_norm(const RmsNormArgs&, Parallel&);
void layer_norm(const LayerNormArgs&, Parallel&);
bool group_norm(const GroupNormArgs&, Parallel&);
// attention.cpp
bool attention(const AttentionArgs&, Parallel&);
// embedding.cpp
void embed_tokens(const EmbedTokensArgs&, Parallel&);
void image_embed(const ImageEmbedArgs&, Products, Parallel&);
void add_rows(const AddRowsArgs&, Parallel&);
// sampling.cpp
void soft_cap(const SoftCapArgs&, Parallel&);
void sample_text(const SampleTextArgs&, Parallel&);
// diffusion.cpp
bool diffusion_head(const DiffusionHeadArgs&, Products, Parallel&);
bool diffusion_sample(const DiffusionSampleArgs&, Products, Parallel&);
// convolution.cpp
bool convolution(const ConvolutionArgs&, Products, Parallel&);

// ---- training (core/training_backend.h) ----

// gemm.cpp
bool gemm(const GemmArgs&, Parallel&);
// elementwise.cpp
void add_tensors(const AddArgs&, Parallel&);
void activation(const ActivationArgs&, Parallel&);
void activation_backward(const ActivationBackwardArgs&, Parallel&);
void gated(const GatedArgs&, Parallel&);
void gated_backward(const GatedBackwardArgs&, Parallel&);
void gated_add(const GatedAddArgs&, Parallel&);
void gated_add_backward(const GatedAddBackwardArgs&, Parallel&);
void column_sum(const ColumnSumArgs&, Parallel&);
// norm_backward.cpp
bool rms_norm_backward(const RmsNormBackwardArgs&, Parallel&);
void modulated_norm(const ModulatedNormArgs&, Parallel&);
bool modulated_norm_backward(const ModulatedNormBackwardArgs&, Parallel&);
bool group_norm_backward(const GroupNormBackwardArgs&, Parallel&);
// attention_backward.cpp
bool attention_backward(const AttentionBackwardArgs&, Parallel&);
// row_index.cpp
void gather_rows(const GatherRowsArgs&, Parallel&);
void scatter_rows(const ScatterRowsArgs&, Parallel&);
void time_features(const TimeFeaturesArgs&, Parallel&);
void patches(const PatchesArgs&, Parallel&);
void patches_backward(const PatchesBackwardArgs&, Parallel&);
// loss.cpp
void cross_entropy(const CrossEntropyArgs&, Parallel&);
void training_noise(const TrainingNoiseArgs&, Parallel&);
void diffuse(const DiffuseArgs&, Parallel&);
void diffusion_loss(const DiffusionLossArgs&, Parallel&);
// optimizer.cpp
void adamw(const AdamWArgs&, Parallel&);
bool sum_of_squares(const float* values, int64_t count, double* result, Parallel&);

}  // namespace unifluid::cpu::UNIFLUID_ISA
