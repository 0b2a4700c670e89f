// Rounding of operands, several in a launch: most of them are over before a launch of their own
// would be. A block has a run of rows of 64 columns, whose sums it can add up beside it.
#include "cuda/device/shared.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/training_rounding.h"
#include "cuda/kernels/training_sums.h"

namespace unifluid::cuda {
namespace {

constexpr int kRowPieces = 8, kBlockColumns = kRowPieces * kPiece;
constexpr int kThreads = static_cast<int>(kSumRows) * kRowPieces;
// From one element of all pieces to the next in shared memory: columns lie in different banks.
constexpr int kElementStride = kThreads + 4;

struct Rounding {
  const float* from;
  bf16* to;
  float* runs;
  int64_t from_stride, to_stride, rows;
  int32_t cols;
  uint32_t column_blocks, blocks;
  bool aligned;
};
struct Params {
  Rounding operands[RoundedOperands::kMost];
};

__global__ void __launch_bounds__(kThreads) round_operands(const __grid_constant__ Params p) {
  SharedArena arena;
  const auto tile = arena.take<float>(kElementStride * kPiece);
  uint32_t block = blockIdx.x, which = 0;
  for (; block >= p.operands[which].blocks; ++which) block -= p.operands[which].blocks;
  const Rounding& o = p.operands[which];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t run = block / o.column_blocks, row = run * kSumRows + thread / kRowPieces;
  const int first_column = static_cast<int>(block % o.column_blocks) * kBlockColumns;
  const int column = first_column + thread % kRowPieces * kPiece;
  Piece piece{};
  if (row < o.rows && column < o.cols) {
    const float* from = o.from + row * o.from_stride;
    piece = o.aligned && column + kPiece <= o.cols ? load_piece<true>(from, column, o.cols)
                                                   : load_piece<false>(from, column, o.cols);
    store_piece<true>(o.to + row * o.to_stride, column, o.cols, piece);
  }
  if (!o.runs) return;
#pragma unroll
  for (int i = 0; i < kPiece; ++i)
    tile.store(static_cast<uint32_t>(i * kElementStride + thread), piece.value[i]);
  __syncthreads();
  if (thread >= kBlockColumns || first_column + thread >= o.cols) return;
  float total = 0;
  for (int64_t i = 0; i < kSumRows && run * kSumRows + i < o.rows; ++i)
    total += tile.load(
        static_cast<uint32_t>(thread % kPiece * kElementStride + i * kRowPieces + thread / kPiece));
  o.runs[run * o.cols + first_column + thread] = total;
}

int64_t padded(int64_t cols) { return (cols + kPiece - 1) / kPiece * kPiece; }
int64_t elements(const Tensor& from) { return from.rows * padded(from.cols); }

}  // namespace

size_t RoundedOperands::bytes(const Tensor& from) {
  if (from.type == DType::bf16) return 0;
  return Queue::piece_bytes(static_cast<size_t>(elements(from)) * sizeof(bf16));
}

Tensor RoundedOperands::add(const Tensor& from, float* runs) {
  if (from.type == DType::bf16) return from;
  Tensor to(queue_.scratch<bf16>(static_cast<size_t>(elements(from))), DType::bf16, from.rows,
            from.cols);
  to.stride = padded(from.cols);
  operands_[count_++] = {from, to, runs};
  return to;
}

void RoundedOperands::round() {
  if (count_ == 0) return;
  Params p{};
  unsigned blocks = 0;
  for (int i = 0; i < count_; ++i) {
    const Tensor &from = operands_[i].from, &to = operands_[i].to;
    Rounding& o = p.operands[i];
    o.from = static_cast<const float*>(from.data);
    o.to = static_cast<bf16*>(to.data);
    o.runs = operands_[i].runs;
    o.from_stride = from.stride;
    o.to_stride = to.stride;
    o.rows = from.rows;
    o.cols = static_cast<int32_t>(from.cols);
    o.column_blocks = blocks_for(from.cols, kBlockColumns);
    o.blocks = static_cast<uint32_t>(sum_runs(from.rows)) * o.column_blocks;
    o.aligned = reinterpret_cast<uintptr_t>(from.data) % 16 == 0 && from.stride % 4 == 0;
    blocks += o.blocks;
  }
  queue_.launch(round_operands, dim3(blocks), dim3(kThreads),
                SharedBytes{}.take<float>(kElementStride * kPiece).used, p);
}

}  // namespace unifluid::cuda
