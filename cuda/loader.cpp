#include "cuda/loader.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cpu/system_memory.h"
#include "cuda/size_class.h"

namespace unifluid::cuda {
namespace {

// Codes are literals on this side as well (core/error.h).
[[noreturn]] void raise(const Failure& failure) {
  for (const char* code :
       {error_code::kInsufficientMemory, error_code::kInvalidArgument, error_code::kNumerical,
        error_code::kInvalidCheckpoint, error_code::kDevice})
    if (std::strcmp(failure.code, code) == 0) throw Error(code, failure.message);
  throw Error(error_code::kInternal, failure.message);
}

template <class... P, class... A>
void call(bool (*function)(P...), A... arguments) {
  Failure failure{};
  if (!function(arguments..., &failure)) raise(failure);
}

class LibraryBackend final : public Backend, public TrainingBackend {
 public:
  LibraryBackend(const Boundary& library, const OpenOptions& options) : library_(library) {
    call(library_.open, &options, &backend_);
    library_.describe(backend_, &description_);
    type_ = facts().type;
  }
  ~LibraryBackend() override { library_.close(backend_); }

  const char* description() const override { return description_.text; }
  DType activation_type() const override { return type_; }
  DType cache_type() const override { return type_; }

  void* allocate(size_t bytes) override {
    void* memory = nullptr;
    call(library_.allocate, backend_, bytes, &memory);
    return memory;
  }
  void release(void* memory, size_t bytes) noexcept override {
    library_.release(backend_, memory, bytes);
  }
  size_t allocated_size(size_t bytes) const override { return size_class(bytes); }
  size_t available() const override { return facts().available; }
  size_t allocated() const override { return facts().allocated; }
  size_t scratch() const override { return facts().scratch; }
  LaunchCounts launches() const override { return facts().launches; }
  size_t scratch_needed(const StepSize& size) const override {
    uint64_t bytes = 0;
    call(library_.scratch_needed, backend_, &size, &bytes);
    return bytes;
  }
  void resize_scratch(size_t bytes) override {
    call(library_.resize_scratch, backend_, uint64_t{bytes});
  }

  // Beside the GPU's memory, whose limit says nothing about the host's.
  size_t host_available() const override {
    // What is held may not have been touched yet, and then still counts as free to the system.
    const size_t free = cpu::system_available_memory();
    return free - std::min(free, held_);
  }
  void hold_host(size_t bytes) noexcept override { held_ += bytes; }
  void release_host(size_t bytes) noexcept override { held_ -= bytes; }

  Tensor matrix(const StoredTensor& stored) override {
    Tensor t;
    call(library_.matrix, backend_, &stored, &t);
    return t;
  }
  const float* vector(const StoredTensor& stored) override {
    const float* values = nullptr;
    call(library_.vector, backend_, &stored, &values);
    return values;
  }
  Tensor convolution_weight(const StoredTensor& stored, int64_t kernel) override {
    Tensor t;
    call(library_.convolution_weight, backend_, &stored, kernel, &t);
    return t;
  }

  void read(const Tensor& from, float* host) override {
    call(library_.read, backend_, &from, host);
  }
  void write(const float* host, const Tensor& to) override {
    call(library_.write, backend_, host, &to);
  }
  bool read_pixels(const Tensor& from, uint8_t* host) override {
    bool finite = false;
    call(library_.read_pixels, backend_, &from, host, &finite);
    return finite;
  }
  void copy(const Tensor& from, const Tensor& to) override {
    call(library_.copy, backend_, &from, &to);
  }
  void submit() override { call(library_.submit, backend_); }
  void synchronize() override { call(library_.synchronize, backend_); }
  uint64_t begin_read(const int32_t* ids, int64_t count, int32_t* host) override {
    uint64_t ticket = 0;
    call(library_.begin_read, backend_, ids, count, host, &ticket);
    return ticket;
  }
  void finish_read(uint64_t ticket) override { call(library_.finish_read, backend_, ticket); }
  bool asynchronous() const override { return true; }

  void linear(const LinearArgs& args) override { call(library_.linear, backend_, &args); }
  void grouped_linear(const GroupedLinearArgs& args) override {
    call(library_.grouped_linear, backend_, &args);
  }
  void gated_linear(const GatedLinearArgs& args) override {
    call(library_.gated_linear, backend_, &args);
  }
  void rms_norm(const RmsNormArgs& args) override { call(library_.rms_norm, backend_, &args); }
  void layer_norm(const LayerNormArgs& args) override {
    call(library_.layer_norm, backend_, &args);
  }
  void attention(const AttentionArgs& args) override { call(library_.attention, backend_, &args); }
  bool decoder_step(const DecoderStepArgs& args) override {
    bool done = false;
    call(library_.decoder_step, backend_, &args, &done);
    return done;
  }
  void embed_tokens(const EmbedTokensArgs& args) override {
    call(library_.embed_tokens, backend_, &args);
  }
  void image_embed(const ImageEmbedArgs& args) override {
    call(library_.image_embed, backend_, &args);
  }
  void add_rows(const AddRowsArgs& args) override { call(library_.add_rows, backend_, &args); }
  void soft_cap(const SoftCapArgs& args) override { call(library_.soft_cap, backend_, &args); }
  void sample_text(const SampleTextArgs& args) override {
    call(library_.sample_text, backend_, &args);
  }
  void diffusion_head(const DiffusionHeadArgs& args) override {
    call(library_.diffusion_head, backend_, &args);
  }
  void diffusion_sample(const DiffusionSampleArgs& args) override {
    call(library_.diffusion_sample, backend_, &args);
  }
  void convolution(const ConvolutionArgs& args) override {
    call(library_.convolution, backend_, &args);
  }
  void group_norm(const GroupNormArgs& args) override {
    call(library_.group_norm, backend_, &args);
  }

