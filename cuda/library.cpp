// The table of cuda/boundary.h: each function a call of CudaBackend, its exceptions turned into
// failures.
#include <algorithm>
#include <cstring>
#include <memory>

#include "core/error.h"
#include "cuda/backend.h"
#include "cuda/boundary.h"

namespace unifluid::cuda {
namespace {

void fill(Failure* failure, const char* code, const char* message) {
  std::strncpy(failure->code, code, sizeof failure->code - 1);
  failure->code[sizeof failure->code - 1] = 0;
  std::strncpy(failure->message, message, sizeof failure->message - 1);
  failure->message[sizeof failure->message - 1] = 0;
}

template <class Body>
bool guarded(Failure* failure, Body body) {
  try {
    body();
    return true;
  } catch (const std::exception& error) {
    const auto [code, message] = describe(error);
    fill(failure, code, message);
  } catch (...) {
    fill(failure, error_code::kInternal, "an unknown failure in the CUDA library");
  }
  return false;
}

CudaBackend& of(void* backend) { return *static_cast<CudaBackend*>(backend); }

// For calls that reach the device.
CudaBackend& enter(void* backend) {
  of(backend).enter();
  return of(backend);
}

template <class Args, void (CudaBackend::*operation)(const Args&)>
bool call(void* backend, const Args* args, Failure* failure) {
  return guarded(failure, [&] { (enter(backend).*operation)(*args); });
}

TrainingBoundary make_training_table() {
  TrainingBoundary t{};
  t.gemm = call<GemmArgs, &CudaBackend::gemm>;
  t.column_sum = call<ColumnSumArgs, &CudaBackend::column_sum>;
  t.linear_backward = call<LinearBackwardArgs, &CudaBackend::linear_backward>;
  t.add = call<AddArgs, &CudaBackend::add>;
  t.activation = call<ActivationArgs, &CudaBackend::activation>;
  t.activation_backward = call<ActivationBackwardArgs, &CudaBackend::activation_backward>;
  t.gated = call<GatedArgs, &CudaBackend::gated>;
  t.gated_backward = call<GatedBackwardArgs, &CudaBackend::gated_backward>;
  t.gated_add = call<GatedAddArgs, &CudaBackend::gated_add>;
  t.gated_add_backward = call<GatedAddBackwardArgs, &CudaBackend::gated_add_backward>;
  t.rms_norm_backward = call<RmsNormBackwardArgs, &CudaBackend::rms_norm_backward>;
  t.modulated_norm = call<ModulatedNormArgs, &CudaBackend::modulated_norm>;
  t.modulated_norm_backward =
      call<ModulatedNormBackwardArgs, &CudaBackend::modulated_norm_backward>;
  t.attention_backward = call<AttentionBackwardArgs, &CudaBackend::attention_backward>;
  t.gather_rows = call<GatherRowsArgs, &CudaBackend::gather_rows>;
  t.scatter_rows = call<ScatterRowsArgs, &CudaBackend::scatter_rows>;
  t.cross_entropy = call<CrossEntropyArgs, &CudaBackend::cross_entropy>;
  t.time_features = call<TimeFeaturesArgs, &CudaBackend::time_features>;
  t.training_noise = call<TrainingNoiseArgs, &CudaBackend::training_noise>;
  t.diffuse = call<DiffuseArgs, &CudaBackend::diffuse>;
  t.diffusion_loss = call<DiffusionLossArgs, &CudaBackend::diffusion_loss>;
  t.patches = call<PatchesArgs, &CudaBackend::patches>;
  t.patches_backward = call<PatchesBackwardArgs, &CudaBackend::patches_backward>;
  t.group_norm_backward = call<GroupNormBackwardArgs, &CudaBackend::group_norm_backward>;
  t.adamw = call<AdamWArgs, &CudaBackend::adamw>;
  t.sum_of_squares = [](void* backend, const float* values, int64_t count, double* result,
                        Failure* f) {
    return guarded(f, [&] { *result = enter(backend).sum_of_squares(values, count); });
  };
  t.fill = [](void* backend, const Tensor* tensor, float value, Failure* f) {
    return guarded(f, [&] { enter(backend).fill(*tensor, value); });
  };
  return t;
}

Boundary make_table() {
  Boundary t{};
  t.version = UNIFLUID_BOUNDARY;
  t.device_count = [](int32_t* count, Failure* f) {
    return guarded(f, [&] { *count = device_count(); });
  };
  t.device_info = [](int32_t device, DeviceInfo* info, Failure* f) {
    return guarded(f, [&] { *info = device_info(device); });
  };
  t.device_room = [](int32_t device, DeviceRoom* room, Failure* f) {
    return guarded(f, [&] { *room = device_room(device); });
  };
  t.open = [](const OpenOptions* options, void** backend, Failure* f) {
    return guarded(f, [&] { *backend = new CudaBackend(*options); });
  };
  t.close = [](void* backend) {
    try {
      enter(backend);
    } catch (...) {
      // A device that has failed; what it held goes with its context.
    }
    delete &of(backend);
  };
  t.describe = [](void* backend, Description* description) {
    std::strncpy(description->text, of(backend).description(), sizeof description->text - 1);
    description->text[sizeof description->text - 1] = 0;
  };
  t.facts = [](void* backend, BackendFacts* facts) {
    const CudaBackend& b = of(backend);
    *facts = {b.activation_type(), b.available(), b.allocated(), b.scratch(), b.launches()};
  };
  t.allocate = [](void* backend, size_t bytes, void** memory, Failure* f) {
    return guarded(f, [&] { *memory = enter(backend).allocate(bytes); });
  };
  // Kept for the next owner: this does not reach the device.
  t.release = [](void* backend, void* memory, size_t bytes) { of(backend).release(memory, bytes); };
  t.matrix = [](void* backend, const StoredTensor* stored, Tensor* out, Failure* f) {
    return guarded(f, [&] { *out = enter(backend).matrix(*stored); });
  };
  t.vector = [](void* backend, const StoredTensor* stored, const float** out, Failure* f) {
    return guarded(f, [&] { *out = enter(backend).vector(*stored); });
  };
  t.convolution_weight = [](void* backend, const StoredTensor* stored, int64_t kernel, Tensor* out,
                            Failure* f) {
    return guarded(f, [&] { *out = enter(backend).convolution_weight(*stored, kernel); });
  };
  t.read = [](void* backend, const Tensor* from, float* host, Failure* f) {
    return guarded(f, [&] { enter(backend).read(*from, host); });
  };
  t.write = [](void* backend, const float* host, const Tensor* to, Failure* f) {
    return guarded(f, [&] { enter(backend).write(host, *to); });
  };
  t.read_pixels = [](void* backend, const Tensor* from, uint8_t* host, bool* finite, Failure* f) {
    return guarded(f, [&] { *finite = enter(backend).read_pixels(*from, host); });
  };
  t.copy = [](void* backend, const Tensor* from, const Tensor* to, Failure* f) {
    return guarded(f, [&] { enter(backend).copy(*from, *to); });
  };
  t.scratch_needed = [](void* backend, const StepSize* size, uint64_t* bytes, Failure* f) {
    return guarded(f, [&] { *bytes = of(backend).scratch_needed(*size); });
  };
  t.resize_scratch = [](void* backend, uint64_t bytes, Failure* f) {
    return guarded(f, [&] { enter(backend).resize_scratch(bytes); });
  };
  t.submit = [](void* backend, Failure* f) { return guarded(f, [&] { enter(backend).submit(); }); };
  t.synchronize = [](void* backend, Failure* f) {
    return guarded(f, [&] { enter(backend).synchronize(); });
  };
  t.begin_read = [](void* backend, const int32_t* ids, int64_t count, int32_t* host,
                    uint64_t* ticket, Failure* f) {
    return guarded(f, [&] { *ticket = enter(backend).begin_read(ids, count, host); });
  };
  t.finish_read = [](void* backend, uint64_t ticket, Failure* f) {
    return guarded(f, [&] { enter(backend).finish_read(ticket); });
  };
  t.linear = call<LinearArgs, &CudaBackend::linear>;
  t.grouped_linear = call<GroupedLinearArgs, &CudaBackend::grouped_linear>;
  t.gated_linear = call<GatedLinearArgs, &CudaBackend::gated_linear>;
  t.rms_norm = call<RmsNormArgs, &CudaBackend::rms_norm>;
  t.layer_norm = call<LayerNormArgs, &CudaBackend::layer_norm>;
  t.attention = call<AttentionArgs, &CudaBackend::attention>;
  t.decoder_step = [](void* backend, const DecoderStepArgs* args, bool* done, Failure* f) {
    return guarded(f, [&] { *done = enter(backend).decoder_step(*args); });
  };
  t.embed_tokens = call<EmbedTokensArgs, &CudaBackend::embed_tokens>;
  t.image_embed = call<ImageEmbedArgs, &CudaBackend::image_embed>;
  t.add_rows = call<AddRowsArgs, &CudaBackend::add_rows>;
  t.soft_cap = call<SoftCapArgs, &CudaBackend::soft_cap>;
  t.sample_text = call<SampleTextArgs, &CudaBackend::sample_text>;
  t.diffusion_head = call<DiffusionHeadArgs, &CudaBackend::diffusion_head>;
  t.diffusion_sample = call<DiffusionSampleArgs, &CudaBackend::diffusion_sample>;
  t.convolution = call<ConvolutionArgs, &CudaBackend::convolution>;
  t.group_norm = call<GroupNormArgs, &CudaBackend::group_norm>;
  t.training = make_training_table();
  return t;
}

}  // namespace
}  // namespace unifluid::cuda

extern "C" __attribute__((visibility("default"))) const unifluid::cuda::Boundary*
unifluid_cuda_open() {
  static const unifluid::cuda::Boundary table = unifluid::cuda::make_table();
  return &table;
}
