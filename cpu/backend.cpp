#include "cpu/backend.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/convert.h"
#include "core/error.h"
#include "core/finite.h"
#include "cpu/kernels.h"
#include "cpu/system_memory.h"
#include "cpu/thread_pool.h"

namespace unifluid {
namespace {

const cpu::InstructionSet& choose_instruction_set(const char* name) {
  const cpu::InstructionSets sets = cpu::instruction_sets();
  const cpu::InstructionSet* best = nullptr;
  std::string names;
  for (int i = 0; i < sets.count; ++i) {
    const cpu::InstructionSet& set = sets.begin[i];
    if (!set.supported) continue;
    if (!name || std::strcmp(name, set.name) == 0) best = &set;
    names += (names.empty() ? "" : ", ") + std::string(set.name);
  }
  if (!best)
    throw Error(error_code::kInvalidArgument,
                "expected an instruction set that this processor has (" + names +
                    ") but received '" + (name ? name : "") + "'");
  return *best;
}

class CpuBackend final : public Backend, public TrainingBackend {
 public:
  CpuBackend(int threads, const char* isa, size_t max_memory, bool bf16)
      : set_(choose_instruction_set(isa)),
        kernels_(*set_.kernels),
        training_(*set_.training),
        products_(bf16 && set_.multiplies_bf16 ? cpu::Products::bf16 : cpu::Products::f32),
        pool_(threads),
        description_(std::string("cpu ") + set_.name +
                     (products_ == cpu::Products::bf16 ? " bfloat16, " : ", ") +
                     std::to_string(threads) + (threads == 1 ? " thread" : " threads")),
        max_memory_(max_memory),
        free_at_start_(max_memory ? max_memory : cpu::system_available_memory()) {}

  ~CpuBackend() override {
    for (const auto& [memory, bytes] : weights_) release(memory, bytes);
  }

  const char* description() const override { return description_.c_str(); }
  DType activation_type() const override { return DType::f32; }
  DType cache_type() const override { return DType::f32; }

  void* allocate(size_t bytes) override {
    const size_t free = available();
    void* memory = bytes <= free ? cpu::allocate_aligned(bytes) : nullptr;
    if (!memory)
      throw Error(error_code::kInsufficientMemory, "expected to allocate " + std::to_string(bytes) +
                                                       " bytes but " + std::to_string(free) +
                                                       " are available");
    allocated_ += bytes;
    return memory;
  }

  void release(void* memory, size_t bytes) noexcept override {
    if (!memory) return;
    std::free(memory);
    allocated_ -= bytes;
  }

  size_t available() const override {
    const size_t allocated = allocated_;
    if (max_memory_) return max_memory_ - std::min(max_memory_, allocated);
    // Memory that we allocated but have not touched yet still counts as free to the system, so what
    // was free at the start bounds it as well.
    const size_t now = cpu::system_available_memory();
    const size_t most = std::max(now, free_at_start_);
    return std::min(now, most - std::min(most, allocated));
  }

  size_t allocated() const override { return allocated_; }

  bool in_host_memory() const override { return true; }
  void hold_host(size_t bytes) noexcept override { allocated_ += bytes; }
  void release_host(size_t bytes) noexcept override { allocated_ -= bytes; }

  Tensor matrix(const StoredTensor& stored) override {
    return Tensor(const_cast<void*>(stored.data), stored.type, stored.rows, stored.cols);
  }

  const float* vector(const StoredTensor& stored) override {
    const size_t count = static_cast<size_t>(stored.rows * stored.cols);
    float* values = static_cast<float*>(allocate_weight(count * sizeof(float)));
    convert_to_float(stored.data, stored.type, count, values);
    return values;
  }

  Tensor convolution_weight(const StoredTensor& stored, int64_t kernel) override {
    const int64_t taps = kernel * kernel;
    Tensor weight(nullptr, stored.type, stored.rows, stored.cols);
    weight.data = allocate_weight(weight.bytes());
    transpose_inner(stored.data, stored.rows, stored.cols / taps, taps, size_of(stored.type),
                    weight.data);
    return weight;
  }

  void read(const Tensor& from, float* host) override {
    for (int64_t i = 0; i < from.rows; ++i)
      convert_to_float(from.row(i), from.type, static_cast<size_t>(from.cols),
                       host + i * from.cols);
  }

  void write(const float* host, const Tensor& to) override {
    each_piece(to, to.stride == to.cols, [&](int64_t row, int64_t first, int64_t count) {
      std::memcpy(static_cast<float*>(to.row(row)) + first, host + row * to.cols + first,
                  static_cast<size_t>(count) * sizeof(float));
    });
  }

