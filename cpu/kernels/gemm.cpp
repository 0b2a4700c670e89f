// The product of gemm.h, after Goto and van de Geijn ("Anatomy of high-performance matrix
// multiplication", 2008): panels of B that stay in the first-level cache, blocks of A in the
// second, tiles of the result in registers.
//
// B is packed (gemm_pack.h), kTileVectors vectors of columns to a panel, so that a step over k
// reads vectors that lie together. A is read where it lies where steps over k lie together: a tile
// broadcasts single elements, whose rows may be apart. With bfloat16 both are rounded on the way
// into their packed form; where the processor multiplies pairs of bfloat16 (AVX512-BF16) an element
// of the packed form is such a pair, and everything else stays the same. What is bfloat16 already
// holds such pairs where its steps over k lie together.
#include "cpu/kernels/gemm.h"

#include "cpu/kernels/gemm_pack.h"
#include "cpu/kernels/gemm_tile.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// Steps over k for which a panel of B (kBlockK * kPanel elements, 32 KiB) stays in the first-level
// cache. The order of sums depends on it.
constexpr int64_t kBlockK = 8192 / kPanel;
// Most rows of a task: a block of A (kTaskRows * kBlockK elements) stays in the second-level cache,
// and is a multiple of the tile's rows.
constexpr int64_t kTaskRows = 8 * kTileRows;
// Multiplications below which threads are not worth waking.
constexpr int64_t kSmallWork = 1 << 18;

struct Work {
  View a, b;
  int64_t m, n, k;
  const float* bias;
  bool accumulate;
  float* out;
  int64_t out_stride;
  float* panels;  // packed B
  // Parts of the rows and of the panels; a task is one of each.
  int64_t row_parts, column_parts;
  int64_t part_rows;  // rows of the largest part
  // Packed A, part_rows * steps elements for each part of the rows, if several tasks read it; null:
  // a task packs blocks of its own, or reads A where it lies.
  float* rows;
  Parallel* parallel;
};

// Where part `index` begins if `count` things are shared out among `parts` parts.
int64_t part(int64_t count, int64_t parts, int64_t index) { return count * index / parts; }

int64_t first_row(const Work& w, int64_t index) {
  return smaller(w.m, kTileRows * part(divide_up(w.m, kTileRows), w.row_parts, index));
}

// Float32 is read where it lies, unless the steps over k of A^T are apart by a multiple of this:
// then they fall into so few sets of the first-level cache that a tile's block does not stay there.
constexpr int64_t kFewSets = 512;

// A's rows are pairs of bfloat16 as they lie.
bool holds_pairs(const Work& w) {
  return w.a.rounded && w.a.column == 1 && w.a.row % 2 == 0 && w.k % 2 == 0 &&
         reinterpret_cast<uintptr_t>(w.a.data) % sizeof(float) == 0;
}

template <Form form>
bool packs_rows(const Work& w) {
  return form == Form::f32 ? w.a.column % kFewSets == 0 : !holds_pairs(w);
}

// Rows [row, row + rows) and steps [first, first + count) of A.
template <Form form>
View block_of_rows(const Work& w, int64_t row, int64_t rows, int64_t first, int64_t count,
                   float* packed, bool pack) {
  View a = w.a;
  if (!packed) {
    if (a.rounded) a.row /= 2;
    return {a.data + row * a.row + first * a.column, a.row, a.column};
  }
  a.data = a.rounded ? reinterpret_cast<const float*>(rounded_data(a) + row * a.row)
                     : a.data + row * a.row;
  const View block = a.column == 1 ? View{packed, count, 1} : View{packed, 1, w.part_rows};
  if (pack) pack_rows<form>(a, rows, w.k, first, first + count, packed, block.row, block.column);
  return block;
}

// Task i < the number of panels: a panel of B. The others: a block of A's rows.
template <Form form>
void pack_task(void* context, int64_t index, int) {
  const Work& w = *static_cast<const Work*>(context);
  const int64_t steps = divide_up(w.k, depth_of(form)), panels = divide_up(w.n, kPanel);
  if (index < panels)
    return pack_panel<form>(w.b, w.k, index * kPanel, w.n, w.panels + index * kPanel * steps);
  index -= panels;
  const int64_t i = index % w.row_parts, first = index / w.row_parts * kBlockK;
  const int64_t row = first_row(w, i);
  block_of_rows<form>(w, row, first_row(w, i + 1) - row, first, smaller(kBlockK, steps - first),
                      w.rows + w.part_rows * (i * steps + first), true);
}

