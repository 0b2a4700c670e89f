// The product of gemm.h, after Goto and van de Geijn ("Anatomy of high-performance matrix
// multiplication", 2008): panels of B that stay in the first-level cache, blocks of A in the
// second, tiles of the result in registers.
//
// B is packed, kVectors vectors of columns to a panel, so that a step over k reads two or three
// vectors that lie together. A is read where it lies where it can be: a tile broadcasts single
// elements, which may be a row or a column apart. With bfloat16 both are rounded on the way into
// their packed form; where the processor multiplies pairs of bfloat16 (AVX512-BF16) an element of
// the packed form is such a pair, and everything else stays the same.
#include "cpu/kernels/gemm.h"

#include "cpu/kernels/gemm_tile.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// Steps over k for which a panel of B (kBlockK * kPanel elements, 32 KiB) stays in the first-level
// cache.
constexpr int64_t kBlockK = 8192 / kPanel;
// Rows of a task: a block of A (kTaskRows * kBlockK elements) stays in the second-level cache, and
// is a multiple of the tile's rows.
constexpr int64_t kTaskRows = 8 * kTileRows;
// Multiplications below which threads are not worth waking.
constexpr int64_t kSmallWork = 1 << 18;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class Form { f32, rounded, pairs };

// How many elements of k one element of the packed forms holds.
constexpr int64_t depth_of(Form form) { return form == Form::pairs ? 2 : 1; }

UNIFLUID_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
UNIFLUID_INLINE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
// The bfloat16 nearest to x, ties to even, in the upper half.
UNIFLUID_INLINE uint32_t rounded_bits(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits | 0x00400000u;  // a NaN stays one
  return (bits + 0x7fffu + ((bits >> 16) & 1)) & 0xffff0000u;
}

// One element of a packed form: x(0), or x(0) and x(1) as a pair, the second being 0 past the end.
template <Form form, class Get>
UNIFLUID_INLINE float element(Get x, bool second) {
  if constexpr (form == Form::f32) return x(0);
  if constexpr (form == Form::rounded) return float_of(rounded_bits(x(0)));
  const uint32_t low = rounded_bits(x(0)) >> 16;
  const uint32_t high = second ? rounded_bits(x(1)) : 0;
  return float_of(high | low);
}

// Steps [0, count) of a line along k, at most whole vectors of them: how many were packed. Elements
// of k lie together.
template <Form form>
UNIFLUID_INLINE int64_t pack_along(const float* from, int64_t count, float* out) {
  int64_t s = 0;
  if constexpr (form == Form::pairs)
    for (; s + kLanes <= count; s += kLanes)
      store(out + s, round_neighbours(load(from + 2 * s), load(from + 2 * s + kLanes)));
  return s;
}

// One step of `count` lines that lie together, at most whole vectors of them; `next`: the second
// element of each pair, or null past the end.
template <Form form>
UNIFLUID_INLINE int64_t pack_across(const float* from, const float* next, int64_t count,
                                    float* out) {
  int64_t i = 0;
  if constexpr (form == Form::pairs)
    for (; i + kLanes <= count; i += kLanes)
      store(out + i, round_across(load(from + i), next ? load(next + i) : zero()));
  return i;
}

// Columns [column, column + kPanel) of b as a panel: out[step][kPanel].
template <Form form>
void pack_panel(View b, int64_t k, int64_t column, int64_t n, float* out) {
  constexpr int64_t depth = depth_of(form);
  const int64_t columns = least(kPanel, n - column), steps = divide_up(k, depth);
  const float* from = b.data + column * b.column;
  if (b.column == 1) {
    for (int64_t s = 0; s < steps; ++s) {
      const float* row = from + s * depth * b.row;
      const bool second = s * depth + 1 < k;
      float* to = out + s * kPanel;
      const int64_t packed = pack_across<form>(row, second ? row + b.row : nullptr, columns, to);
#pragma GCC ivdep
      for (int64_t j = packed; j < columns; ++j)
        to[j] = element<form>([&](int64_t d) { return row[d * b.row + j]; }, second);
      for (int64_t j = columns; j < kPanel; ++j) to[j] = 0;
    }
    return;
  }
  // Columns are contiguous in memory: a few at a time, so that both sides stay in the cache.
  constexpr int64_t kRun = 64;
  for (int64_t first = 0; first < steps; first += kRun) {
    const int64_t end = least(steps, first + kRun);
    for (int64_t j = 0; j < columns; ++j) {
      const float* source = from + j * b.column;
      for (int64_t s = first; s < end; ++s)
        out[s * kPanel + j] =
            element<form>([&](int64_t d) { return source[s * depth + d]; }, s * depth + 1 < k);
    }
    for (int64_t s = first; s < end; ++s)
      for (int64_t j = columns; j < kPanel; ++j) out[s * kPanel + j] = 0;
  }
}

