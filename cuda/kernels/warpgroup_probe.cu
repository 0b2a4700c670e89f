#include "cuda/kernels/warpgroup_probe.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/kernels/linear.h"
#include "cuda/kernels/tile_cost.h"
#include "cuda/tensor_map.h"

namespace unifluid::cuda {
namespace {

// Device memory of a probe.
class Memory {
 public:
  Memory(Queue& queue, size_t bytes) : queue_(queue), bytes_(bytes) {
    if (cudaMalloc(&data_, bytes) != cudaSuccess) {
      cudaGetLastError();
      throw Error(error_code::kInsufficientMemory,
                  "expected " + std::to_string(bytes) +
                      " bytes of GPU memory to try its products but they could not be had");
    }
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // Numbers of either sign and of many magnitudes, so that sums round at every step.
  void fill(uint64_t seed) {
    std::vector<uint16_t> values(bytes_ / 2);
    for (uint16_t& v : values) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      const uint64_t random = seed >> 40;
      const uint64_t exponent = 120 + random % 8;  // 2^-7 to 1
      v = static_cast<uint16_t>((random >> 3 & 1) << 15 | exponent << 7 | (random >> 4 & 0x7f));
    }
    check(cudaMemcpyAsync(data_, values.data(), bytes_, cudaMemcpyHostToDevice, queue_.stream()),
          "to copy numbers to try");
    queue_.synchronize();
  }
  void clear() { check(cudaMemsetAsync(data_, 0xff, bytes_, queue_.stream()), "to set memory"); }
  std::vector<unsigned char> contents() {
    std::vector<unsigned char> bytes(bytes_);
    check(cudaMemcpyAsync(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost, queue_.stream()),
          "to copy what was tried");
    queue_.synchronize();
    return bytes;
  }

  // The first rows * cols elements.
  Tensor tensor(DType type, int64_t rows, int64_t cols) { return {data_, type, rows, cols}; }

 private:
  Queue& queue_;
  void* data_ = nullptr;
  size_t bytes_;
};

// More than a tile of rows and of columns, and ends of rows, columns and k within tiles.
constexpr int64_t kRows = 200, kColumns = 328, kDepth = 136;
// Heads of the largest size, two to a key head, of a sequence that ends within a block of keys.
constexpr int64_t kHeads = 2, kHeadDim = 256, kSequence = 136;
// An image that is enlarged, of more than a tile in either direction.
constexpr int64_t kHeight = 11, kWidth = 20, kChannels = 128, kOutputs = 72;

bool agrees(Queue& queue) {
  Memory x(queue, kRows * kHeads * kHeadDim * 2), weights(queue, 2 * kColumns * kDepth * 2);
  Memory out(queue, kRows * kHeads * kHeadDim * 4);
  x.fill(1);
  weights.fill(2);
  const auto result = [&](auto run) {
    out.clear();
    queue.begin_operation();
    run();
    queue.synchronize();
    return out.contents();
  };

  LinearArgs linear_args{};
  linear_args.x = x.tensor(DType::bf16, kRows, kDepth);
  linear_args.weight = weights.tensor(DType::bf16, kColumns, kDepth);
  linear_args.out = out.tensor(DType::f32, kRows, kColumns);

  GatedLinearArgs gated_args{};
  gated_args.x = linear_args.x;
  const Tensor both = weights.tensor(DType::bf16, 2 * kColumns, kDepth);
  gated_args.gate = both.slice(0, kColumns);
  gated_args.up = both.slice(kColumns, kColumns);
  gated_args.out = out.tensor(DType::bf16, kRows, kColumns);

  AttentionSpan span{};
  span.rows = kSequence;
  AttentionArgs attention_args{};
  attention_args.q = x.tensor(DType::bf16, kSequence, kHeads * kHeadDim);
  attention_args.k = weights.tensor(DType::bf16, kSequence, kHeadDim);
  attention_args.v = attention_args.k;
  attention_args.heads = kHeads;
  attention_args.kv_heads = 1;
  attention_args.head_dim = kHeadDim;
  attention_args.scale = 0.5f;
  attention_args.soft_cap = 50;
  attention_args.first_position = 0;
  attention_args.spans = &span;
  attention_args.span_count = 1;
  attention_args.out = out.tensor(DType::bf16, kSequence, kHeads * kHeadDim);

  ConvolutionArgs convolution_args{};
  convolution_args.x = x.tensor(DType::bf16, kHeight * kWidth, kChannels);
  convolution_args.height = kHeight;
  convolution_args.width = kWidth;
  convolution_args.upsample = 2;
  convolution_args.kernel = 3;
  convolution_args.stride = 1;
  convolution_args.pad_before = convolution_args.pad_after = 1;
  convolution_args.weight = weights.tensor(DType::bf16, kOutputs, 9 * kChannels);
  convolution_args.bias = static_cast<const float*>(x.tensor(DType::f32, 1, kOutputs).data);
  convolution_args.out = out.tensor(DType::bf16, 4 * kHeight * kWidth, kOutputs);

  const auto product = result([&] { linear(queue, linear_args); });
  const auto gated = result([&] { gated_linear(queue, gated_args); });
  for (const TileCost& tile : kWarpgroupTiles) {
    const auto by_warpgroups = [&](const LinearParams& p, bool is_gated) {
      return result([&] { multiply_by_warpgroups(queue, p, is_gated, tile.columns); });
    };
    if (by_warpgroups(params_of(linear_args), false) != product ||
        by_warpgroups(params_of(gated_args), true) != gated)
      return false;
  }
  const auto attended = [&] { return result([&] { attention(queue, attention_args); }); };
  const auto convolved = [&] { return result([&] { convolution(queue, convolution_args); }); };
  const auto attended_by_warps = attended(), convolved_by_warps = convolved();
  queue.allow_warpgroups(true);
  return attended() == attended_by_warps && convolved() == convolved_by_warps;
}

}  // namespace

WarpgroupState choose_warpgroups(Queue& queue) {
  constexpr size_t kShared = size_t{227} << 10;
  queue.allow_warpgroups(false);
  const DeviceLimits& limits = queue.limits();
  if (limits.capability != 90 || limits.shared_bytes < kShared || !has_tensor_maps())
    return WarpgroupState::absent;
  const char* setting = std::getenv("UNIFLUID_CUDA_WARPGROUPS");
  const std::string asked = setting ? setting : "";
  if (asked == "0") return WarpgroupState::refused;
  const bool same = asked == "1" || agrees(queue);
  queue.allow_warpgroups(same);
  return same ? WarpgroupState::used : WarpgroupState::differs;
}

}  // namespace unifluid::cuda