  // Tensors of training are float32.
  TrainingBackend* training() override { return type_ == DType::f32 ? this : nullptr; }

  bool takes_rounded() const override { return true; }
  void gemm(const GemmArgs& args) override { call(library_.training.gemm, backend_, &args); }
  void column_sum(const ColumnSumArgs& args) override {
    call(library_.training.column_sum, backend_, &args);
  }
  void linear_backward(const LinearBackwardArgs& args) override {
    call(library_.training.linear_backward, backend_, &args);
  }
  void add(const AddArgs& args) override { call(library_.training.add, backend_, &args); }
  void activation(const ActivationArgs& args) override {
    call(library_.training.activation, backend_, &args);
  }
  void activation_backward(const ActivationBackwardArgs& args) override {
    call(library_.training.activation_backward, backend_, &args);
  }
  void gated(const GatedArgs& args) override { call(library_.training.gated, backend_, &args); }
  void gated_backward(const GatedBackwardArgs& args) override {
    call(library_.training.gated_backward, backend_, &args);
  }
  void gated_add(const GatedAddArgs& args) override {
    call(library_.training.gated_add, backend_, &args);
  }
  void gated_add_backward(const GatedAddBackwardArgs& args) override {
    call(library_.training.gated_add_backward, backend_, &args);
  }
  void rms_norm_backward(const RmsNormBackwardArgs& args) override {
    call(library_.training.rms_norm_backward, backend_, &args);
  }
  void modulated_norm(const ModulatedNormArgs& args) override {
    call(library_.training.modulated_norm, backend_, &args);
  }
  void modulated_norm_backward(const ModulatedNormBackwardArgs& args) override {
    call(library_.training.modulated_norm_backward, backend_, &args);
  }
  void attention_backward(const AttentionBackwardArgs& args) override {
    call(library_.training.attention_backward, backend_, &args);
  }
  void gather_rows(const GatherRowsArgs& args) override {
    call(library_.training.gather_rows, backend_, &args);
  }
  void scatter_rows(const ScatterRowsArgs& args) override {
    call(library_.training.scatter_rows, backend_, &args);
  }
  void cross_entropy(const CrossEntropyArgs& args) override {
    call(library_.training.cross_entropy, backend_, &args);
  }
  void time_features(const TimeFeaturesArgs& args) override {
    call(library_.training.time_features, backend_, &args);
  }
  void training_noise(const TrainingNoiseArgs& args) override {
    call(library_.training.training_noise, backend_, &args);
  }
  void diffuse(const DiffuseArgs& args) override {
    call(library_.training.diffuse, backend_, &args);
  }
  void diffusion_loss(const DiffusionLossArgs& args) override {
    call(library_.training.diffusion_loss, backend_, &args);
  }
  void patches(const PatchesArgs& args) override {
    call(library_.training.patches, backend_, &args);
  }
  void patches_backward(const PatchesBackwardArgs& args) override {
    call(library_.training.patches_backward, backend_, &args);
  }
  void group_norm_backward(const GroupNormBackwardArgs& args) override {
    call(library_.training.group_norm_backward, backend_, &args);
  }
  void adamw(const AdamWArgs& args) override { call(library_.training.adamw, backend_, &args); }
  double sum_of_squares(const float* values, int64_t count) override {
    double result = 0;
    call(library_.training.sum_of_squares, backend_, values, count, &result);
    return result;
  }
  void fill(const Tensor& tensor, float value) override {
    call(library_.training.fill, backend_, &tensor, value);
  }

 private:
  BackendFacts facts() const {
    BackendFacts facts{};
    library_.facts(backend_, &facts);
    return facts;
  }

  const Boundary& library_;
  void* backend_ = nullptr;
  Description description_{};
  DType type_ = DType::f32;
  size_t held_ = 0;  // bytes of the host's memory
};

}  // namespace

bool driver_present() {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver) dlclose(driver);
  return driver != nullptr;
}

const Boundary& open_library(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!handle)
    throw Error(error_code::kDevice,
                std::string("the CUDA library cannot be opened: ") + dlerror());
  using Open = const Boundary* (*)();
  const auto open = reinterpret_cast<Open>(dlsym(handle, "unifluid_cuda_open"));
  const Boundary* boundary = open ? open() : nullptr;
  if (!boundary || boundary->version != UNIFLUID_BOUNDARY)
    throw Error(error_code::kDevice,
                "the CUDA library at " + path + " belongs to another version of this package");
  return *boundary;
}

std::vector<DeviceInfo> list_devices(const std::string& path) {
  const Boundary& library = open_library(path);
  int32_t count = 0;
  call(library.device_count, &count);
  std::vector<DeviceInfo> devices(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i)
    call(library.device_info, i, &devices[static_cast<size_t>(i)]);
  return devices;
}

DeviceRoom device_room(const std::string& path, int32_t device) {
  DeviceRoom room{};
  call(open_library(path).device_room, device, &room);
  return room;
}

std::unique_ptr<Backend> make_cuda_backend(const std::string& path, const OpenOptions& options) {
  return std::make_unique<LibraryBackend>(open_library(path), options);
}

}  // namespace unifluid::cuda