// Rows [0, rows) and steps [first, end) of a, rounded: out[i * row + s * column].
template <Form form>
void pack_rows(View a, int64_t rows, int64_t k, int64_t first, int64_t end, float* out, int64_t row,
               int64_t column) {
  constexpr int64_t depth = depth_of(form);
  if (a.column == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = a.data + i * a.row;
      float* to = out + i * row;
      const int64_t whole = least(end, k / depth);
      const int64_t packed = pack_along<form>(from + first * depth, whole - first, to);
#pragma GCC ivdep
      for (int64_t s = first + packed; s < whole; ++s)
        to[s - first] = element<form>([&](int64_t d) { return from[s * depth + d]; }, true);
      for (int64_t s = whole < first ? first : whole; s < end; ++s)
        to[s - first] = element<form>([&](int64_t d) { return from[s * depth + d]; }, false);
    }
  } else {
    for (int64_t s = first; s < end; ++s) {
      const float* from = a.data + s * depth * a.column;
      const bool second = s * depth + 1 < k;
      float* to = out + (s - first) * column;
      const int64_t packed = pack_across<form>(from, second ? from + a.column : nullptr, rows, to);
#pragma GCC ivdep
      for (int64_t i = packed; i < rows; ++i)
        to[i] = element<form>([&](int64_t d) { return from[i + d * a.column]; }, second);
    }
  }
}

struct Work {
  View a, b;
  int64_t m, n, k;
  const float* bias;
  bool accumulate;
  float* out;
  int64_t out_stride;
  float* panels;          // packed B
  int64_t column_panels;  // panels of a task
  Parallel* parallel;
};

template <Form form>
void pack_task(void* context, int64_t index, int) {
  const Work& w = *static_cast<const Work*>(context);
  const int64_t steps = divide_up(w.k, depth_of(form));
  pack_panel<form>(w.b, w.k, index * kPanel, w.n, w.panels + index * kPanel * steps);
}

// One tile of `rows` rows and the panel's columns. `start`: what the tile's sums are added to is
// not in `out` yet.
template <Form form>
UNIFLUID_INLINE void tile_rows(const Work& w, const float* a, int64_t a_row, int64_t a_column,
                               int64_t rows, const float* panel, int64_t steps, bool start,
                               int64_t row, int64_t column) {
  float* out = w.out + row * w.out_stride + column;
  const int64_t columns = least(kPanel, w.n - column);
  const float* bias = start && w.bias ? w.bias + column : nullptr;
  const bool add_to = !start || w.accumulate;
  constexpr bool kPairs = form == Form::pairs;
  while (rows > 0) {
    int64_t done;
    if (rows >= kTileRows) {
      gemm_tile<kPairs, kTileRows>(a, a_row, a_column, panel, steps, out, w.out_stride, columns,
                                   add_to, bias);
      done = kTileRows;
    } else if (rows >= 4) {
      gemm_tile<kPairs, 4>(a, a_row, a_column, panel, steps, out, w.out_stride, columns, add_to,
                           bias);
      done = 4;
    } else {
      gemm_tile<kPairs, 1>(a, a_row, a_column, panel, steps, out, w.out_stride, columns, add_to,
                           bias);
      done = 1;
    }
    rows -= done;
    a += done * a_row;
    out += done * w.out_stride;
  }
}

// Rows [row, row + rows) and panels [panel, last) of the result. `packed`: room for a block of A,
// or null to read A where it lies.
template <Form form>
void multiply(const Work& w, int64_t row, int64_t rows, int64_t panel, int64_t last,
              float* packed) {
  const int64_t steps = divide_up(w.k, depth_of(form));
  const View a{w.a.data + row * w.a.row, w.a.row, w.a.column};
  for (int64_t first = 0; first < steps || first == 0; first += kBlockK) {
    const int64_t count = least(kBlockK, steps - first);
    const float* block = a.data + first * a.column;
    int64_t a_row = a.row, a_column = a.column;
    if (packed) {
      a_row = a.column == 1 ? kBlockK : 1;
      a_column = a.column == 1 ? 1 : kTaskRows;
      pack_rows<form>(a, rows, w.k, first, first + count, packed, a_row, a_column);
      block = packed;
    }
    for (int64_t p = panel; p < last; ++p)
      tile_rows<form>(w, block, a_row, a_column, rows, w.panels + (p * steps + first) * kPanel,
                      count, first == 0, row, p * kPanel);
  }
}

