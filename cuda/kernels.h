// The operations of core/backend.h on a GPU, one file a family in cuda/kernels/. Each function
// appends its launches to the queue; tensors are of one activation type, float32 or bfloat16, and
// matrices (weights and tables) of the same; vectors are float32. Only `LinearArgs::out`
// with its residual, `SoftCapArgs::x` and `SampleTextArgs::logits` may be float32 beside bfloat16.
//
// Rows and strides of activations are whole multiples of 8 elements where their tensor was made by
// the core with such a width; kernels must be right for any width and stride, and may be fast only
// for aligned ones (`aligned16`).
#pragma once

#include "core/backend.h"
#include "cuda/queue.h"

namespace unifluid::cuda {

void linear(Queue&, const LinearArgs&);
void grouped_linear(Queue&, const GroupedLinearArgs&);
void gated_linear(Queue&, const GatedLinearArgs&);
void rms_norm(Queue&, const RmsNormArgs&);
void layer_norm(Queue&, const LayerNormArgs&);
void attention(Queue&, const AttentionArgs&);
// Only where `takes_decoder_step`.
void decoder_step(Queue&, const DecoderStepArgs&);
bool takes_decoder_step(const Queue&, const DecoderStepArgs&);
void embed_tokens(Queue&, const EmbedTokensArgs&);
void image_embed(Queue&, const ImageEmbedArgs&);
void add_rows(Queue&, const AddRowsArgs&);
void soft_cap(Queue&, const SoftCapArgs&);
// An id is -1 for a row with a logit that is not finite.
void sample_text(Queue&, const SampleTextArgs&);
void diffusion_head(Queue&, const DiffusionHeadArgs&);
void diffusion_sample(Queue&, const DiffusionSampleArgs&);
void convolution(Queue&, const ConvolutionArgs&);
void group_norm(Queue&, const GroupNormArgs&);

// ---- scratch that an operation takes at most in steps of up to these sizes ----
size_t attention_scratch(const StepSize&, DType type);  // that of the decoder
size_t decoder_step_scratch(const StepSize&, DType type);
size_t sample_text_scratch(int64_t rows, int64_t vocab);
size_t diffusion_scratch(const StepSize&, DType type, const DeviceLimits&);

// For DeviceLimits::clusters: how many of the diffusion head's the device holds at once; 0 where
// warpgroups are not to be used, whose devices are the same.
int diffusion_clusters(Queue&);

// Throws DEVICE_ERROR where the library has no code that the current device runs.
void expect_code();
// Whether the code for the current device waits where cuda/device/dependence.h says so.
bool code_has_dependents();

// ---- transfers: packed float32 rows in device memory, from and to tensors of any type ----
void pack_rows(Queue&, const Tensor& from, float* to);
void unpack_rows(Queue&, const float* from, const Tensor& to);
void copy_rows(Queue&, const Tensor& from, const Tensor& to);
// Bytes of packed rows as in Backend::read_pixels, and flags, as many as `pixel_flags` says: one of
// them is 0 where an element is not finite. `to` is aligned to 8 bytes.
void pack_pixels(Queue&, const Tensor& from, uint8_t* to, uint8_t* flags);
size_t pixel_flags(const Tensor& from);
// to [cols, rows] = the transpose of from [rows, cols]
void transpose_rows(Queue&, const Tensor& from, const Tensor& to);

}  // namespace unifluid::cuda
