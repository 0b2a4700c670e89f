#include "cuda/backend.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/convert.h"
#include "core/error.h"
#include "core/memory.h"
#include "cuda/kernels.h"
#include "cuda/kernels/warpgroup_probe.h"
#include "cuda/size_class.h"

namespace unifluid::cuda {
namespace {

// Whether something is used: by itself unless the environment says "0", or only where it says "1".
bool is_on(const char* name, bool by_itself) {
  const char* text = std::getenv(name);
  const std::string setting = text ? text : "";
  return by_itself ? setting != "0" : setting == "1";
}

// On an H200 a step of one row took 2.31 ms with launches that begin early and 2.11 ms without; why
// is not known. So they are for trials, and for the simulation, which checks that kernels keep to
// their rules.
bool dependents_asked_for() {
#ifdef UNIFLUID_SIMT
  constexpr bool kByItself = true;
#else
  constexpr bool kByItself = false;
#endif
  return is_on("UNIFLUID_CUDA_DEPENDENTS", kByItself);
}

// On an H200 a step of one row of Gemma-2-2B's sizes took 2.18 ms in one launch and 2.52 ms
// operation by operation.
bool persistent_allowed() { return is_on("UNIFLUID_CUDA_PERSISTENT", true); }

// Rows whose arrays an operation stages at a time: 48 bytes of each at most, of 2 MiB.
constexpr int64_t kStagedRows = int64_t{1} << 15;

// Calls body(first, count) for parts of `rows` rows, in order.
template <class Body>
void each_part(int64_t rows, Body body) {
  for (int64_t first = 0; first < rows; first += kStagedRows)
    body(first, std::min(kStagedRows, rows - first));
}

}  // namespace

CudaBackend::CudaBackend(const OpenOptions& options)
    : compute_(options.compute),
      memory_(options.device, options.max_memory, fault_),
      queue_(options.device, memory_, fault_),
      transfer_(queue_),
      readback_(queue_),
      arena_(queue_, memory_) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, options.device), "reading the device's properties");
  expect_code();
  queue_.allow_dependents(code_has_dependents() && dependents_asked_for());
  description_ = "cuda:" + std::to_string(options.device) + " " + properties.name +
                 ", compute capability " + std::to_string(properties.major) + "." +
                 std::to_string(properties.minor) +
                 (compute_ == DType::bf16 ? ", bfloat16" : ", float32");
  // In float32 training still multiplies in bfloat16.
  const WarpgroupState state = choose_warpgroups(queue_);
  queue_.use_clusters(diffusion_clusters(queue_));
  queue_.allow_persistent(state == WarpgroupState::used && persistent_allowed());
  // Training has its weights in float32.
  queue_.allow_transposed(state == WarpgroupState::used && compute_ == DType::f32 &&
                          transposed_products_agree(queue_));
  if (queue_.limits().transposed) description_ += ", wgmma in training";
  if (compute_ == DType::bf16) {
    if (state == WarpgroupState::used) description_ += ", wgmma";
    if (state == WarpgroupState::differs) description_ += ", no wgmma: it rounds otherwise here";
  }
  if (options.weights > 0) arena_.reserve_forever(options.weights);
}

CudaBackend::~CudaBackend() {
  try {
    queue_.synchronize();
  } catch (...) {     // a device that has failed, or no memory to issue what is left
    queue_.settle();  // what still runs uses memory that is about to be freed
  }
}

// Operations follow each other in the same scratch: the largest counts.
size_t CudaBackend::scratch_needed(const StepSize& size) const {
  const size_t bytes =
      std::max({attention_scratch(size, compute_), decoder_step_scratch(size, compute_),
                sample_text_scratch(size.texts, size.vocab),
                diffusion_scratch(size, compute_, queue_.limits())});
  return bytes > 0 ? device_bytes(bytes) : 0;
}

// Into the compute type on the way up, so that kernels know one type of matrix.
Tensor CudaBackend::upload(const void* data, DType type, int64_t rows, int64_t cols) {
  Tensor t(nullptr, compute_, rows, cols);
  t.data = arena_.allocate_forever(t.bytes());
  const size_t size = size_of(compute_), stored = size_of(type);
  transfer_.upload(t.data, t.bytes(), [&](void* to, size_t first, size_t bytes) {
    const void* from = static_cast<const char*>(data) + first / size * stored;
    if (compute_ == DType::f32)
      convert_to_float(from, type, bytes / size, static_cast<float*>(to));
    else
      convert_to_bf16(from, type, bytes / size, static_cast<uint16_t*>(to));
  });
  return t;
}

