// The operations of core/backend.h on one GPU: weights uploaded once, memory from an arena, kernels
// through a queue. It lives in the library; the addon sees it through cuda/boundary.h.
#pragma once

#include <algorithm>
#include <string>

#include "core/backend.h"
#include "cuda/arena.h"
#include "cuda/boundary.h"
#include "cuda/device_memory.h"
#include "cuda/fault.h"
#include "cuda/kernels.h"
#include "cuda/queue.h"
#include "cuda/readback.h"
#include "cuda/training_kernels.h"
#include "cuda/transfer.h"

namespace unifluid::cuda {

class CudaBackend final : public Backend, public TrainingBackend {
 public:
  explicit CudaBackend(const OpenOptions& options);
  ~CudaBackend() override;

  // The current device is a thread's, and threads change: every call from outside begins with this.
  void enter() { fault_.check(cudaSetDevice(queue_.limits().index), "selecting the device"); }

  const char* description() const override { return description_.c_str(); }
  DType activation_type() const override { return compute_; }
  DType cache_type() const override { return compute_; }

  void* allocate(size_t bytes) override { return arena_.allocate(bytes); }
  void release(void* memory, size_t bytes) noexcept override { arena_.release(memory, bytes); }
  size_t available() const override { return arena_.available(); }
  size_t allocated() const override {
    const size_t held = memory_.held(), cached = arena_.cached();
    return held - std::min(held, cached);
  }
  LaunchCounts launches() const override {
    return {queue_.graph_launches(), queue_.plain_launches(), queue_.fork_launches()};
  }
  size_t scratch_needed(const StepSize& size) const override;
  size_t scratch() const override { return queue_.scratch_held(); }
  void resize_scratch(size_t bytes) override { queue_.resize_scratch(bytes); }

  Tensor matrix(const StoredTensor& stored) override;
  const float* vector(const StoredTensor& stored) override;
  Tensor convolution_weight(const StoredTensor& stored, int64_t kernel) override;

  void read(const Tensor& from, float* host) override;
  void write(const float* host, const Tensor& to) override;
  bool read_pixels(const Tensor& from, uint8_t* host) override;
  void copy(const Tensor& from, const Tensor& to) override;
  void synchronize() override { queue_.synchronize(); }
  void submit() override { queue_.flush(); }
  uint64_t begin_read(const int32_t* ids, int64_t count, int32_t* host) override {
    return readback_.begin(ids, static_cast<size_t>(count), host);
  }
  void finish_read(uint64_t ticket) override { readback_.finish(ticket); }

  void linear(const LinearArgs& args) override { run(cuda::linear, args); }
  void grouped_linear(const GroupedLinearArgs& args) override { run(cuda::grouped_linear, args); }
  void gated_linear(const GatedLinearArgs& args) override { run(cuda::gated_linear, args); }
  void rms_norm(const RmsNormArgs& args) override { run(cuda::rms_norm, args); }
  void layer_norm(const LayerNormArgs& args) override { run(cuda::layer_norm, args); }
  void attention(const AttentionArgs& args) override;
  bool decoder_step(const DecoderStepArgs& args) override {
    if (!cuda::takes_decoder_step(queue_, args)) return false;
    run(cuda::decoder_step, args);
    return true;
  }
  void embed_tokens(const EmbedTokensArgs& args) override;
  void image_embed(const ImageEmbedArgs& args) override { run(cuda::image_embed, args); }
  void add_rows(const AddRowsArgs& args) override { run(cuda::add_rows, args); }
  void soft_cap(const SoftCapArgs& args) override { run(cuda::soft_cap, args); }
  void sample_text(const SampleTextArgs& args) override { run(cuda::sample_text, args); }
  void diffusion_head(const DiffusionHeadArgs& args) override { run(cuda::diffusion_head, args); }
  void diffusion_sample(const DiffusionSampleArgs& args) override {
    run(cuda::diffusion_sample, args);
  }
  void convolution(const ConvolutionArgs& args) override { run(cuda::convolution, args); }
  void group_norm(const GroupNormArgs& args) override { run(cuda::group_norm, args); }

  // ---- core/training_backend.h ----

  void gemm(const GemmArgs& args) override { run(cuda::gemm, args); }
  void column_sum(const ColumnSumArgs& args) override { run(cuda::column_sum, args); }
  void linear_backward(const LinearBackwardArgs& args) override;
  void add(const AddArgs& args) override { run(cuda::add, args); }
  void activation(const ActivationArgs& args) override { run(cuda::activation, args); }
  void activation_backward(const ActivationBackwardArgs& args) override {
    run(cuda::activation_backward, args);
  }
  void gated(const GatedArgs& args) override { run(cuda::gated, args); }
  void gated_backward(const GatedBackwardArgs& args) override { run(cuda::gated_backward, args); }
  void gated_add(const GatedAddArgs& args) override { run(cuda::gated_add, args); }
  void gated_add_backward(const GatedAddBackwardArgs& args) override {
    run(cuda::gated_add_backward, args);
  }
  void rms_norm_backward(const RmsNormBackwardArgs& args) override {
    run(cuda::rms_norm_backward, args);
  }
  void modulated_norm(const ModulatedNormArgs& args) override { run(cuda::modulated_norm, args); }
  void modulated_norm_backward(const ModulatedNormBackwardArgs& args) override {
    run(cuda::modulated_norm_backward, args);
  }
  void attention_backward(const AttentionBackwardArgs& args) override {
    run(cuda::attention_backward, args);
  }
  void gather_rows(const GatherRowsArgs& args) override;
  void scatter_rows(const ScatterRowsArgs& args) override;
  void cross_entropy(const CrossEntropyArgs& args) override;
  void time_features(const TimeFeaturesArgs& args) override;
  void training_noise(const TrainingNoiseArgs& args) override;
  void diffuse(const DiffuseArgs& args) override;
  void diffusion_loss(const DiffusionLossArgs& args) override;
  void patches(const PatchesArgs& args) override { run(cuda::patches, args); }
  void patches_backward(const PatchesBackwardArgs& args) override {
    run(cuda::patches_backward, args);
  }
  void group_norm_backward(const GroupNormBackwardArgs& args) override {
    run(cuda::group_norm_backward, args);
  }
  void adamw(const AdamWArgs& args) override { run(cuda::adamw, args); }
  double sum_of_squares(const float* values, int64_t count) override;
  void fill(const Tensor& tensor, float value) override;

 private:
  template <class Args>
  void run(void (*operation)(Queue&, const Args&), const Args& args) {
    queue_.begin_operation();
    operation(queue_, args);
  }
  Tensor upload(const void* data, DType type, int64_t rows, int64_t cols);

  const DType compute_;
  std::string description_;
  Fault fault_;
  DeviceMemory memory_;
  Queue queue_;
  Transfer transfer_;
  Readback readback_;
  Arena arena_;
};

// 0 where there is none. Throws DEVICE_ERROR where the driver is at fault.
int device_count();
DeviceInfo device_info(int device);
// Unlike the others this opens a context on the device, of some hundred MiB.
DeviceRoom device_room(int device);

}  // namespace unifluid::cuda
