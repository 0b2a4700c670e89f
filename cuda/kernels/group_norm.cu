// group_norm over a channels-last image, with SiLU: three kernels, two readings from memory.
//
// Pixels are cut into runs that blocks take with all their channels, since neighbouring channels
// lie side by side. A thread takes a mean and the sum of squared deviations from it of what it
// loads, in two passes over its registers; those of a run's threads are put together for each
// group, then, in float64, those of all runs, and become an offset and a factor for each channel;
// the last kernel applies them. Runs depend on the image's shape alone, and so does the order of
// all sums.
#include <algorithm>
#include <type_traits>

#include "cuda/device/math.h"
#include "cuda/device/warp.h"
#include "cuda/kernels.h"
#include "cuda/kernels/rows.h"

namespace unifluid::cuda {
namespace {

constexpr int kThreads = 256;

// Pixels of a run that a thread takes a piece of: 32 KiB of bfloat16 a block. A 64x64 image of 512
// channels is 128 runs, enough for most devices.
constexpr int kRunPixels = 8;

// Threads that put a group together.
constexpr int kGroupThreads = 8;

struct alignas(8) Moments {
  float mean, squares;  // `squares`: sum of squared deviations
};

struct Params {
  const void* x;
  void* out;
  const float *weight, *bias;
  Moments* moments;        // [groups][runs]
  float *center, *factor;  // [channels]: out = (x - center) * factor + bias
  int64_t x_stride, out_stride;
  int32_t pixels, channels, groups, group_channels;
  int32_t row_pieces;
  int32_t lanes;  // threads side by side on a pixel, at most kThreads
  int32_t step;   // pixels that are taken at once; each thread takes every `step`-th of a run
  int32_t runs;
  int32_t last_each, last_rest;  // of the last run, as in Run
  // Of the threads that put a group together a power of 2 lies side by side on a pixel.
  int32_t across_shift;
  float eps;
  bool silu;
};

// Which pieces and pixels a thread takes: every `lanes`-th piece from the first, and so on.
struct Place {
  int piece, pixel;
  bool working;  // threads that are left over are not
};
UNIFLUID_DEVICE Place place_of(const Params& p) {
  const uint32_t lanes = static_cast<uint32_t>(p.lanes);
  const int pixel = static_cast<int>(threadIdx.x / lanes);
  return {static_cast<int>(threadIdx.x % lanes), pixel, pixel < p.step};
}

// Pixels of a run: a thread has `each` of them, one more where its first is below `rest`.
struct Run {
  int first, each, rest;
  UNIFLUID_DEVICE int of_thread(int pixel) const { return each + (pixel < rest ? 1 : 0); }
};
UNIFLUID_DEVICE Run run_of(const Params& p, int index) {
  const int first = index * kRunPixels * p.step;
  if (index < p.runs - 1) return {first, kRunPixels, 0};
  return {first, p.last_each, p.last_rest};
}

// Pieces of a column as they are stored, of kCount pixels: all loads are under way before `value`
// is asked for.
template <class T, int kCount>
struct Held {
  static constexpr int kWords = kPiece * sizeof(T) / sizeof(uint32_t);
  uint32_t word[kCount][kWords];

  // Of the pixels first, first + step, ..., `count` of them at most.
  template <bool kAligned>
  UNIFLUID_DEVICE void load(const Params& p, int first, int count, int column) {
    const int64_t next = p.step * p.x_stride;
    const T* at = static_cast<const T*>(p.x) + first * p.x_stride + column;
#pragma unroll
    for (int j = 0; j < kCount; ++j, at += next) {
      if (j >= count) continue;
      if constexpr (kAligned) {
#pragma unroll
        for (int w = 0; w < kWords; w += 4) {
          const uint4 four = *reinterpret_cast<const uint4*>(at + w * kPiece / kWords);
          word[j][w] = four.x;
          word[j][w + 1] = four.y;
          word[j][w + 2] = four.z;
          word[j][w + 3] = four.w;
        }
      } else {
        const Piece piece = load_piece<false>(at, 0, p.channels - column);
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          if constexpr (kWords == kPiece)
            word[j][w] = __float_as_uint(piece.value[w]);
          else
            word[j][w] = pack_bf16(piece.value[2 * w], piece.value[2 * w + 1]);
        }
      }
    }
  }
  UNIFLUID_DEVICE float value(int j, int i) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(word[j][i]);
    return __uint_as_float(i % 2 == 0 ? word[j][i / 2] << 16 : word[j][i / 2] & 0xffff0000u);
  }
};

