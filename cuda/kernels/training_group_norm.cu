// The gradient of group_norm with SiLU: a block for each group of each image, three passes over it.
//
// The images of an autoencoder's batch times its groups are blocks enough; a group's pixels are
// read from memory once and from the second-level cache then. Threads lie side by side on the
// channels of the group and take every `strips`-th pixel, so that each keeps the sums of one
// channel; these are added up strip by strip.
#include "cuda/device/math.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/training_sums.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

constexpr int kThreads = 512;

struct Params {
  Rows x, dout, dx;
  const float *weight, *bias;
  float *dweights, *dbiases;                // [images, channels]
  int32_t pixels, channels, groups, width;  // `width`: channels of a group
  int32_t lanes, strips;
  float eps;
  bool silu, accumulate;
};

// Calls body(row, channel) for the elements of this thread.
template <class Body>
UNIFLUID_DEVICE void each_element(const Params& p, int64_t first_row, int first_channel, int strip,
                                  int lane, Body body) {
  if (strip >= p.strips) return;
  for (int c = lane; c < p.width; c += p.lanes)
    for (int pixel = strip; pixel < p.pixels; pixel += p.strips)
      body(first_row + pixel, first_channel + c);
}

// The gradient before SiLU, of the affine value.
UNIFLUID_DEVICE float affine_gradient(const Params& p, float hat, float dout, int channel) {
  if (!p.silu) return dout;
  const float v = fmaf(hat, p.weight[channel], p.bias[channel]), s = sigmoid(v);
  return dout * fmaf(v * s, 1.0f - s, s);
}

__global__ void __launch_bounds__(kThreads) group_backward(Params p) {
  SharedArena arena;
  const auto scratch = arena.take<float>(kThreads / kWarp);
  const auto sums = arena.take<float>(2 * kThreads);
  const int image = static_cast<int>(blockIdx.x) / p.groups;
  const int first_channel = static_cast<int>(blockIdx.x) % p.groups * p.width;
  const int64_t first_row = int64_t{image} * p.pixels;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % p.lanes, strip = thread / p.lanes;
  const float count = static_cast<float>(p.pixels) * static_cast<float>(p.width);

  float total = 0, squares = 0;
  each_element(p, first_row, first_channel, strip, lane,
               [&](int64_t row, int channel) { total += p.x.at(row, channel); });
  const float mean = block_sum(total, scratch) / count;
  each_element(p, first_row, first_channel, strip, lane, [&](int64_t row, int channel) {
    const float d = p.x.at(row, channel) - mean;
    squares = fmaf(d, d, squares);
  });
  const float root = 1.0f / sqrtf(block_sum(squares, scratch) / count + p.eps);

  // Sums of each channel: all lanes take their next channel together.
  float all = 0, products = 0;
  for (int begin = 0; begin < p.width; begin += p.lanes) {
    const int c = begin + lane, channel = first_channel + c;
    float dweight = 0, dbias = 0;
    if (strip < p.strips && c < p.width)
      for (int pixel = strip; pixel < p.pixels; pixel += p.strips) {
        const float hat = (p.x.at(first_row + pixel, channel) - mean) * root;
        const float d = affine_gradient(p, hat, p.dout.at(first_row + pixel, channel), channel);
        dweight = fmaf(d, hat, dweight);
        dbias += d;
      }
    sums.store(static_cast<uint32_t>(thread), dweight);
    sums.store(static_cast<uint32_t>(kThreads + thread), dbias);
    __syncthreads();
    if (strip == 0 && c < p.width) {
      for (int s = 1; s < p.strips; ++s) {
        dweight += sums.load(static_cast<uint32_t>(s * p.lanes + lane));
        dbias += sums.load(static_cast<uint32_t>(kThreads + s * p.lanes + lane));
      }
      p.dweights[int64_t{image} * p.channels + channel] = dweight;
      p.dbiases[int64_t{image} * p.channels + channel] = dbias;
      all = fmaf(dbias, p.weight[channel], all);
      products = fmaf(dweight, p.weight[channel], products);
    }
    __syncthreads();
  }
  const float center = block_sum(all, scratch) / count, pull = block_sum(products, scratch) / count;

  each_element(p, first_row, first_channel, strip, lane, [&](int64_t row, int channel) {
    const float hat = (p.x.at(row, channel) - mean) * root;
    const float g = affine_gradient(p, hat, p.dout.at(row, channel), channel) * p.weight[channel];
    const float d = root * fmaf(-hat, pull, g - center);
    float& dx = p.dx.at(row, channel);
    dx = p.accumulate ? dx + d : d;
  });
}

}  // namespace

void group_norm_backward(Queue& queue, const GroupNormBackwardArgs& args) {
  if (args.x.size() == 0) return;
  const int64_t channels = args.x.cols;
  const size_t each = static_cast<size_t>(args.images * channels);
  queue.reserve_scratch(2 * Queue::piece_bytes(each * sizeof(float)));
  Params p{};
  p.x = args.x;
  p.dout = args.dout;
  p.dx = args.dx;
  p.weight = args.weight;
  p.bias = args.bias;
  p.dweights = queue.scratch<float>(each);
  p.dbiases = queue.scratch<float>(each);
  p.pixels = static_cast<int32_t>(args.x.rows / args.images);
  p.channels = static_cast<int32_t>(channels);
  p.groups = static_cast<int32_t>(args.groups);
  p.width = p.channels / p.groups;
  p.lanes = p.width < kThreads ? p.width : kThreads;
  p.strips = kThreads / p.lanes;
  p.eps = args.eps;
  p.silu = args.silu;
  p.accumulate = args.accumulate;
  queue.launch(group_backward, dim3(static_cast<unsigned>(args.images * args.groups)),
               dim3(kThreads),
               SharedBytes{}.take<float>(kThreads / kWarp).take<float>(2 * kThreads).used, p);
  if (args.dweight) add_runs(queue, p.dweights, args.images, channels, args.dweight);
  if (args.dbias) add_runs(queue, p.dbiases, args.images, channels, args.dbias);
}

}  // namespace unifluid::cuda