// One tile of `rows` rows and the panel's columns. `start`: what the tile's sums are added to is
// not in `out` yet.
template <Form form>
UNIFLUID_INLINE void tile_rows(const Work& w, const View& a_block, int64_t rows, const float* panel,
                               int64_t steps, bool start, int64_t row, int64_t column) {
  const float* a = a_block.data;
  const int64_t a_row = a_block.row, a_column = a_block.column;
  float* out = w.out + row * w.out_stride + column;
  const int64_t columns = smaller(kPanel, w.n - column);
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

// Part `i` of the rows times panels [panel, last). `room`: for a block of A if it is packed here.
template <Form form>
void multiply(const Work& w, int64_t i, int64_t panel, int64_t last, float* room) {
  const int64_t steps = divide_up(w.k, depth_of(form));
  const int64_t row = first_row(w, i), rows = first_row(w, i + 1) - row;
  for (int64_t first = 0; first < steps || first == 0; first += kBlockK) {
    const int64_t count = smaller(kBlockK, steps - first);
    float* packed = w.rows ? w.rows + w.part_rows * (i * steps + first) : room;
    const View block = block_of_rows<form>(w, row, rows, first, count, packed, !w.rows);
    for (int64_t p = panel; p < last; ++p)
      tile_rows<form>(w, block, rows, w.panels + (p * steps + first) * kPanel, count, first == 0,
                      row, p * kPanel);
  }
}

template <Form form>
void multiply_task(void* context, int64_t index, int thread) {
  const Work& w = *static_cast<const Work*>(context);
  const int64_t panels = divide_up(w.n, kPanel), column = index % w.column_parts;
  float* room = nullptr;
  if (packs_rows<form>(w) && !w.rows) {
    room = static_cast<float*>(w.parallel->scratch(thread, sizeof(float) * kTaskRows * kBlockK));
    // Thread 0's scratch begins with the panels, behind which there is room (see `run`).
    if (thread == 0) room = w.panels + divide_up(w.k, depth_of(form)) * panels * kPanel;
  }
  multiply<form>(w, index / w.column_parts, part(panels, w.column_parts, column),
                 part(panels, w.column_parts, column + 1), room);
}

// Decides how the work is shared out among `threads` threads.
void divide(Work& w, int threads) {
  const int64_t tiles = divide_up(w.m, kTileRows), panels = divide_up(w.n, kPanel);
  w.row_parts = divide_up(w.m, kTaskRows);
  w.column_parts = 1;
  if (threads > 1) {
    // The same for each thread.
    w.row_parts = smaller(tiles, divide_up(w.row_parts, threads) * threads);
    // Few rows: columns are shared out as well.
    while (w.column_parts < panels && w.row_parts * w.column_parts < 4 * threads)
      w.column_parts = smaller(panels, 2 * w.column_parts);
  }
  w.part_rows = divide_up(tiles, w.row_parts) * kTileRows;
}

template <Form form>
bool run(Work& w, Parallel& parallel) {
  const int64_t panels = divide_up(w.n, kPanel), steps = divide_up(w.k, depth_of(form));
  const bool alone = parallel.threads() == 1 || w.m * w.n * w.k < kSmallWork;
  divide(w, alone ? 1 : parallel.threads());
  const bool shared = packs_rows<form>(w) && w.column_parts > 1;
  const bool own = packs_rows<form>(w) && !shared;
  constexpr size_t kBlockBytes = sizeof(float) * kTaskRows * kBlockK;
  const int64_t packed = panels * kPanel * steps;
  const int64_t packed_rows = shared ? w.row_parts * w.part_rows * steps : 0;
  if (!alone && own)
    for (int t = 1; t < parallel.threads(); ++t)
      if (!parallel.scratch(t, kBlockBytes)) return false;
  w.panels = static_cast<float*>(parallel.scratch(
      0, sizeof(float) * static_cast<size_t>(packed + packed_rows) + (own ? kBlockBytes : 0)));
  if (!w.panels) return false;
  if (shared) w.rows = w.panels + packed;
  w.parallel = &parallel;
  const int64_t packs = panels + (shared ? w.row_parts * divide_up(steps, kBlockK) : 0);
  const int64_t tasks = w.row_parts * w.column_parts;
  if (alone) {
    for (int64_t i = 0; i < packs; ++i) pack_task<form>(&w, i, 0);
    for (int64_t i = 0; i < tasks; ++i) multiply_task<form>(&w, i, 0);
  } else {
    parallel.run(packs, pack_task<form>, &w);
    parallel.run(tasks, multiply_task<form>, &w);
  }
  return true;
}

View view_of(const Tensor& t, bool transpose) {
  const View v{static_cast<const float*>(t.data), t.stride, 1, t.type == DType::bf16};
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

namespace {

template <Form form>
void pack_all(View b, int64_t k, int64_t n, float* out) {
  const int64_t steps = divide_up(k, depth_of(form));
  for (int64_t column = 0; column < n; column += kPanel)
    pack_panel<form>(b, k, column, n, out + column * steps);
}

template <Form form>
void multiply_all(Work& w, float* room) {
  divide(w, 1);
  for (int64_t i = 0; i < w.row_parts; ++i)
    multiply<form>(w, i, 0, divide_up(w.n, kPanel), form == Form::f32 ? nullptr : room);
}

}  // namespace

int64_t packed_size(int64_t k, int64_t n, bool pairs) {
  return divide_up(n, kPanel) * kPanel * (pairs ? divide_up(k, 2) : k);
}

int64_t multiply_room(bool pairs) { return pairs ? kTaskRows * kBlockK : 0; }

void pack(View b, int64_t k, int64_t n, bool pairs, float* out) {
  if (pairs)
    pack_all<Form::pairs>(b, k, n, out);
  else
    pack_all<Form::f32>(b, k, n, out);
}

void multiply_packed(View a, const float* b, int64_t m, int64_t n, int64_t k, bool accumulate,
                     bool pairs, float* out, int64_t out_stride, float* room) {
  Work w{};
  w.a = a;
  w.m = m;
  w.n = n;
  w.k = k;
  w.accumulate = accumulate;
  w.out = out;
  w.out_stride = out_stride;
  w.panels = const_cast<float*>(b);
  if (pairs)
    multiply_all<Form::pairs>(w, room);
  else
    multiply_all<Form::f32>(w, room);
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