// ---- the moments of a run ----

// Every kPart of kPiece values added up, in a tree.
template <int kPart>
UNIFLUID_DEVICE void add_parts(float (&values)[kPiece], float (&sums)[kPiece / kPart]) {
#pragma unroll
  for (int by = 1; by < kPart; by *= 2)
#pragma unroll
    for (int i = 0; i < kPiece; i += 2 * by) values[i] += values[i + by];
#pragma unroll
  for (int i = 0; i < kPiece / kPart; ++i) sums[i] = values[i * kPart];
}

// Of `count` pixels' pieces. kPart neighbouring channels, all of one group, are a part.
template <int kPart, class T>
UNIFLUID_DEVICE void moments_of(const Held<T, kRunPixels>& held, int count,
                                Moments (&parts)[kPiece / kPart]) {
  float values[kPiece] = {}, sums[kPiece / kPart];
#pragma unroll
  for (int j = 0; j < kRunPixels; ++j) {
    if (j >= count) break;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) values[i] += held.value(j, i);
  }
  add_parts<kPart>(values, sums);
  const float share = count > 0 ? 1.0f / static_cast<float>(kPart * count) : 0.0f;
#pragma unroll
  for (int i = 0; i < kPiece / kPart; ++i) parts[i].mean = sums[i] * share;

#pragma unroll
  for (int i = 0; i < kPiece; ++i) values[i] = 0;
#pragma unroll
  for (int j = 0; j < kRunPixels; ++j) {
    if (j >= count) break;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const float d = held.value(j, i) - parts[i / kPart].mean;
      values[i] = fmaf(d, d, values[i]);
    }
  }
  add_parts<kPart>(values, sums);
#pragma unroll
  for (int i = 0; i < kPiece / kPart; ++i) parts[i].squares = sums[i];
}

template <class T, bool kAligned, int kPart>
__global__ void __launch_bounds__(kThreads, kAligned && sizeof(T) == 2 ? 4 : 2)
    run_moments(Params p) {
  constexpr int kParts = kPiece / kPart;
  const Place at = place_of(p);
  const int row_parts = p.row_pieces * kParts, group_parts = p.group_channels / kPart;
  SharedArena arena;
  // Of each part of the pixels that are taken at once, a mean and squares.
  const auto found = arena.take<float>(static_cast<uint32_t>(2 * p.step * row_parts));
  // From the end of the image: of a large one that is what the second-level cache still has of the
  // kernel before. The next one begins with what this one has read last.
  const int index = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const Run run = run_of(p, index);
  if (at.working)
    for (int piece = at.piece; piece < p.row_pieces; piece += p.lanes) {
      Held<T, kRunPixels> held;
      const int count = run.of_thread(at.pixel);
      held.template load<kAligned>(p, run.first + at.pixel, count, piece * kPiece);
      Moments parts[kParts];
      moments_of<kPart>(held, count, parts);
      const uint32_t to = 2 * static_cast<uint32_t>(at.pixel * row_parts + piece * kParts);
#pragma unroll
      for (uint32_t i = 0; i < kParts; ++i)
        found.store_pair(to + 2 * i, parts[i].mean, parts[i].squares);
    }
  __syncthreads();

  const int thread = static_cast<int>(threadIdx.x), lane = thread % kGroupThreads;
  const int across = 1 << p.across_shift;
  for (int base = 0; base < p.groups; base += kThreads / kGroupThreads) {
    const int group = base + thread / kGroupThreads;
    // The sum over this thread's parts of body(elements, moments).
    const auto sum_parts = [&](auto body) {
      float total = 0;
      if (group < p.groups)
        for (int pixel = lane >> p.across_shift; pixel < p.step;
             pixel += kGroupThreads >> p.across_shift) {
          const float count = static_cast<float>(kPart * run.of_thread(pixel));
          for (int part = lane & (across - 1); part < group_parts; part += across)
            total +=
                body(count, found.load_pair(2 * static_cast<uint32_t>(pixel * row_parts +
                                                                      group * group_parts + part)));
        }
      return warp_sum<kGroupThreads>(total);
    };
    const float sum = sum_parts([](float count, float2 of) { return count * of.x; });
    const float mean = sum / static_cast<float>((run.each * p.step + run.rest) * p.group_channels);
    const float squares = sum_parts([&](float count, float2 of) {
      const float d = of.x - mean;
      return fmaf(count * d, d, of.y);
    });
    if (lane == 0 && group < p.groups) p.moments[int64_t{group} * p.runs + index] = {mean, squares};
  }
}

