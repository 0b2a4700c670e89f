// The table of this instruction set's kernels.
#include "cpu/kernels/kernels.h"

namespace unifluid::cpu::UNIFLUID_ISA {

extern const Kernels kKernels;
const Kernels kKernels = {
    linear,         gated_linear,     rms_norm,    layer_norm, attention,
    embed_tokens,   image_embed,      add_rows,    soft_cap,   sample_text,
    diffusion_head, diffusion_sample, convolution, group_norm,
};

}  // namespace unifluid::cpu::UNIFLUID_ISA
