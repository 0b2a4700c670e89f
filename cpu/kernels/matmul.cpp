// The matrix product of matmul.h: register tiles, and blocks over k that keep them fed.
//
// Weights are stored [outputs, k] and used where they lie, so a tile takes dot products: R rows
// times N outputs, one vector accumulator each, whose lanes are summed at the end. A step over k
// loads R + N vectors for R * N multiply-adds; bfloat16 and float16 become float32 on the way into
// the register. Where pairs of bfloat16 are multiplied (Products::bf16), such weights are taken as
// they are, and it is the rows that are rounded on the way.
#include "cpu/kernels/matmul.h"

#include "cpu/kernels/bf16_pairs.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// The largest tile: accumulators, rows and one weight vector fill the registers.
constexpr int kTileRows = 4;
constexpr int kTileOutputs = kRegisters >= 32 ? 6 : 3;
// A single row gets wider tiles, for enough independent multiply-adds in flight to hide their
// latency.
constexpr int kRowOutputs = 8;
// With few rows and weights that come from memory, narrower ones are faster: the processor follows
// fewer streams better, and memory is slower than even a few multiply-adds in flight.
constexpr int kStreamOutputs = 4;
// From so many bytes of weights on, which hardly lie in the second-level cache.
constexpr int64_t kStreamBytes = int64_t{128} << 10;
// How far beyond the next tile's weights such tiles fetch, in the order of addresses. The
// processor's own prefetching starts anew with each row and page. (Beside plain reading of the same
// memory, one row of bfloat16 weights with two threads: 0.65 without fetching, 0.75 with 8 outputs,
// 0.9 with 4.)
constexpr int64_t kFetchAhead = int64_t{8} << 10;

static_assert(kBlockRows % kTileRows == 0 && kBlockOutputs % kTileOutputs == 0 &&
              kBlockOutputs % kRowOutputs == 0);

// Rows and weights of type T as the loops below see them, `kStep` elements at a time: as float32.
template <class T>
struct Single {
  using Element = T;
  using RowElement = float;
  static constexpr bool kRounds = false;
  static constexpr int kStep = kLanes;
  UNIFLUID_INLINE Vec row(const float* x) { return load(x); }
  UNIFLUID_INLINE Vec row_n(const float* x, int n) { return load_n(x, n); }
  UNIFLUID_INLINE Vec weight(const T* w) { return load(w); }
  UNIFLUID_INLINE Vec weight_n(const T* w, int n) { return load_n(w, n); }
  UNIFLUID_INLINE Vec add_product(Vec row, Vec weight, Vec sum) { return fma(row, weight, sum); }
};

#if UNIFLUID_SIMD_AVX512

// As pairs of bfloat16: rows that are rounded already.
struct Pairs {
  using Element = BFloat16;
  using RowElement = BFloat16;
  static constexpr bool kRounds = false;
  static constexpr int kStep = 2 * kLanes;
  UNIFLUID_INLINE Vec row(const BFloat16* x) { return load_pairs(x); }
  UNIFLUID_INLINE Vec row_n(const BFloat16* x, int n) { return load_pairs_n(x, n); }
  UNIFLUID_INLINE Vec weight(const BFloat16* w) { return load_pairs(w); }
  UNIFLUID_INLINE Vec weight_n(const BFloat16* w, int n) { return load_pairs_n(w, n); }
  UNIFLUID_INLINE Vec add_product(Vec row, Vec weight, Vec sum) {
    return fma_pairs(row, weight, sum);
  }
};

// As pairs of bfloat16: rows that are rounded whenever they are read. Blocks of many rows, which
// many tiles read, are rounded ahead.
struct RoundingPairs : Pairs {
  using RowElement = float;
  using Rounded = Pairs;
  static constexpr bool kRounds = true;
  UNIFLUID_INLINE Vec row(const float* x) { return round_neighbours(load(x), load(x + kLanes)); }
  UNIFLUID_INLINE Vec row_n(const float* x, int n) {
    return n <= kLanes ? round_neighbours(load_n(x, n), zero())
                       : round_neighbours(load(x), load_n(x + kLanes, n - kLanes));
  }

  // Rows [0, rows) of x, elements [0, k): kRoundedStride from row to row.
  static void round(const float* x, int64_t x_stride, int64_t rows, int64_t k, BFloat16* out) {
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = x + i * x_stride;
      float* to = reinterpret_cast<float*>(out + i * kRoundedStride);
      int64_t c = 0;
      for (; c + kStep <= k; c += kStep) store(to + c / 2, row(from + c));
      if (c < k) store(to + c / 2, row_n(from + c, static_cast<int>(k - c)));
    }
  }
};

#endif

// The loops over a tile's rows and outputs have to vanish for its accumulators to be registers.
#define UNIFLUID_UNROLL _Pragma("GCC unroll 64")

