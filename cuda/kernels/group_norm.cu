// group_norm over a channels-last image, with SiLU: three kernels, two readings from memory.
//
// Pixels are cut into runs that blocks take with all their channels, since neighbouring channels
// lie side by side. For each run and group a mean and the sum of squared deviations from it are
// taken in two passes (the second finds the run in the cache); those of all runs are put together
// in order, in float64 (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
// computing sample variances", 1979), and become an offset and a factor for each channel; the last
// kernel applies them. Runs depend on the image's shape alone.
#include "cuda/device/math.h"
#include "cuda/device/warp.h"
#include "cuda/kernels.h"
#include "cuda/kernels/rows.h"

namespace unifluid::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// Elements of a run: 8 pieces a thread, 32 KiB of bfloat16, which four blocks' first-level cache
// holds till the second pass; a 64x64 image of 512 channels is 128 runs, enough for most devices.
constexpr int64_t kRunElements = int64_t{1} << 14;

struct Moments {
  double mean, squares;  // `squares`: sum of squared deviations
};

struct Params {
  const void* x;
  void* out;
  const float *weight, *bias;
  Moments* moments;        // [runs][groups]
  float *center, *factor;  // [channels]: out = (x - center) * factor + bias
  int64_t x_stride, out_stride;
  int32_t pixels, channels, groups, group_channels;
  int32_t run, runs;  // pixels of a run
  int32_t row_pieces;
  int32_t lanes;  // threads side by side on a pixel, at most kThreads
  float eps;
  bool silu;
};

// A block's threads on a run: each takes pieces of channels, and every `step`-th pixel.
struct Place {
  int piece, pixel, step;
  bool working;  // threads that are left over are not
};
UNIFLUID_DEVICE Place place_of(const Params& p) {
  const int thread = static_cast<int>(threadIdx.x), step = kThreads / p.lanes;
  return {thread % p.lanes, thread / p.lanes, step, thread / p.lanes < step};
}

// Of every group over the run: the sum of its elements, or with kSquares of their squared
// deviations from `means` [groups]. finish(group, sum) is called by one thread, the same for both
// sums. `sums` holds a row of channels, rounded up to pieces, for each pixel that is taken at once.
template <class T, bool kAligned, bool kSquares, class Finish>
UNIFLUID_DEVICE void group_sums(const Params& p, const Shared<float>& sums,
                                const Shared<float>& means, Finish finish) {
  const T* x = static_cast<const T*>(p.x);
  const Place at = place_of(p);
  const int first = static_cast<int>(blockIdx.x) * p.run, end = min(first + p.run, p.pixels);
  const int row = p.row_pieces * kPiece;
  if (at.working) {
    for (int piece = at.piece; piece < p.row_pieces; piece += p.lanes) {
      const int column = piece * kPiece;
      Piece total{}, center{};
      if constexpr (kSquares)
        for (int i = 0; i < kPiece; ++i)
          center.value[i] =
              means.load(static_cast<uint32_t>(min(column + i, p.channels - 1) / p.group_channels));
      for (int pixel = first + at.pixel; pixel < end; pixel += at.step) {
        const Piece v = load_piece<kAligned>(x + pixel * p.x_stride, column, p.channels);
        for (int i = 0; i < kPiece; ++i) {
          if constexpr (kSquares) {
            const float d = v.value[i] - center.value[i];
            total.value[i] = fmaf(d, d, total.value[i]);
          } else {
            total.value[i] += v.value[i];
          }
        }
      }
      for (int i = 0; i < kPiece; ++i)
        sums.store(static_cast<uint32_t>(at.pixel * row + column + i), total.value[i]);
    }
  }
  __syncthreads();
  for (int group = warp_index(); group < p.groups; group += kWarps) {
    float total = 0;
    for (int i = lane_index(); i < at.step * p.group_channels; i += kWarp)
      total += sums.load(static_cast<uint32_t>(i / p.group_channels * row +
                                               group * p.group_channels + i % p.group_channels));
    total = warp_sum(total);
    if (lane_index() == 0) finish(static_cast<uint32_t>(group), total);
  }
  __syncthreads();
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) run_moments(Params p) {
  SharedArena arena;
  const auto means = arena.take<float>(static_cast<uint32_t>(p.groups));
  const auto sums =
      arena.take<float>(static_cast<uint32_t>(kThreads / p.lanes * p.row_pieces * kPiece));
  const int first = static_cast<int>(blockIdx.x) * p.run;
  const int count = min(p.run, p.pixels - first) * p.group_channels;
  Moments* moments = p.moments + int64_t{blockIdx.x} * p.groups;
  group_sums<T, kAligned, false>(p, sums, means, [&](uint32_t group, float total) {
    means.store(group, total / static_cast<float>(count));
  });
  group_sums<T, kAligned, true>(p, sums, means, [&](uint32_t group, float total) {
    moments[group] = {means.load(group), total};
  });
}

// ---- all runs ----

constexpr int kMergeThreads = 128, kMergeWarps = kMergeThreads / kWarp;
// Runs that a thread merges at least, so that small images take the same way as large ones.
constexpr int kMergeRuns = 4;

struct Part {
  double count = 0, mean = 0, squares = 0;
};
UNIFLUID_DEVICE Part merged(const Part& a, const Part& b) {
  const double count = a.count + b.count;
  if (count == 0) return a;
  const double difference = b.mean - a.mean;
  return {count, a.mean + difference * b.count / count,
          a.squares + b.squares + difference * difference * a.count * b.count / count};
}