Tensor CudaBackend::matrix(const StoredTensor& stored) {
  return upload(stored.data, stored.type, stored.rows, stored.cols);
}

const float* CudaBackend::vector(const StoredTensor& stored) {
  const size_t count = static_cast<size_t>(stored.rows * stored.cols);
  void* values = arena_.allocate_forever(count * sizeof(float));
  transfer_.upload(values, count * sizeof(float), [&](void* to, size_t first, size_t bytes) {
    convert_to_float(
        static_cast<const char*>(stored.data) + first / sizeof(float) * size_of(stored.type),
        stored.type, bytes / sizeof(float), static_cast<float*>(to));
  });
  return static_cast<const float*>(values);
}

Tensor CudaBackend::convolution_weight(const StoredTensor& stored, int64_t kernel) {
  const int64_t taps = kernel * kernel;
  const size_t size = size_of(stored.type);
  std::vector<char> ordered(static_cast<size_t>(stored.rows * stored.cols) * size);
  transpose_inner(stored.data, stored.rows, stored.cols / taps, taps, size, ordered.data());
  return upload(ordered.data(), stored.type, stored.rows, stored.cols);
}

// float32 rows, packed, for one transfer: the tensor itself where it is that already.
void CudaBackend::read(const Tensor& from, float* host) {
  if (from.size() == 0) return;
  queue_.begin_operation();
  const size_t bytes = static_cast<size_t>(from.size()) * sizeof(float);
  if (from.type == DType::f32 && from.stride == from.cols) {
    transfer_.download(from.data, bytes, host);
    return;
  }
  float* packed = queue_.scratch<float>(static_cast<size_t>(from.size()));
  pack_rows(queue_, from, packed);
  transfer_.download(packed, bytes, host);
}

void CudaBackend::write(const float* host, const Tensor& to) {
  if (to.size() == 0) return;
  queue_.begin_operation();
  const size_t bytes = static_cast<size_t>(to.size()) * sizeof(float);
  const bool direct = to.type == DType::f32 && to.stride == to.cols;
  void* device = direct ? to.data : queue_.scratch<float>(static_cast<size_t>(to.size()));
  transfer_.upload(device, bytes, [&](void* buffer, size_t first, size_t count) {
    std::memcpy(buffer, reinterpret_cast<const char*>(host) + first, count);
  });
  if (!direct) unpack_rows(queue_, static_cast<const float*>(device), to);
}

bool CudaBackend::read_pixels(const Tensor& from, uint8_t* host) {
  if (from.size() == 0) return true;
  queue_.begin_operation();
  const size_t count = static_cast<size_t>(from.size()), flags = pixel_flags(from);
  uint8_t* packed = queue_.scratch<uint8_t>(count + flags);
  pack_pixels(queue_, from, packed, packed + count);
  bool finite = true;
  const auto take = [&](const uint8_t* piece, size_t first, size_t bytes) {
    const size_t pixels = first < count ? std::min(bytes, count - first) : 0;
    std::copy_n(piece, pixels, host + std::min(first, count));
    finite = finite && std::find(piece + pixels, piece + bytes, uint8_t{0}) == piece + bytes;
  };
  transfer_.download_pieces(packed, count + flags, take);
  return finite;
}

void CudaBackend::copy(const Tensor& from, const Tensor& to) {
  queue_.begin_operation();
  copy_rows(queue_, from, to);
}

void CudaBackend::embed_tokens(const EmbedTokensArgs& args) {
  each_part(args.out.rows, [&](int64_t first, int64_t count) {
    EmbedTokensArgs part = args;
    if (args.ids)
      part.ids += first;
    else
      part.sampled += first;
    part.out = args.out.slice(first, count);
    run(cuda::embed_tokens, part);
  });
}

// ---- training ----

void CudaBackend::linear_backward(const LinearBackwardArgs& args) {
  if (args.bf16 && queue_.limits().transposed)
    run(cuda::linear_backward, args);
  else
    TrainingBackend::linear_backward(args);
}

void CudaBackend::gather_rows(const GatherRowsArgs& args) {
  each_part(args.out.rows, [&](int64_t first, int64_t count) {
    GatherRowsArgs part = args;
    part.index += first;
    part.out = args.out.slice(first, count);
    run(cuda::gather_rows, part);
  });
}

void CudaBackend::scatter_rows(const ScatterRowsArgs& args) {
  each_part(args.dout.rows, [&](int64_t first, int64_t count) {
    ScatterRowsArgs part = args;
    part.index += first;
    part.dout = args.dout.slice(first, count);
    run(cuda::scatter_rows, part);
  });
}

