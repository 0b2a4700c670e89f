// What enters the decoder: token embeddings, image rows (spec section 5) and SigLIP's positions.
// All of it is memory traffic but for `image_in`, whose matrix is a few kilobytes.
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/matmul.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// A task takes this many rows: enough to outweigh handing it out.
constexpr int64_t kRowsPerTask = 16;

struct ImageEmbedding {
  const ImageEmbedArgs* args;
  Products products;
};

// Runs body(args, row) for every row, in parallel where there are many.
template <class Args, void (*body)(const Args&, int64_t)>
void for_each_row(const Args& args, int64_t rows, Parallel& parallel) {
  struct Context {
    const Args* args;
    int64_t rows;
  } context{&args, rows};
  parallel.run(
      divide_up(rows, kRowsPerTask),
      [](void* pointer, int64_t index, int) {
        const Context& c = *static_cast<const Context*>(pointer);
        const int64_t first = index * kRowsPerTask;
        const int64_t end = first + kRowsPerTask < c.rows ? first + kRowsPerTask : c.rows;
        for (int64_t row = first; row < end; ++row) body(*c.args, row);
      },
      &context);
}

const void* row_of(const Tensor& t, int64_t row) {
  const size_t size = t.type == DType::f32 ? 4 : 2;
  return static_cast<const char*>(t.data) + static_cast<size_t>(row * t.stride) * size;
}

float* float_row(const Tensor& t, int64_t row) {
  return static_cast<float*>(const_cast<void*>(row_of(t, row)));
}

// out[c] = f(out[c], from[c]) for c < n
template <class T, class F>
UNIFLUID_INLINE void combine(float* out, const T* from, int64_t n, F f) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) store(out + c, f(load(out + c), load(from + c)));
  if (c < n) {
    const int rest = static_cast<int>(n - c);
    store_n(out + c, f(load_n(out + c, rest), load_n(from + c, rest)), rest);
  }
}

// The same with a row of any type.
template <class F>
UNIFLUID_INLINE void combine_row(float* out, const Tensor& table, int64_t row, F f) {
  const void* from = row_of(table, row);
  switch (table.type) {
    case DType::f32:
      return combine(out, static_cast<const float*>(from), table.cols, f);
    case DType::f16:
      return combine(out, static_cast<const Float16*>(from), table.cols, f);
    case DType::bf16:
      return combine(out, static_cast<const BFloat16*>(from), table.cols, f);
  }
}

UNIFLUID_INLINE void add_row(float* out, const Tensor& table, int64_t row) {
  combine_row(out, table, row, [](Vec a, Vec b) { return add(a, b); });
}

void embed_row(const EmbedTokensArgs& args, int64_t row) {
  const Vec scale = set1(args.scale);
  float* out = float_row(args.out, row);
  // What lies in `out` may be anything: it is not looked at.
  const int32_t id = args.ids ? args.ids[row] : *args.sampled[row];
  combine_row(out, args.table, id < 0 ? 0 : id, [scale](Vec, Vec b) { return mul(scale, b); });
}

void image_row(const ImageEmbedding& embedding, int64_t row) {
  const ImageEmbedArgs& args = *embedding.args;
  const ImageRow& in = args.rows[row];
  float* out = float_row(args.out, row);
  const int64_t d = args.out.cols;
  if (in.token) {
    matmul(in.token, args.weight.cols, 1, args.weight, embedding.products, 0, d, out, d, nullptr);
    combine(out, args.bias, d, [](Vec a, Vec b) { return add(a, b); });
    add_row(out, args.position, in.cell);
  } else {
    combine(out, args.begin, d, [](Vec, Vec b) { return b; });
  }
  if (in.next >= 0) add_row(out, args.next_position, in.next);
}

void add_table_row(const AddRowsArgs& args, int64_t row) {
  add_row(float_row(args.out, row), args.table, row % args.table.rows);
}

}  // namespace

void embed_tokens(const EmbedTokensArgs& args, Parallel& parallel) {
  for_each_row<EmbedTokensArgs, embed_row>(args, args.out.rows, parallel);
}

void image_embed(const ImageEmbedArgs& args, Products products, Parallel& parallel) {
  for_each_row<ImageEmbedding, image_row>({&args, products}, args.out.rows, parallel);
}

void add_rows(const AddRowsArgs& args, Parallel& parallel) {
  for_each_row<AddRowsArgs, add_table_row>(args, args.out.rows, parallel);
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
