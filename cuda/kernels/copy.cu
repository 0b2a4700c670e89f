// Rows that change their type or their place: to and from packed float32 for the host, to bytes of
// a picture, between activations, and to columns.
#include "cuda/device/warp.h"
#include "cuda/kernels.h"
#include "cuda/kernels/rows.h"

namespace unifluid::cuda {
namespace {

// ---- rows to rows: a thread takes one piece of a row, whatever the row ----

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

// ---- rows to bytes ----

struct PixelParams {
  const void* from;
  uint8_t *to, *flags;  // a flag for each warp
  int64_t from_stride;
  PieceGrid grid;
};

UNIFLUID_DEVICE bool is_finite(float v) {
  constexpr uint32_t kExponent = 0x7f800000u;
  return (__float_as_uint(v) & kExponent) != kExponent;
}

UNIFLUID_DEVICE uint32_t pixel_byte(float v) {
  return static_cast<uint32_t>(rintf((fminf(fmaxf(v, -1.0f), 1.0f) + 1.0f) * 127.5f));
}

template <class From, bool kAligned>
__global__ void __launch_bounds__(kPieceThreads) pack_pixel_pieces(PixelParams p) {
  const PiecePlace at = piece_place(p.grid);
  bool finite = true;
  if (at.inside) {
    const Piece v = load_piece<kAligned>(static_cast<const From*>(p.from) + at.row * p.from_stride,
                                         at.column, p.grid.cols);
    uint32_t bytes[kPiece];
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      finite = finite && is_finite(v.value[i]);
      bytes[i] = pixel_byte(v.value[i]);
    }
    uint8_t* to = p.to + at.row * p.grid.cols + at.column;
    if constexpr (kAligned) {
      const auto word = [&](int i) {
        return bytes[i] | bytes[i + 1] << 8 | bytes[i + 2] << 16 | bytes[i + 3] << 24;
      };
      *reinterpret_cast<uint2*>(to) = make_uint2(word(0), word(4));
    } else {
#pragma unroll
      for (int i = 0; i < kPiece; ++i)
        if (at.column + i < p.grid.cols) to[i] = static_cast<uint8_t>(bytes[i]);
    }
  }
  finite = __all_sync(kAllLanes, finite);
  if (lane_index() == 0)
    p.flags[blockIdx.x * (kPieceThreads / kWarp) + static_cast<uint32_t>(warp_index())] = finite;
}

// Packed rows as one: those of a picture, which are three elements long, are no whole pieces.
Tensor joined(const Tensor& from) {
  return from.stride == from.cols ? Tensor(from.data, from.type, 1, from.size()) : from;
}

// ---- rows to columns ----

// Squares of the matrix are turned in shared memory; the threads are kSide x kTurnRows.
constexpr int kSide = 32, kTurnRows = 8;

struct TurnParams {
  const void* from;  // [rows, cols]
  void* to;          // [cols, rows]
  int64_t from_stride, to_stride;
  int32_t rows, cols;
};

template <class From, class To>
__global__ void __launch_bounds__(kSide* kTurnRows) turn_square(TurnParams p) {
  SharedArena arena;
  // One element longer, so that columns lie in different banks.
  const auto square = arena.take<float>(kSide * (kSide + 1));
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  const int first_row = static_cast<int>(blockIdx.x) * kSide;
  const int first_column = static_cast<int>(blockIdx.y) * kSide;
  for (int i = y; i < kSide; i += kTurnRows)
    if (first_row + i < p.rows && first_column + x < p.cols)
      square.store(static_cast<uint32_t>(i * (kSide + 1) + x),
                   to_float(static_cast<const From*>(
                       p.from)[(first_row + i) * p.from_stride + first_column + x]));
  __syncthreads();
  for (int i = y; i < kSide; i += kTurnRows)
    if (first_column + i < p.cols && first_row + x < p.rows)
      static_cast<To*>(p.to)[(first_column + i) * p.to_stride + first_row + x] =
          from_float<To>(square.load(static_cast<uint32_t>(x * (kSide + 1) + i)));
}

}  // namespace

void transpose_rows(Queue& queue, const Tensor& from, const Tensor& to) {
  if (from.size() == 0) return;
  TurnParams p{};
  p.from = from.data;
  p.to = to.data;
  p.from_stride = from.stride;
  p.to_stride = to.stride;
  p.rows = static_cast<int32_t>(from.rows);
  p.cols = static_cast<int32_t>(from.cols);
  with_type(from.type, [&](auto f) {
    with_type(to.type, [&](auto t) {
      queue.launch(turn_square<decltype(f), decltype(t)>,
                   dim3(blocks_for(from.rows, kSide), blocks_for(from.cols, kSide)),
                   dim3(kSide * kTurnRows), SharedBytes{}.take<float>(kSide * (kSide + 1)).used, p);
    });
  });
}

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

size_t pixel_flags(const Tensor& from) {
  const Tensor rows = joined(from);
  return size_t{PieceGrid(rows.rows, rows.cols).blocks().x} * (kPieceThreads / kWarp);
}

void pack_pixels(Queue& queue, const Tensor& from, uint8_t* to, uint8_t* flags) {
  const Tensor rows = joined(from);
  PixelParams p{};
  p.from = rows.data;
  p.to = to;
  p.flags = flags;
  p.from_stride = rows.stride;
  p.grid = PieceGrid(rows.rows, rows.cols);
  const bool aligned = whole_pieces(rows);
  with_type(from.type, [&](auto f) {
    using From = decltype(f);
    queue.launch(aligned ? pack_pixel_pieces<From, true> : pack_pixel_pieces<From, false>,
                 p.grid.blocks(), dim3(kPieceThreads), 0, p);
  });
}

void pack_rows(Queue& queue, const Tensor& from, float* to) {
  copy_rows(queue, from, Tensor(to, DType::f32, from.rows, from.cols));
}

void unpack_rows(Queue& queue, const float* from, const Tensor& to) {
  copy_rows(queue, Tensor(const_cast<float*>(from), DType::f32, to.rows, to.cols), to);
}

}  // namespace unifluid::cuda