// What is to be done with one tile besides the products of its part of k.
enum Part { kWhole, kFirst, kMiddle, kLast };

// Products of R rows and N outputs over [0, k) of the given pointers. kFirst and kMiddle leave
// their accumulators in `saved`, kMiddle and kLast begin with them; kWhole and kLast write sums to
// `out`. Only with kWhole and kLast may k be other than a multiple of W::kStep. kStream:
// fetch ahead.
template <class W, int R, int N, bool kStream = false>
UNIFLUID_INLINE void tile(const typename W::RowElement* x, int64_t x_stride,
                          const typename W::Element* w, int64_t w_stride, int64_t k, float* out,
                          int64_t out_stride, Part part, Vec* saved) {
  constexpr int kPadded = divide_up(R * N, kLanes) * kLanes;
  Vec acc[kPadded];
  if (part == kWhole || part == kFirst) {
    UNIFLUID_UNROLL
    for (int t = 0; t < R * N; ++t) acc[t] = zero();
  } else {
    UNIFLUID_UNROLL
    for (int t = 0; t < R * N; ++t) acc[t] = saved[t];
  }
  int64_t c = 0;
  for (; c + W::kStep <= k; c += W::kStep) {
    Vec rows[R];
    UNIFLUID_UNROLL
    for (int i = 0; i < R; ++i) rows[i] = W::row(x + i * x_stride + c);
    if (kStream) {
      const char* ahead = reinterpret_cast<const char*>(w + N * w_stride + N * c) + kFetchAhead;
      UNIFLUID_UNROLL
      for (int b = 0; b < N * W::kStep * static_cast<int>(sizeof(*w)); b += 64)
        __builtin_prefetch(ahead + b, 0, 3);
    }
    UNIFLUID_UNROLL
    for (int j = 0; j < N; ++j) {
      const Vec weight = W::weight(w + j * w_stride + c);
      UNIFLUID_UNROLL
      for (int i = 0; i < R; ++i) acc[i * N + j] = W::add_product(rows[i], weight, acc[i * N + j]);
    }
  }
  if (c < k) {
    const int n = static_cast<int>(k - c);
    Vec rows[R];
    UNIFLUID_UNROLL
    for (int i = 0; i < R; ++i) rows[i] = W::row_n(x + i * x_stride + c, n);
    UNIFLUID_UNROLL
    for (int j = 0; j < N; ++j) {
      const Vec weight = W::weight_n(w + j * w_stride + c, n);
      UNIFLUID_UNROLL
      for (int i = 0; i < R; ++i) acc[i * N + j] = W::add_product(rows[i], weight, acc[i * N + j]);
    }
  }
  if (part == kFirst || part == kMiddle) {
    UNIFLUID_UNROLL
    for (int t = 0; t < R * N; ++t) saved[t] = acc[t];
    return;
  }
  UNIFLUID_UNROLL
  for (int t = R * N; t < kPadded; ++t) acc[t] = zero();
  float total[kPadded];
  UNIFLUID_UNROLL
  for (int t = 0; t < kPadded; t += kLanes) store(total + t, sums(acc + t));
  UNIFLUID_UNROLL
  for (int i = 0; i < R; ++i)
    __builtin_memcpy(out + i * out_stride, total + i * N, N * sizeof(float));
}

// Tiles down all rows, for N outputs.
template <class W, int N>
void tiles(const typename W::RowElement* x, int64_t x_stride, int64_t rows,
           const typename W::Element* w, int64_t w_stride, int64_t k, float* out,
           int64_t out_stride, Part part, Vec* saved) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows, saved += kTileRows * N) {
    tile<W, kTileRows, N>(x + i * x_stride, x_stride, w, w_stride, k, out + i * out_stride,
                          out_stride, part, saved);
  }
  x += i * x_stride;
  out += i * out_stride;
  switch (rows - i) {
    case 1:
      return tile<W, 1, N>(x, x_stride, w, w_stride, k, out, out_stride, part, saved);
    case 2:
      return tile<W, 2, N>(x, x_stride, w, w_stride, k, out, out_stride, part, saved);
    case 3:
      return tile<W, 3, N>(x, x_stride, w, w_stride, k, out, out_stride, part, saved);
  }
}

// All rows, for as many outputs as one strip of tiles may have.
template <class W>
void strip(const typename W::RowElement* x, int64_t x_stride, int64_t rows,
           const typename W::Element* w, int64_t w_stride, int64_t k, int64_t outputs, float* out,
           int64_t out_stride, Part part, Vec* saved) {
#define UNIFLUID_STRIP(n) \
  tiles<W, n>(x, x_stride, rows, w, w_stride, k, out, out_stride, part, saved)
  switch (outputs) {
    case 1:
      return UNIFLUID_STRIP(1);
    case 2:
      return UNIFLUID_STRIP(2);
    case 3:
      return UNIFLUID_STRIP(3);
    case 4:
      return UNIFLUID_STRIP(4);
    case 5:
      return UNIFLUID_STRIP(5);
    case 6:
      return UNIFLUID_STRIP(6);
  }
#undef UNIFLUID_STRIP
}

