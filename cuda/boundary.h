// The C boundary between the addon and `unifluid_cuda.so`: one exported function that returns a
// table of functions. Nothing is thrown across it: a call that failed returns false and fills in a
// `Failure`. Structs are those of core/backend.h and core/training_backend.h, which both sides
// compile from the same source; `version` is a hash of that source, which the build makes
// (cuda/boundary.cmake).
#pragma once

#include <cstdint>

#include "core/backend.h"
#include "core/training_backend.h"

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
  uint64_t total_memory;
};

struct OpenOptions {
  int32_t device;
  DType compute;        // f32 or bf16: activations, caches and matrices
  uint64_t max_memory;  // bytes; 0: what the device has
  // Bytes that weights will take, each rounded up to kBlockAlignment (cuda/size_class.h): they lie
  // in one block. What goes beyond them takes blocks of its own.
  uint64_t weights;
};

struct Description {
  char text[320];
};

struct BackendFacts {
  DType type;
  uint64_t available, allocated, scratch;
  LaunchCounts launches;
};

// Bytes of a device: free, those of them that a backend takes at most, and those that it takes
// whatever it runs.
struct DeviceRoom {
  uint64_t free, usable, overhead;
};

template <class... A>
using Function = bool (*)(A..., Failure*);
template <class Args>
using Operation = Function<void*, const Args*>;

// core/training_backend.h
struct TrainingBoundary {
  Operation<GemmArgs> gemm;
  Operation<ColumnSumArgs> column_sum;
  Operation<LinearBackwardArgs> linear_backward;
  Operation<AddArgs> add;
  Operation<ActivationArgs> activation;
  Operation<ActivationBackwardArgs> activation_backward;
  Operation<GatedArgs> gated;
  Operation<GatedBackwardArgs> gated_backward;
  Operation<GatedAddArgs> gated_add;
  Operation<GatedAddBackwardArgs> gated_add_backward;
  Operation<RmsNormBackwardArgs> rms_norm_backward;
  Operation<ModulatedNormArgs> modulated_norm;
  Operation<ModulatedNormBackwardArgs> modulated_norm_backward;
  Operation<AttentionBackwardArgs> attention_backward;
  Operation<GatherRowsArgs> gather_rows;
  Operation<ScatterRowsArgs> scatter_rows;
  Operation<CrossEntropyArgs> cross_entropy;
  Operation<TimeFeaturesArgs> time_features;
  Operation<TrainingNoiseArgs> training_noise;
  Operation<DiffuseArgs> diffuse;
  Operation<DiffusionLossArgs> diffusion_loss;
  Operation<PatchesArgs> patches;
  Operation<PatchesBackwardArgs> patches_backward;
  Operation<GroupNormBackwardArgs> group_norm_backward;
  Operation<AdamWArgs> adamw;
  Function<void*, const float*, int64_t, double*> sum_of_squares;
  Function<void*, const Tensor*, float> fill;
};

struct Boundary {
  uint64_t version;  // UNIFLUID_BOUNDARY of the library's build

  Function<int32_t*> device_count;
  Function<int32_t, DeviceInfo*> device_info;
  Function<int32_t, DeviceRoom*> device_room;
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
  Function<void*, const Tensor*, uint8_t*, bool*> read_pixels;  // whether they are finite
  Function<void*, const Tensor*, const Tensor*> copy;
  Function<void*, const StepSize*, uint64_t*> scratch_needed;
  Function<void*, uint64_t> resize_scratch;
  Function<void*> submit;
  Function<void*> synchronize;
  Function<void*, const int32_t*, int64_t, int32_t*, uint64_t*> begin_read;
  Function<void*, uint64_t> finish_read;

  Operation<LinearArgs> linear;
  Operation<GroupedLinearArgs> grouped_linear;
  Operation<GatedLinearArgs> gated_linear;
  Operation<RmsNormArgs> rms_norm;
  Operation<LayerNormArgs> layer_norm;
  Operation<AttentionArgs> attention;
  Function<void*, const DecoderStepArgs*, bool*> decoder_step;
  Operation<EmbedTokensArgs> embed_tokens;
  Operation<ImageEmbedArgs> image_embed;
  Operation<AddRowsArgs> add_rows;
  Operation<SoftCapArgs> soft_cap;
  Operation<SampleTextArgs> sample_text;
  Operation<DiffusionHeadArgs> diffusion_head;
  Operation<DiffusionSampleArgs> diffusion_sample;
  Operation<ConvolutionArgs> convolution;
  Operation<GroupNormArgs> group_norm;

  TrainingBoundary training;
};

}  // namespace unifluid::cuda

// The table, which lives as long as the library; its `version` says what it was built for.
extern "C" const unifluid::cuda::Boundary* unifluid_cuda_open();