void CudaBackend::time_features(const TimeFeaturesArgs& args) {
  each_part(args.out.rows, [&](int64_t first, int64_t count) {
    run(cuda::time_features, TimeFeaturesArgs{args.time + first, args.out.slice(first, count)});
  });
}

void CudaBackend::training_noise(const TrainingNoiseArgs& args) {
  each_part(args.out.rows, [&](int64_t first, int64_t count) {
    run(cuda::training_noise,
        TrainingNoiseArgs{args.seed, args.counters + first, args.out.slice(first, count)});
  });
}

void CudaBackend::diffuse(const DiffuseArgs& args) {
  each_part(args.out.rows, [&](int64_t first, int64_t count) {
    DiffuseArgs part = args;
    part.index += first;
    part.steps += first;
    part.epsilon = args.epsilon.slice(first, count);
    part.out = args.out.slice(first, count);
    run(cuda::diffuse, part);
  });
}

// Losses go to the host, which waits for them.
void CudaBackend::diffusion_loss(const DiffusionLossArgs& args) {
  each_part(args.output.rows, [&](int64_t first, int64_t count) {
    DiffusionLossArgs part = args;
    part.index += first;
    part.steps += first;
    part.output = args.output.slice(first, count);
    part.epsilon = args.epsilon.slice(first, count);
    part.doutput = args.doutput.slice(first, count);
    queue_.begin_operation();
    const float* losses = cuda::diffusion_loss(queue_, part);
    transfer_.download(losses, static_cast<size_t>(count) * sizeof(float), args.losses + first);
  });
}

void CudaBackend::cross_entropy(const CrossEntropyArgs& args) {
  each_part(args.logits.rows, [&](int64_t first, int64_t count) {
    CrossEntropyArgs part = args;
    part.logits = args.logits.slice(first, count);
    part.targets += first;
    queue_.begin_operation();
    const float* losses = cuda::cross_entropy(queue_, part);
    transfer_.download(losses, static_cast<size_t>(count) * sizeof(float), args.losses + first);
  });
}

double CudaBackend::sum_of_squares(const float* values, int64_t count) {
  if (count == 0) return 0;
  queue_.begin_operation();
  const double* sum = cuda::sum_of_squares(queue_, values, count);
  double result = 0;
  transfer_.download(sum, sizeof result, &result);
  return result;
}

void CudaBackend::fill(const Tensor& tensor, float value) {
  queue_.begin_operation();
  cuda::fill(queue_, tensor, value);
}

// Training's, in float32: with rounded operands it is that of inference between two copies.
void CudaBackend::attention(const AttentionArgs& args) {
  const bool rounds = args.bf16 && args.q.type == DType::f32 && args.head_dim % 8 == 0;
  if (!rounds) return run(cuda::attention, args);
  AttentionArgs rounded = args;
  std::array<Block, 4> blocks;
  Tensor* const tensors[] = {&rounded.q, &rounded.k, &rounded.v, &rounded.out};
  for (size_t i = 0; i < blocks.size(); ++i) {
    Tensor& t = *tensors[i];
    t = Tensor(nullptr, DType::bf16, t.rows, t.cols);
    blocks[i] = Block(*this, t.bytes());
    t.data = blocks[i].data();
  }
  copy(args.q, rounded.q);
  copy(args.k, rounded.k);
  copy(args.v, rounded.v);
  run(cuda::attention, rounded);
  copy(rounded.out, args.out);
}

// ---- devices ----

int device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice) return 0;
  if (status != cudaSuccess)
    throw Error(error_code::kDevice,
                std::string("no GPU can be used: ") + cudaGetErrorString(status));
  return count;
}

DeviceInfo device_info(int device) {
  DeviceInfo info{};
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "reading the device's properties");
  std::memcpy(info.name, properties.name, sizeof info.name);
  info.name[sizeof info.name - 1] = 0;
  info.major = properties.major;
  info.minor = properties.minor;
  info.processors = properties.multiProcessorCount;
  check(cudaDriverGetVersion(&info.driver), "reading the driver's version");
  check(cudaRuntimeGetVersion(&info.runtime), "reading the runtime's version");
  info.total_memory = properties.totalGlobalMem;
  return info;
}

DeviceRoom device_room(int device) {
  check(cudaSetDevice(device), "selecting the device");
  expect_code();
  const Room room = room_of_device();
  return {room.free, room.usable, Queue::kStagingBytes};
}

}  // namespace unifluid::cuda