// ---- all runs ----

// Threads on a group, and runs that are on their way to each at once: of all images up to 512x512
// with 256 channels all of them.
constexpr int kMergeThreads = 256, kMergeRuns = 16;

// The sum over this thread's runs of body(pixels, moments).
template <class Body>
UNIFLUID_DEVICE double sum_runs(const Params& p, const Moments* moments, Body body) {
  const int whole = kRunPixels * p.step, last = p.last_each * p.step + p.last_rest;
  double total = 0;
  for (int base = static_cast<int>(threadIdx.x); base < p.runs;
       base += kMergeThreads * kMergeRuns) {
    Moments held[kMergeRuns];
#pragma unroll
    for (int i = 0; i < kMergeRuns; ++i) {
      const int run = base + i * kMergeThreads;
      if (run < p.runs) held[i] = moments[run];
    }
#pragma unroll
    for (int i = 0; i < kMergeRuns; ++i) {
      const int run = base + i * kMergeThreads;
      if (run < p.runs) total += body(run < p.runs - 1 ? whole : last, held[i]);
    }
  }
  return total;
}

// A block for each group. Squares about the mean of a run are moved to that of all; what is read
// twice is in the cache by then.
__global__ void __launch_bounds__(kMergeThreads) merge_moments(Params p) {
  SharedArena arena;
  const auto scratch = arena.take<double>(kMergeThreads / kWarp);
  const int group = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const Moments* moments = p.moments + int64_t{group} * p.runs;
  const double width = p.group_channels, count = width * p.pixels;
  const double sum = block_sum(sum_runs(p, moments,
                                        [&](int pixels, const Moments& of) {
                                          return static_cast<double>(of.mean) * pixels;
                                        }),
                               scratch);
  const double mean = sum / p.pixels;
  const double squares = block_sum(sum_runs(p, moments,
                                            [&](int pixels, const Moments& of) {
                                              const double d = of.mean - mean;
                                              return of.squares + d * d * (width * pixels);
                                            }),
                                   scratch);

  const float scale = 1.0f / sqrtf(static_cast<float>(squares / count) + p.eps);
  for (int i = thread; i < p.group_channels; i += kMergeThreads) {
    const int channel = group * p.group_channels + i;
    p.center[channel] = static_cast<float>(mean);
    p.factor[channel] = scale * p.weight[channel];
  }
}

// ---- normalized ----