  bool read_pixels(const Tensor& from, uint8_t* host) override {
    std::atomic<bool> finite{true};
    each_piece(from, from.stride == from.cols, [&](int64_t row, int64_t first, int64_t count) {
      const float* values = static_cast<const float*>(from.row(row)) + first;
      uint8_t* bytes = host + row * from.cols + first;
      if (!all_finite(values, static_cast<size_t>(count))) {
        finite = false;
        return;
      }
      for (int64_t i = 0; i < count; ++i) {
        // Floats from 2^23 on are whole: adding it rounds to the nearest, ties to even, in a
        // vector's instruction, which nearbyint is not on the plainest processor.
        constexpr float kWhole = 8388608;
        const float level = (std::clamp(values[i], -1.0f, 1.0f) + 1.0f) * 127.5f;
        bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(level + kWhole - kWhole));
      }
    });
    return finite;
  }

  void copy(const Tensor& from, const Tensor& to) override {
    if (from.type != to.type) {
      for (int64_t i = 0; i < to.rows; ++i) {
        const size_t count = static_cast<size_t>(to.cols);
        if (to.type == DType::f32)
          convert_to_float(from.row(i), from.type, count, static_cast<float*>(to.row(i)));
        else
          convert_to_bf16(from.row(i), from.type, count, static_cast<uint16_t*>(to.row(i)));
      }
      return;
    }
    const bool whole = to.stride == to.cols && from.stride == from.cols;
    each_piece(to, whole, [&](int64_t row, int64_t first, int64_t count) {
      std::memcpy(static_cast<float*>(to.row(row)) + first,
                  static_cast<const float*>(from.row(row)) + first,
                  static_cast<size_t>(count) * sizeof(float));
    });
  }

  void synchronize() override {}  // operations end before they return
  uint64_t begin_read(const int32_t* ids, int64_t count, int32_t* host) override {
    std::copy_n(ids, count, host);
    return 0;
  }
  void finish_read(uint64_t) override {}

  void linear(const LinearArgs& args) override { kernels_.linear(args, products_, pool_); }
  void gated_linear(const GatedLinearArgs& args) override {
    kernels_.gated_linear(args, products_, pool_);
  }
  void rms_norm(const RmsNormArgs& args) override { kernels_.rms_norm(args, pool_); }
  void layer_norm(const LayerNormArgs& args) override { kernels_.layer_norm(args, pool_); }
  void attention(const AttentionArgs& args) override {
    expect_scratch(kernels_.attention(args, pool_));
  }
  void embed_tokens(const EmbedTokensArgs& args) override { kernels_.embed_tokens(args, pool_); }
  void image_embed(const ImageEmbedArgs& args) override {
    kernels_.image_embed(args, products_, pool_);
  }
  void add_rows(const AddRowsArgs& args) override { kernels_.add_rows(args, pool_); }
  void soft_cap(const SoftCapArgs& args) override { kernels_.soft_cap(args, pool_); }
  void sample_text(const SampleTextArgs& args) override { kernels_.sample_text(args, pool_); }
  void diffusion_head(const DiffusionHeadArgs& args) override {
    expect_scratch(kernels_.diffusion_head(args, products_, pool_));
  }
  void diffusion_sample(const DiffusionSampleArgs& args) override {
    expect_scratch(kernels_.diffusion_sample(args, products_, pool_));
  }
  void convolution(const ConvolutionArgs& args) override {
    expect_scratch(kernels_.convolution(args, products_, pool_));
  }
  void group_norm(const GroupNormArgs& args) override {
    expect_scratch(kernels_.group_norm(args, pool_));
  }

  TrainingBackend* training() override { return this; }

  // ---- core/training_backend.h ----

