// Rows in pieces of eight elements: what kernels share that go over rows element by element.
//
// Eight elements are one access of 16 bytes in bfloat16 and two in float32. Rows that are not made
// of whole, aligned pieces are read and written one element at a time in the same pieces, so that
// sums have the same order either way.
#pragma once

#include "cuda/dispatch.h"

namespace unifluid::cuda {

inline constexpr int kPiece = 8;
struct Piece {
  float value[kPiece];
};

// Elements column .. column + 7 of a row of n, zeros past its end.
template <bool kAligned, class T>
UNIFLUID_DEVICE Piece load_piece(const T* row, int column, int n) {
  Piece piece;
  if constexpr (kAligned) {
#pragma unroll
    for (int i = 0; i < kPiece; i += Vector<T>::kSize) {
      const Vector<T> v = load_vector(row + column + i);
#pragma unroll
      for (int k = 0; k < Vector<T>::kSize; ++k) piece.value[i + k] = v.value[k];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPiece; ++i)
      piece.value[i] = column + i < n ? to_float(row[column + i]) : 0.0f;
  }
  return piece;
}

// What lies past the end of the row is not written.
template <bool kAligned, class T>
UNIFLUID_DEVICE void store_piece(T* row, int column, int n, const Piece& piece) {
  if constexpr (kAligned) {
#pragma unroll
    for (int i = 0; i < kPiece; i += Vector<T>::kSize) {
      Vector<T> v;
#pragma unroll
      for (int k = 0; k < Vector<T>::kSize; ++k) v.value[k] = piece.value[i + k];
      store_vector(row + column + i, v);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPiece; ++i)
      if (column + i < n) row[column + i] = from_float<T>(piece.value[i]);
  }
}

// Whether a tensor's rows are whole pieces that can be accessed in vectors; an empty tensor's are.
inline bool whole_pieces(const Tensor& t) { return !t || (aligned16(t) && t.cols % kPiece == 0); }
inline bool whole_pieces(const float* vector) {
  return reinterpret_cast<uintptr_t>(vector) % 16 == 0;
}

// ---- one thread for each piece of all rows ----

inline constexpr int kPieceThreads = 256;

struct PieceGrid {
  int32_t rows, cols;
  uint32_t row_pieces;

  PieceGrid() = default;
  PieceGrid(int64_t rows_, int64_t cols_)
      : rows(static_cast<int32_t>(rows_)),
        cols(static_cast<int32_t>(cols_)),
        row_pieces(blocks_for(cols_, kPiece)) {}
  dim3 blocks() const { return dim3(blocks_for(int64_t{rows} * row_pieces, kPieceThreads)); }
};

struct PiecePlace {
  int64_t row;
  int column;
  bool inside;  // threads past the last piece have none
};
UNIFLUID_DEVICE PiecePlace piece_place(const PieceGrid& grid) {
  const uint32_t index = blockIdx.x * kPieceThreads + threadIdx.x;
  const uint32_t row = index / grid.row_pieces;
  return {row, static_cast<int>(index % grid.row_pieces) * kPiece,
          row < static_cast<uint32_t>(grid.rows)};
}

}  // namespace unifluid::cuda
