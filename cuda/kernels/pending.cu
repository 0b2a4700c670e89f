// Interim: operations whose kernels are not there yet. Goes with the last of them.
#include "core/error.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"

namespace unifluid::cuda {
#define PENDING(name, Args)                                        \
  __attribute__((weak)) void name(Queue&, const Args&) {           \
    throw Error(error_code::kInternal, #name " is not there yet"); \
  }
PENDING(rms_norm, RmsNormArgs)
PENDING(layer_norm, LayerNormArgs)
PENDING(attention, AttentionArgs)
PENDING(embed_tokens, EmbedTokensArgs)
PENDING(image_embed, ImageEmbedArgs)
PENDING(add_rows, AddRowsArgs)
PENDING(soft_cap, SoftCapArgs)
PENDING(diffusion_head, DiffusionHeadArgs)
PENDING(diffusion_sample, DiffusionSampleArgs)
PENDING(convolution, ConvolutionArgs)
PENDING(group_norm, GroupNormArgs)
__attribute__((weak)) void sample_text(Queue&, const SampleTextArgs&, int32_t*, int32_t*) {
  throw Error(error_code::kInternal, "sample_text is not there yet");
}
struct RowsParams {
  const void* from;
  void* to;
  int64_t rows, cols, from_stride, to_stride;
};
template <class From, class To>
__global__ void move_rows(RowsParams p) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.rows * p.cols;
       i += int64_t{gridDim.x} * blockDim.x)
    static_cast<To*>(p.to)[i / p.cols * p.to_stride + i % p.cols] = from_float<To>(
        to_float(static_cast<const From*>(p.from)[i / p.cols * p.from_stride + i % p.cols]));
}
inline void move(Queue& q, const Tensor& from, const Tensor& to) {
  RowsParams p{from.data, to.data, from.rows, from.cols, from.stride, to.stride};
  with_type(from.type, [&](auto f) {
    with_type(to.type, [&](auto t) {
      q.launch(move_rows<decltype(f), decltype(t)>, dim3(blocks_for(from.size(), 256)), dim3(256),
               0, p);
    });
  });
}
__attribute__((weak)) void copy_rows(Queue& q, const Tensor& from, const Tensor& to) {
  move(q, from, to);
}
__attribute__((weak)) void pack_rows(Queue& q, const Tensor& from, float* to) {
  move(q, from, Tensor(to, DType::f32, from.rows, from.cols));
}
__attribute__((weak)) void unpack_rows(Queue& q, const float* from, const Tensor& to) {
  move(q, Tensor(const_cast<float*>(from), DType::f32, to.rows, to.cols), to);
}
}  // namespace unifluid::cuda