// Pixels whose elements are on their way at once.
constexpr int kNormalized = 4;

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) normalize(Params p) {
  const Place at = place_of(p);
  if (!at.working) return;
  const Run run = run_of(p, static_cast<int>(blockIdx.x));
  const int count = run.of_thread(at.pixel);
  for (int piece = at.piece; piece < p.row_pieces; piece += p.lanes) {
    const int column = piece * kPiece;
    const Piece center = load_piece<kAligned>(p.center, column, p.channels);
    const Piece factor = load_piece<kAligned>(p.factor, column, p.channels);
    const Piece bias = load_piece<kAligned>(p.bias, column, p.channels);
    for (int begin = 0; begin < count; begin += kNormalized) {
      const int first = run.first + at.pixel + begin * p.step;
      Held<T, kNormalized> held;
      held.template load<kAligned>(p, first, count - begin, column);
#pragma unroll
      for (int j = 0; j < kNormalized; ++j) {
        if (j >= count - begin) break;
        const int pixel = first + j * p.step;
        Piece v;
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
          v.value[i] = fmaf(held.value(j, i) - center.value[i], factor.value[i], bias.value[i]);
          if (p.silu) v.value[i] = activate<Activation::silu>(v.value[i]);
        }
        store_piece<kAligned>(static_cast<T*>(p.out) + pixel * p.out_stride, column, p.channels, v);
      }
    }
  }
}

// Calls body(std::integral_constant<int, kPart>): channels that a piece has of one group.
template <class Body>
void with_part(int group_channels, Body body) {
  if (group_channels % 8 == 0) return body(std::integral_constant<int, 8>{});
  if (group_channels % 4 == 0) return body(std::integral_constant<int, 4>{});
  if (group_channels % 2 == 0) return body(std::integral_constant<int, 2>{});
  body(std::integral_constant<int, 1>{});
}

}  // namespace

void group_norm(Queue& queue, const GroupNormArgs& args) {
  if (args.x.size() == 0) return;
  const int64_t channels = args.x.cols;
  Params p{};
  p.row_pieces = static_cast<int32_t>(blocks_for(channels, kPiece));
  p.lanes = p.row_pieces < kThreads ? p.row_pieces : kThreads;
  p.step = kThreads / p.lanes;
  const int64_t run = kRunPixels * p.step;
  p.runs = static_cast<int32_t>(blocks_for(args.x.rows, run));
  const int32_t last = static_cast<int32_t>(args.x.rows - (p.runs - 1) * run);
  p.last_each = last / p.step;
  p.last_rest = last % p.step;
  p.groups = static_cast<int32_t>(args.groups);
  const size_t moments = static_cast<size_t>(p.runs) * static_cast<size_t>(p.groups);
  const size_t vector = static_cast<size_t>(channels);
  queue.reserve_scratch(Queue::piece_bytes(moments * sizeof(Moments)) +
                        2 * Queue::piece_bytes(vector * sizeof(float)));
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
  p.eps = args.eps;
  p.silu = args.silu;

  const dim3 runs(static_cast<unsigned>(p.runs)), block(kThreads);
  const bool aligned = whole_pieces(args.x);
  const bool all_aligned = aligned && whole_pieces(args.out) && whole_pieces(args.bias);
  with_type(args.x.type, [&](auto t) {
    using T = decltype(t);
    // By the shape alone, whether rows are aligned or not.
    with_part(channels % kPiece == 0 ? p.group_channels : 1, [&](auto part) {
      constexpr int kPart = decltype(part)::value;
      while (2 << p.across_shift <= std::min(p.group_channels / kPart, kGroupThreads))
        ++p.across_shift;
      const size_t parts = static_cast<size_t>(p.step * p.row_pieces) * (kPiece / kPart);
      queue.launch(aligned ? run_moments<T, true, kPart> : run_moments<T, false, kPart>, runs,
                   block, SharedBytes{}.take<float>(2 * parts).used, p);
    });
    queue.launch(merge_moments, dim3(static_cast<unsigned>(p.groups)), dim3(kMergeThreads),
                 SharedBytes{}.take<double>(kMergeThreads / kWarp).used, p);
    queue.launch(all_aligned ? normalize<T, true> : normalize<T, false>, runs, block, 0, p);
  });
}

}  // namespace unifluid::cuda
