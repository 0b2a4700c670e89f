#include "cuda/kernels/warpgroup_probe.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/kernels/convolution.h"
#include "cuda/kernels/linear.h"
#include "cuda/kernels/tile_cost.h"
#include "cuda/tensor_map.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

// Device memory of a probe.
class Memory {
 public:
  Memory(Queue& queue, size_t bytes)
      : queue_(queue), data_(queue.memory().allocate(bytes)), bytes_(bytes) {
    if (!data_) queue.memory().refuse(bytes, "a trial of products", 0);
  }
  ~Memory() { queue_.memory().release(data_, bytes_); }
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
    queue_.check_work(
        cudaMemcpyAsync(data_, values.data(), bytes_, cudaMemcpyHostToDevice, queue_.stream()),
        "copying trial operands");
    queue_.synchronize();
  }
  void clear() {
    queue_.check_work(cudaMemsetAsync(data_, 0xff, bytes_, queue_.stream()), "setting memory");
  }
  std::vector<unsigned char> contents() {
    std::vector<unsigned char> bytes(bytes_);
    queue_.check_work(
        cudaMemcpyAsync(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost, queue_.stream()),
        "copying trial results");
    queue_.synchronize();
    return bytes;
  }

  // The first rows * cols elements.
  Tensor tensor(DType type, int64_t rows, int64_t cols) { return {data_, type, rows, cols}; }

 private:
  Queue& queue_;
  void* data_;
  size_t bytes_;
};

// More than a tile of rows and of columns, and ends of rows, columns and k within tiles.
constexpr int64_t kRows = 200, kColumns = 328, kDepth = 136;
// Heads of each size that has a kernel, two to a key head, of a sequence that ends within a block
// of keys.
constexpr int64_t kHeads = 2, kHeadDims[] = {64, 128, 256}, kSequence = 136;
constexpr int64_t kLargestHead = 256;
// An image that is enlarged, of more than a tile in either direction.
constexpr int64_t kHeight = 11, kWidth = 20, kChannels = 128, kOutputs = 72;

bool agrees(Queue& queue) {
  Memory x(queue, kRows * kHeads * kLargestHead * 2), weights(queue, 2 * kColumns * kDepth * 2);
  Memory out(queue, kRows * kHeads * kLargestHead * 4);
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
  const auto attended = [&](int64_t head_dim) {
    AttentionArgs args{};
    args.q = x.tensor(DType::bf16, kSequence, kHeads * head_dim);
    args.k = weights.tensor(DType::bf16, kSequence, head_dim);
    args.v = args.k;
    args.heads = kHeads;
    args.kv_heads = 1;
    args.head_dim = head_dim;
    args.scale = 0.5f;
    args.soft_cap = 50;
    args.first_position = 0;
    args.spans = &span;
    args.span_count = 1;
    args.out = out.tensor(DType::bf16, kSequence, kHeads * head_dim);
    return result([&] { attention(queue, args); });
  };

  ConvolutionArgs convolution_args{};
  convolution_args.x = x.tensor(DType::bf16, kHeight * kWidth, kChannels);
  convolution_args.geometry = {.height = kHeight,
                               .width = kWidth,
                               .upsample = 2,
                               .kernel = 3,
                               .stride = 1,
                               .pad_before = 1,
                               .pad_after = 1};
  convolution_args.weight = weights.tensor(DType::bf16, kOutputs, 9 * kChannels);
  convolution_args.bias = static_cast<const float*>(x.tensor(DType::f32, 1, kOutputs).data);
  convolution_args.out = out.tensor(DType::bf16, 4 * kHeight * kWidth, kOutputs);

  const auto product = result([&] { linear(queue, linear_args); });
  const auto gated = result([&] { gated_linear(queue, gated_args); });
  const auto convolved = result([&] { convolution(queue, convolution_args); });
  const LinearParams p = params_of(linear_args), gated_p = params_of(gated_args);
  for (const WarpgroupTile& tile : kWarpgroupTiles) {
    if (result([&] { multiply_by_warpgroups(queue, &p, 1, tile.columns); }) != product)
      return false;
    if (tile.gated &&
        result([&] { multiply_gated_by_warpgroups(queue, gated_p, tile.columns); }) != gated)
      return false;
    if (tile.images &&
        result([&] { convolve_by_warpgroups(queue, convolution_args, tile.columns); }) != convolved)
      return false;
  }
  for (int64_t head_dim : kHeadDims) {
    queue.allow_warpgroups(false);
    const auto by_warps = attended(head_dim);
    queue.allow_warpgroups(true);
    if (attended(head_dim) != by_warps) return false;
  }
  return true;
}

}  // namespace

bool transposed_products_agree(Queue& queue) {
  Memory a(queue, kDepth * kRows * 2), b(queue, kDepth * kColumns * 2);
  Memory out(queue, kRows * kColumns * 4);
  a.fill(3);
  b.fill(4);
  GemmArgs args{};
  args.b = b.tensor(DType::bf16, kDepth, kColumns);
  args.bf16 = true;
  args.out = out.tensor(DType::f32, kRows, kColumns);
  const bool before = queue.limits().transposed;
  const auto result = [&](bool as_they_lie) {
    queue.allow_transposed(as_they_lie);
    out.clear();
    queue.begin_operation();
    gemm(queue, args);
    queue.synchronize();
    return out.contents();
  };
  bool same = true;
  for (bool transpose : {false, true}) {
    args.transpose_a = transpose;
    args.a = a.tensor(DType::bf16, transpose ? kDepth : kRows, transpose ? kRows : kDepth);
    same = same && result(true) == result(false);
  }
  queue.allow_transposed(before);
  return same;
}

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