template <Form form>
void multiply_task(void* context, int64_t index, int thread) {
  const Work& w = *static_cast<const Work*>(context);
  const int64_t panels = divide_up(w.n, kPanel), across = divide_up(panels, w.column_panels);
  const int64_t row = index / across * kTaskRows, panel = index % across * w.column_panels;
  float* packed = nullptr;
  if (form != Form::f32) {
    packed = static_cast<float*>(w.parallel->scratch(thread, sizeof(float) * kTaskRows * kBlockK));
    // Thread 0's scratch begins with the panels, behind which there is room (see `run`).
    if (thread == 0) packed = w.panels + divide_up(w.k, depth_of(form)) * panels * kPanel;
  }
  multiply<form>(w, row, least(kTaskRows, w.m - row), panel, least(panels, panel + w.column_panels),
                 packed);
}

template <Form form>
bool run(Work& w, Parallel& parallel) {
  const int64_t panels = divide_up(w.n, kPanel), steps = divide_up(w.k, depth_of(form));
  const size_t panel_bytes = sizeof(float) * static_cast<size_t>(panels * kPanel * steps);
  const size_t block_bytes = form == Form::f32 ? 0 : sizeof(float) * kTaskRows * kBlockK;
  const bool alone = parallel.threads() == 1 || w.m * w.n * w.k < kSmallWork;
  if (!alone)
    for (int t = 1; t < parallel.threads(); ++t)
      if (block_bytes && !parallel.scratch(t, block_bytes)) return false;
  w.panels = static_cast<float*>(parallel.scratch(0, panel_bytes + block_bytes));
  if (!w.panels) return false;
  w.parallel = &parallel;
  const int64_t down = divide_up(w.m, kTaskRows);
  // Few rows: columns are shared out as well.
  w.column_panels = panels;
  while (!alone && w.column_panels > 1 &&
         down * divide_up(panels, w.column_panels) < 4 * parallel.threads())
    w.column_panels = divide_up(w.column_panels, 2);
  const int64_t tasks = down * divide_up(panels, w.column_panels);
  if (alone) {
    for (int64_t i = 0; i < panels; ++i) pack_task<form>(&w, i, 0);
    for (int64_t i = 0; i < tasks; ++i) multiply_task<form>(&w, i, 0);
  } else {
    parallel.run(panels, pack_task<form>, &w);
    parallel.run(tasks, multiply_task<form>, &w);
  }
  return true;
}

View view_of(const Tensor& t, bool transpose) {
  const View v{static_cast<const float*>(t.data), t.stride, 1};
  return transpose ? transposed(v) : v;
}

}  // namespace

bool gemm(const GemmArgs& args, Parallel& parallel) {
  Work w{};
  w.a = view_of(args.a, args.transpose_a);
  w.b = view_of(args.b, args.transpose_b);
  w.m = args.out.rows;
  w.n = args.out.cols;
  w.k = args.transpose_a ? args.a.rows : args.a.cols;
  w.bias = args.bias;
  w.accumulate = args.accumulate;
  w.out = static_cast<float*>(args.out.data);
  w.out_stride = args.out.stride;
  if (w.m == 0 || w.n == 0) return true;
  if (!args.bf16) return run<Form::f32>(w, parallel);
  return has_pairs() ? run<Form::pairs>(w, parallel) : run<Form::rounded>(w, parallel);
}

size_t small_gemm_bytes(int64_t n, int64_t k) {
  return sizeof(float) * static_cast<size_t>(divide_up(n, kPanel) * kPanel * k);
}

void small_gemm(View a, View b, int64_t m, int64_t n, int64_t k, bool accumulate, float* out,
                int64_t out_stride, void* scratch) {
  Work w{};
  w.a = a;
  w.b = b;
  w.m = m;
  w.n = n;
  w.k = k;
  w.accumulate = accumulate;
  w.out = out;
  w.out_stride = out_stride;
  w.panels = static_cast<float*>(scratch);
  const int64_t panels = divide_up(n, kPanel);
  for (int64_t i = 0; i < panels; ++i) pack_task<Form::f32>(&w, i, 0);
  for (int64_t row = 0; row < m; row += kTaskRows)
    multiply<Form::f32>(w, row, least(kTaskRows, m - row), 0, panels, nullptr);
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
