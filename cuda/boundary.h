// The C boundary between the addon and `unifluid_cuda.so`: one exported function that returns a
// table of functions. Nothing is thrown across it: a call that failed returns false and fills in a
// `Failure`. Structs are those of core/backend.h, which both sides compile from the same source;
// `version` holds a number that changes with it.
#pragma once

#include <cstdint>

#include "core/backend.h"

namespace unifluid::cuda {

struct Failure {
  char code[32];  // one of core/error.h's
  char message[1024];
};

struct DeviceInfo {
  char name[256];
  int32_t major, minor;  // compute capability
  int32_t processors;
  int32_t driver, runtime;  // CUDA versions, 1000 * major + 10 * minor
  uint64_t total_memory, free_memory;
};

struct OpenOptions {
  int32_t device;
  DType compute;        // f32 or bf16: activations, caches and matrices
  uint64_t max_memory;  // bytes; 0: what the device has
};

struct Description {
  char text[320];
};

struct BackendFacts {
  DType type;
  uint64_t available, allocated, graph_launches;
};

template <class... A>
using Function = bool (*)(A..., Failure*);
template <class Args>
using Operation = Function<void*, const Args*>;

struct Boundary {
  uint64_t version;

  Function<int32_t*> device_count;
  Function<int32_t, DeviceInfo*> device_info;
  Function<const OpenOptions*, void**> open;
  void (*close)(void* backend);

  void (*describe)(void* backend, Description*);
  void (*facts)(void* backend, BackendFacts*);  // any thread
  Function<void*, size_t, void**> allocate;
  void (*release)(void* backend, void* memory, size_t bytes);
  Function<void*, const StoredTensor*, Tensor*> matrix;
  Function<void*, const StoredTensor*, const float**> vector;
  Function<void*, const StoredTensor*, int64_t, Tensor*> convolution_weight;
  Function<void*, const Tensor*, float*> read;
  Function<void*, const float*, const Tensor*> write;
  Function<void*, const Tensor*, const Tensor*> copy;
  Function<void*> submit;
  Function<void*> synchronize;

  Operation<LinearArgs> linear;
  Operation<GatedLinearArgs> gated_linear;
  Operation<RmsNormArgs> rms_norm;
  Operation<LayerNormArgs> layer_norm;
  Operation<AttentionArgs> attention;
  Operation<EmbedTokensArgs> embed_tokens;
  Operation<ImageEmbedArgs> image_embed;
  Operation<AddRowsArgs> add_rows;
  Operation<SoftCapArgs> soft_cap;
  Operation<SampleTextArgs> sample_text;
  Operation<DiffusionHeadArgs> diffusion_head;
  Operation<DiffusionSampleArgs> diffusion_sample;
  Operation<ConvolutionArgs> convolution;
  Operation<GroupNormArgs> group_norm;
};

// Goes up with every change of core/backend.h's structs or of this table; the sizes catch what was
// forgotten.
inline constexpr uint64_t kBoundaryVersion = (uint64_t{1} << 32) + sizeof(Boundary) * 4096 +
                                             sizeof(AttentionArgs) + sizeof(DiffusionHeadWeights) +
                                             sizeof(ConvolutionArgs) + sizeof(DiffusionToken);

}  // namespace unifluid::cuda

// The table, which lives as long as the library; its `version` says what it was built for.
extern "C" const unifluid::cuda::Boundary* unifluid_cuda_open();