  bool takes_rounded() const override { return set_.multiplies_bf16; }
  void gemm(const GemmArgs& args) override { expect_scratch(training_.gemm(args, pool_)); }
  void add(const AddArgs& args) override { training_.add_tensors(args, pool_); }
  void activation(const ActivationArgs& args) override { training_.activation(args, pool_); }
  void activation_backward(const ActivationBackwardArgs& args) override {
    training_.activation_backward(args, pool_);
  }
  void gated(const GatedArgs& args) override { training_.gated(args, pool_); }
  void gated_backward(const GatedBackwardArgs& args) override {
    training_.gated_backward(args, pool_);
  }
  void gated_add(const GatedAddArgs& args) override { training_.gated_add(args, pool_); }
  void gated_add_backward(const GatedAddBackwardArgs& args) override {
    training_.gated_add_backward(args, pool_);
  }
  void column_sum(const ColumnSumArgs& args) override { training_.column_sum(args, pool_); }
  void rms_norm_backward(const RmsNormBackwardArgs& args) override {
    expect_scratch(training_.rms_norm_backward(args, pool_));
  }
  void modulated_norm(const ModulatedNormArgs& args) override {
    training_.modulated_norm(args, pool_);
  }
  void modulated_norm_backward(const ModulatedNormBackwardArgs& args) override {
    expect_scratch(training_.modulated_norm_backward(args, pool_));
  }
  void group_norm_backward(const GroupNormBackwardArgs& args) override {
    expect_scratch(training_.group_norm_backward(args, pool_));
  }
  void attention_backward(const AttentionBackwardArgs& args) override {
    expect_scratch(training_.attention_backward(args, pool_));
  }
  void gather_rows(const GatherRowsArgs& args) override { training_.gather_rows(args, pool_); }
  void scatter_rows(const ScatterRowsArgs& args) override { training_.scatter_rows(args, pool_); }
  void time_features(const TimeFeaturesArgs& args) override {
    training_.time_features(args, pool_);
  }
  void patches(const PatchesArgs& args) override { training_.patches(args, pool_); }
  void patches_backward(const PatchesBackwardArgs& args) override {
    training_.patches_backward(args, pool_);
  }
  void cross_entropy(const CrossEntropyArgs& args) override {
    training_.cross_entropy(args, pool_);
  }
  void training_noise(const TrainingNoiseArgs& args) override {
    training_.training_noise(args, pool_);
  }
  void diffuse(const DiffuseArgs& args) override { training_.diffuse(args, pool_); }
  void diffusion_loss(const DiffusionLossArgs& args) override {
    training_.diffusion_loss(args, pool_);
  }
  void adamw(const AdamWArgs& args) override { training_.adamw(args, pool_); }
  double sum_of_squares(const float* values, int64_t count) override {
    double result = 0;
    expect_scratch(training_.sum_of_squares(values, count, &result, pool_));
    return result;
  }
  void fill(const Tensor& t, float value) override {
    each_piece(t, t.stride == t.cols, [&](int64_t row, int64_t first, int64_t count) {
      std::fill_n(static_cast<float*>(t.row(row)) + first, static_cast<size_t>(count), value);
    });
  }

 private:
  static void expect_scratch(bool had_it) {
    if (!had_it)
      throw Error(error_code::kInsufficientMemory,
                  "expected memory for an operation's scratch but the system gave none");
  }

  // Elements that a thread moves at a time; with less than two such pieces the calling thread is
  // done before another would have begun.
  static constexpr int64_t kPiece = int64_t{1} << 16;

  // Calls body(row, first column, columns) for pieces that make up a tensor of float32, in any
  // order, on all threads if it is large. `whole`: its rows lie one after another in all memory
  // concerned, so they are one.
  template <class Body>
  void each_piece(const Tensor& t, bool whole, Body body) {
    struct Plan {
      const Body& body;
      int64_t rows, cols;
      int64_t piece_rows, piece_cols;
      int64_t across;  // pieces of a row
    };
    Plan plan{body, whole ? 1 : t.rows, whole ? t.size() : t.cols, 0, 0, 0};
    if (t.size() == 0) return;
    plan.piece_cols = t.size() < 2 * kPiece ? plan.cols : std::min(plan.cols, kPiece);
    plan.piece_rows = t.size() < 2 * kPiece ? plan.rows : kPiece / plan.piece_cols;
    plan.across = (plan.cols + plan.piece_cols - 1) / plan.piece_cols;
    const int64_t down = (plan.rows + plan.piece_rows - 1) / plan.piece_rows;
    pool_.run(
        down * plan.across,
        [](void* context, int64_t index, int) {
          const Plan& p = *static_cast<const Plan*>(context);
          const int64_t row = index / p.across * p.piece_rows;
          const int64_t first = index % p.across * p.piece_cols;
          const int64_t count = std::min(p.piece_cols, p.cols - first);
          for (int64_t i = row; i < std::min(p.rows, row + p.piece_rows); ++i)
            p.body(i, first, count);
        },
        &plan);
  }

  // Memory that lives as long as the backend.
  void* allocate_weight(size_t bytes) {
    weights_.emplace_back(nullptr, 0);
    weights_.back() = {allocate(bytes), bytes};
    return weights_.back().first;
  }

  const cpu::InstructionSet set_;
  const cpu::Kernels& kernels_;
  const cpu::TrainingKernels& training_;
  const cpu::Products products_;
  cpu::ThreadPool pool_;
  const std::string description_;
  const size_t max_memory_;
  const size_t free_at_start_;
  std::atomic<size_t> allocated_{0};  // read by statistics from other threads
  std::vector<std::pair<void*, size_t>> weights_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads, const char* isa, size_t max_memory,
                                          bool bf16) {
  constexpr int kMostThreads = 1024;
  if (threads < 1 || threads > kMostThreads)
    throw Error(error_code::kInvalidArgument, "expected 1 to " + std::to_string(kMostThreads) +
                                                  " threads but received " +
                                                  std::to_string(threads));
  return std::make_unique<CpuBackend>(threads, isa, max_memory, bf16);
}

}  // namespace unifluid
