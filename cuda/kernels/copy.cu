// Rows that change their type or their place: to and from packed float32 for the host, and between
// activations. A thread takes one piece of a row, whatever the row.
#include "cuda/kernels.h"
#include "cuda/kernels/rows.h"

namespace unifluid::cuda {
namespace {

struct Params {
  const void* from;
  void* to;
  int64_t from_stride, to_stride;
  PieceGrid grid;
};

template <class From, class To, bool kAligned>
__global__ void __launch_bounds__(kPieceThreads) copy_pieces(Params p) {
  const PiecePlace at = piece_place(p.grid);
  if (!at.inside) return;
  const Piece v = load_piece<kAligned>(static_cast<const From*>(p.from) + at.row * p.from_stride,
                                       at.column, p.grid.cols);
  store_piece<kAligned>(static_cast<To*>(p.to) + at.row * p.to_stride, at.column, p.grid.cols, v);
}

}  // namespace

void copy_rows(Queue& queue, const Tensor& from, const Tensor& to) {
  if (from.size() == 0) return;
  Params p{};
  p.from = from.data;
  p.to = to.data;
  p.from_stride = from.stride;
  p.to_stride = to.stride;
  p.grid = PieceGrid(from.rows, from.cols);
  const bool aligned = whole_pieces(from) && whole_pieces(to);
  with_type(from.type, [&](auto f) {
    with_type(to.type, [&](auto t) {
      using From = decltype(f);
      using To = decltype(t);
      queue.launch(aligned ? copy_pieces<From, To, true> : copy_pieces<From, To, false>,
                   p.grid.blocks(), dim3(kPieceThreads), 0, p);
    });
  });
}

void pack_rows(Queue& queue, const Tensor& from, float* to) {
  copy_rows(queue, from, Tensor(to, DType::f32, from.rows, from.cols));
}

void unpack_rows(Queue& queue, const float* from, const Tensor& to) {
  copy_rows(queue, Tensor(const_cast<float*>(from), DType::f32, to.rows, to.cols), to);
}

}  // namespace unifluid::cuda