// A block for each group: every thread merges a stretch of runs, then the threads' are merged.
__global__ void __launch_bounds__(kMergeThreads) merge_moments(Params p) {
  SharedArena arena;
  const auto parts = arena.take<double>(3 * kMergeWarps);
  const int group = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int stretch = max((p.runs + kMergeThreads - 1) / kMergeThreads, kMergeRuns);
  const int first = min(thread * stretch, p.runs), end = min(first + stretch, p.runs);
  Part part;
  for (int run = first; run < end; ++run) {
    const Moments& moments = p.moments[int64_t{run} * p.groups + group];
    const double count = static_cast<double>(min(p.run, p.pixels - run * p.run)) * p.group_channels;
    part = merged(part, {count, moments.mean, moments.squares});
  }
  for (unsigned by = 1; by < kWarp; by *= 2)
    part = merged(part, {__shfl_down_sync(kAllLanes, part.count, by),
                         __shfl_down_sync(kAllLanes, part.mean, by),
                         __shfl_down_sync(kAllLanes, part.squares, by)});
  if (lane_index() == 0) {
    const uint32_t at = 3 * static_cast<uint32_t>(warp_index());
    parts.store(at, part.count);
    parts.store(at + 1, part.mean);
    parts.store(at + 2, part.squares);
  }
  __syncthreads();
  Part all;
  for (uint32_t at = 0; at < 3 * kMergeWarps; at += 3)
    all = merged(all, {parts.load(at), parts.load(at + 1), parts.load(at + 2)});

  const float scale = 1.0f / sqrtf(static_cast<float>(all.squares / all.count) + p.eps);
  for (int i = thread; i < p.group_channels; i += kMergeThreads) {
    const int channel = group * p.group_channels + i;
    p.center[channel] = static_cast<float>(all.mean);
    p.factor[channel] = scale * p.weight[channel];
  }
}

// ---- normalized ----

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) normalize(Params p) {
  const Place at = place_of(p);
  if (!at.working) return;
  const int first = static_cast<int>(blockIdx.x) * p.run, end = min(first + p.run, p.pixels);
  for (int piece = at.piece; piece < p.row_pieces; piece += p.lanes) {
    const int column = piece * kPiece;
    const Piece center = load_piece<kAligned>(p.center, column, p.channels);
    const Piece factor = load_piece<kAligned>(p.factor, column, p.channels);
    const Piece bias = load_piece<kAligned>(p.bias, column, p.channels);
    for (int pixel = first + at.pixel; pixel < end; pixel += at.step) {
      Piece v =
          load_piece<kAligned>(static_cast<const T*>(p.x) + pixel * p.x_stride, column, p.channels);
      for (int i = 0; i < kPiece; ++i) {
        v.value[i] = fmaf(v.value[i] - center.value[i], factor.value[i], bias.value[i]);
        if (p.silu) v.value[i] = activate<Activation::silu>(v.value[i]);
      }
      store_piece<kAligned>(static_cast<T*>(p.out) + pixel * p.out_stride, column, p.channels, v);
    }
  }
}

}  // namespace

void group_norm(Queue& queue, const GroupNormArgs& args) {
  if (args.x.size() == 0) return;
  const int64_t channels = args.x.cols;
  Params p{};
  p.run = static_cast<int32_t>(channels < kRunElements ? kRunElements / channels : 1);
  p.runs = static_cast<int32_t>(blocks_for(args.x.rows, p.run));
  p.groups = static_cast<int32_t>(args.groups);
  const size_t moments = static_cast<size_t>(p.runs) * static_cast<size_t>(p.groups);
  const size_t vector = static_cast<size_t>(channels);
  queue.reserve_scratch(moments * sizeof(Moments) + 2 * vector * sizeof(float) + 3 * 256);
  p.moments = queue.scratch<Moments>(moments);
  p.center = queue.scratch<float>(vector);
  p.factor = queue.scratch<float>(vector);
  p.x = args.x.data;
  p.out = args.out.data;
  p.weight = args.weight;
  p.bias = args.bias;
  p.x_stride = args.x.stride;
  p.out_stride = args.out.stride;
  p.pixels = static_cast<int32_t>(args.x.rows);
  p.channels = static_cast<int32_t>(channels);
  p.group_channels = p.channels / p.groups;
  p.row_pieces = static_cast<int32_t>(blocks_for(channels, kPiece));
  p.lanes = p.row_pieces < kThreads ? p.row_pieces : kThreads;
  p.eps = args.eps;
  p.silu = args.silu;

  const dim3 runs(static_cast<unsigned>(p.runs));
  const size_t shared =
      SharedBytes{}
          .take<float>(static_cast<size_t>(p.groups))
          .take<float>(static_cast<size_t>(kThreads / p.lanes * p.row_pieces) * kPiece)
          .used;
  const bool aligned = whole_pieces(args.x) && whole_pieces(args.out) && whole_pieces(args.bias);
  with_type(args.x.type, [&](auto t) {
    using T = decltype(t);
    queue.launch(aligned ? run_moments<T, true> : run_moments<T, false>, runs, dim3(kThreads),
                 shared, p);
    queue.launch(merge_moments, dim3(static_cast<unsigned>(p.groups)), dim3(kMergeThreads),
                 SharedBytes{}.take<double>(3 * kMergeWarps).used, p);
    queue.launch(aligned ? normalize<T, true> : normalize<T, false>, runs, dim3(kThreads), 0, p);
  });
}

}  // namespace unifluid::cuda
