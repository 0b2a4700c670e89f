// The tables of this instruction set's kernels.
#include "cpu/kernels/kernels.h"

namespace unifluid::cpu::UNIFLUID_ISA {

extern const Kernels kKernels;
const Kernels kKernels = {
    linear,         gated_linear,     rms_norm,    layer_norm, attention,
    embed_tokens,   image_embed,      add_rows,    soft_cap,   sample_text,
    diffusion_head, diffusion_sample, convolution, group_norm,
};

extern const TrainingKernels kTrainingKernels;
const TrainingKernels kTrainingKernels = {
    gemm,
    add_tensors,
    activation,
    activation_backward,
    gated,
    gated_backward,
    gated_add,
    gated_add_backward,
    column_sum,
    rms_norm_backward,
    modulated_norm,
    modulated_norm_backward,
    group_norm_backward,
    attention_backward,
    gather_rows,
    scatter_rows,
    time_features,
    patches,
    patches_backward,
    cross_entropy,
    training_noise,
    diffuse,
    diffusion_loss,
    adamw,
    sum_of_squares,
};

}  // namespace unifluid::cpu::UNIFLUID_ISA