// R rows, at most kTileRows, for all outputs: N at a time where the weights lie in a cache.
template <class W, int R, int N>
void few_rows(const float* x, int64_t x_stride, const typename W::Element* w, int64_t w_stride,
              int64_t k, int64_t count, float* out, int64_t out_stride) {
  const int64_t row_bytes = w_stride * static_cast<int64_t>(sizeof(*w));
  int64_t j = 0;
  if (count * row_bytes >= kStreamBytes) {
    // What a tile fetches must not lie beyond the last output.
    const int64_t end = count - 2 * kStreamOutputs - kFetchAhead / row_bytes;
    for (; j < end; j += kStreamOutputs)
      tile<W, R, kStreamOutputs, true>(x, x_stride, w + j * w_stride, w_stride, k, out + j,
                                       out_stride, kWhole, nullptr);
  }
  for (; j + N <= count; j += N)
    tile<W, R, N>(x, x_stride, w + j * w_stride, w_stride, k, out + j, out_stride, kWhole, nullptr);
  for (; j < count; j += kTileOutputs)
    strip<W>(x, x_stride, R, w + j * w_stride, w_stride, k, smaller(kTileOutputs, count - j),
             out + j, out_stride, kWhole, nullptr);
}

template <class W>
void multiply(const float* x, int64_t x_stride, int64_t rows, const typename W::Element* w,
              int64_t w_stride, int64_t k, int64_t count, float* out, int64_t out_stride,
              Vec* saved) {
  switch (rows) {
    case 1:
      return few_rows<W, 1, kRowOutputs>(x, x_stride, w, w_stride, k, count, out, out_stride);
    case 2:
      return few_rows<W, 2, kTileOutputs>(x, x_stride, w, w_stride, k, count, out, out_stride);
    case 3:
      return few_rows<W, 3, kTileOutputs>(x, x_stride, w, w_stride, k, count, out, out_stride);
    case 4:
      return few_rows<W, 4, kTileOutputs>(x, x_stride, w, w_stride, k, count, out, out_stride);
  }
  // Equal blocks, whole steps each.
  const int64_t blocks = saved && rows > 2 * kTileRows ? divide_up(k, kBlockK) : 1;
  const int64_t step = divide_up(k / W::kStep, blocks) * W::kStep;
  for (int64_t i = 0; i < rows; i += kBlockRows) {
    const int64_t block_rows = smaller(kBlockRows, rows - i);
    for (int64_t j = 0; j < count; j += kBlockOutputs) {
      const int64_t block_end = smaller(j + kBlockOutputs, count);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t first = b * step;
        const int64_t part_k = b + 1 < blocks ? step : k - first;
        const Part part = blocks == 1 ? kWhole : b == 0 ? kFirst : b + 1 < blocks ? kMiddle : kLast;
        const float* from = x + i * x_stride + first;
        const auto strips = [&](auto form, const auto* rows_from, int64_t stride) {
          for (int64_t n = j; n < block_end; n += kTileOutputs)
            strip<decltype(form)>(rows_from, stride, block_rows, w + n * w_stride + first, w_stride,
                                  part_k, smaller(kTileOutputs, block_end - n),
                                  out + i * out_stride + n, out_stride, part,
                                  saved ? saved + block_rows * (n - j) : nullptr);
        };
        if constexpr (W::kRounds) {
          if (saved && part_k <= kRoundedStride) {
            auto* rounded = reinterpret_cast<BFloat16*>(saved + kBlockRows * kBlockOutputs);
            W::round(from, x_stride, block_rows, part_k, rounded);
            strips(typename W::Rounded{}, rounded, kRoundedStride);
            continue;
          }
        }
        strips(W{}, from, x_stride);
      }
    }
  }
}

}  // namespace

void matmul(const float* x, int64_t x_stride, int64_t rows, const Tensor& weight, Products products,
            int64_t first, int64_t count, float* out, int64_t out_stride, void* scratch) {
  const void* w = weight.row(first);
  const auto with = [&](auto form) {
    using W = decltype(form);
    multiply<W>(x, x_stride, rows, static_cast<const typename W::Element*>(w), weight.stride,
                weight.cols, count, out, out_stride, static_cast<Vec*>(scratch));
  };
  switch (weight.type) {
    case DType::f32:
      return with(Single<float>{});
    case DType::f16:
      return with(Single<Float16>{});
    case DType::bf16:
#if UNIFLUID_SIMD_AVX512
      if (products == Products::bf16) return with(RoundingPairs{});
#endif
      return with(Single<BFloat16>{});
  }
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
