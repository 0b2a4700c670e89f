// The kernels of one instruction set. Contracts: core/backend.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace unifluid::cpu::UNIFLUID_ISA {

// linear.cpp
void linear(const LinearArgs&, Parallel&);
void gated_linear(const GatedLinearArgs&, Parallel&);
// norm.cpp
void rms_norm(const RmsNormArgs&, Parallel&);
void layer_norm(const LayerNormArgs&, Parallel&);
bool group_norm(const GroupNormArgs&, Parallel&);
// attention.cpp
bool attention(const AttentionArgs&, Parallel&);
// embedding.cpp
void embed_tokens(const EmbedTokensArgs&, Parallel&);
void image_embed(const ImageEmbedArgs&, Parallel&);
void add_rows(const AddRowsArgs&, Parallel&);
// sampling.cpp
void soft_cap(const SoftCapArgs&, Parallel&);
bool sample_text(const SampleTextArgs&, Parallel&);
// diffusion.cpp
bool diffusion_head(const DiffusionHeadArgs&, Parallel&);
bool diffusion_sample(const DiffusionSampleArgs&, Parallel&);
// convolution.cpp
bool convolution(const ConvolutionArgs&, Parallel&);

}  // namespace unifluid::cpu::UNIFLUID_ISA
