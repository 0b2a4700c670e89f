// What enters the decoder: token embeddings, image rows (spec section 5) and SigLIP's positions.
// All of it is memory traffic: a thread takes one piece of a row, whatever the row, so that one
// long row and many short ones are shared equally.
//
// Only `image_embed` computes: C multiply-adds a column, in ascending order. A thread takes one
// column there, since a decoding step has few rows and would otherwise leave the device idle.
#include "cuda/device/dependence.h"
#include "cuda/kernels.h"
#include "cuda/kernels/rows.h"

namespace unifluid::cuda {
namespace {

// ---- token embeddings ----

struct EmbedParams {
  const int32_t* ids;  // or, of each row, where its id lies
  const int32_t* const* sampled;
  const void* table;
  void* out;
  int64_t table_stride, out_stride;
  PieceGrid grid;
  float scale;
};

template <class T, bool kAligned>
__global__ void __launch_bounds__(kPieceThreads) embed_tokens_pieces(EmbedParams p) {
  let_dependents_start();
  wait_for_inputs();
  const PiecePlace at = piece_place(p.grid);
  if (!at.inside) return;
  const int32_t id = p.ids ? p.ids[at.row] : *p.sampled[at.row];
  const T* from = static_cast<const T*>(p.table) + max(id, 0) * p.table_stride;
  Piece v = load_piece<kAligned>(from, at.column, p.grid.cols);
  for (int i = 0; i < kPiece; ++i) v.value[i] *= p.scale;
  store_piece<kAligned>(static_cast<T*>(p.out) + at.row * p.out_stride, at.column, p.grid.cols, v);
}

// ---- image rows ----

constexpr int kImageThreads = 128;

struct ImageParams {
  const ImageRow* rows;
  const void* weight;
  const float* bias;
  const void* position;
  const void* next_position;
  const float* begin;
  void* out;
  int64_t weight_stride, position_stride, next_stride, out_stride;
  int32_t columns, channels;
};

// One column of token weight^T.
template <class T, bool kAligned>
UNIFLUID_DEVICE float image_in(const float* token, const T* weight, int channels) {
  float sum = 0;
  for (int c = 0; c < channels; c += kPiece) {
    const Piece x = load_piece<kAligned>(token, c, channels);
    const Piece w = load_piece<kAligned>(weight, c, channels);
    for (int i = 0; i < kPiece; ++i) sum = fmaf(x.value[i], w.value[i], sum);
  }
  return sum;
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kImageThreads) image_embed_row(ImageParams p) {
  let_dependents_start();
  wait_for_inputs();
  const int64_t row = blockIdx.x;
  const int column = static_cast<int>(blockIdx.y * kImageThreads + threadIdx.x);
  if (column >= p.columns) return;
  const ImageRow in = p.rows[row];
  float v;
  if (in.token) {
    v = image_in<T, kAligned>(in.token, static_cast<const T*>(p.weight) + column * p.weight_stride,
                              p.channels) +
        p.bias[column];
    v += to_float(static_cast<const T*>(p.position)[in.cell * p.position_stride + column]);
  } else {
    v = p.begin[column];
  }
  if (in.next >= 0)
    v += to_float(static_cast<const T*>(p.next_position)[in.next * p.next_stride + column]);
  static_cast<T*>(p.out)[row * p.out_stride + column] = from_float<T>(v);
}

// ---- a table added, again and again ----

struct AddParams {
  const void* table;
  void* out;
  int64_t table_stride, out_stride;
  PieceGrid grid;
  int32_t table_rows;
};

template <class T, bool kAligned>
__global__ void __launch_bounds__(kPieceThreads) add_rows_pieces(AddParams p) {
  const PiecePlace at = piece_place(p.grid);
  if (!at.inside) return;
  const T* from = static_cast<const T*>(p.table) + at.row % p.table_rows * p.table_stride;
  T* out = static_cast<T*>(p.out) + at.row * p.out_stride;
  Piece v = load_piece<kAligned>(out, at.column, p.grid.cols);
  const Piece added = load_piece<kAligned>(from, at.column, p.grid.cols);
  for (int i = 0; i < kPiece; ++i) v.value[i] += added.value[i];
  store_piece<kAligned>(out, at.column, p.grid.cols, v);
}

}  // namespace

void embed_tokens(Queue& queue, const EmbedTokensArgs& args) {
  if (args.out.rows == 0) return;
  EmbedParams p{};
  const size_t rows = static_cast<size_t>(args.out.rows);
  if (args.ids)
    p.ids = queue.stage(args.ids, rows);
  else
    p.sampled = queue.stage(args.sampled, rows);
  p.table = args.table.data;
  p.out = args.out.data;
  p.table_stride = args.table.stride;
  p.out_stride = args.out.stride;
  p.grid = PieceGrid(args.out.rows, args.out.cols);
  p.scale = args.scale;
  const bool aligned = whole_pieces(args.table) && whole_pieces(args.out);
  with_type(args.out.type, [&](auto t) {
    using T = decltype(t);
    queue.launch_dependent(aligned ? embed_tokens_pieces<T, true> : embed_tokens_pieces<T, false>,
                           p.grid.blocks(), dim3(kPieceThreads), 0, p);
  });
}

void image_embed(Queue& queue, const ImageEmbedArgs& args) {
  if (args.out.rows == 0) return;
  ImageParams p{};
  p.rows = queue.stage(args.rows, static_cast<size_t>(args.out.rows));
  p.weight = args.weight.data;
  p.bias = args.bias;
  p.position = args.position.data;
  p.next_position = args.next_position.data;
  p.begin = args.begin;
  p.out = args.out.data;
  p.weight_stride = args.weight.stride;
  p.position_stride = args.position.stride;
  p.next_stride = args.next_position.stride;
  p.out_stride = args.out.stride;
  p.columns = static_cast<int32_t>(args.out.cols);
  p.channels = static_cast<int32_t>(args.weight.cols);
  bool aligned = whole_pieces(args.weight);
  for (int64_t i = 0; i < args.out.rows; ++i) aligned = aligned && whole_pieces(args.rows[i].token);
  with_type(args.out.type, [&](auto t) {
    using T = decltype(t);
    queue.launch_dependent(
        aligned ? image_embed_row<T, true> : image_embed_row<T, false>,
        dim3(static_cast<unsigned>(args.out.rows), blocks_for(p.columns, kImageThreads)),
        dim3(kImageThreads), 0, p);
  });
}

void add_rows(Queue& queue, const AddRowsArgs& args) {
  if (args.out.rows == 0) return;
  AddParams p{};
  p.table = args.table.data;
  p.out = args.out.data;
  p.table_stride = args.table.stride;
  p.out_stride = args.out.stride;
  p.grid = PieceGrid(args.out.rows, args.out.cols);
  p.table_rows = static_cast<int32_t>(args.table.rows);
  const bool aligned = whole_pieces(args.table) && whole_pieces(args.out);
  with_type(args.out.type, [&](auto t) {
    using T = decltype(t);
    queue.launch(aligned ? add_rows_pieces<T, true> : add_rows_pieces<T, false>, p.grid.blocks(),
                 dim3(kPieceThreads), 0, p);
  });
}

}  // namespace unifluid::cuda
