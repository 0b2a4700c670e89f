// gemm of training, on the products of linear.cu.
//
// Those take both operands with k along their rows, in the type that they multiply. Operands that
// lie otherwise are brought into that form first: float32 to bfloat16, and turned where the
// transpose is asked for. That is one pass over an operand beside a product that reads each of its
// elements for every 64 or 128 rows of the other.
#include "cuda/device/shared.h"
#include "cuda/kernels.h"
#include "cuda/kernels/training_elements.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

// A square of the matrix, turned in shared memory; the threads are kSide x kTurnRows.
constexpr int kSide = 32, kTurnRows = 8;

struct TurnParams {
  Rows from;  // [rows, cols]
  void* to;   // [cols, rows]
  int64_t to_stride;
  int32_t rows, cols;
};

template <class T>
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
                   p.from.at(first_row + i, first_column + x));
  __syncthreads();
  for (int i = y; i < kSide; i += kTurnRows)
    if (first_column + i < p.cols && first_row + x < p.rows)
      static_cast<T*>(p.to)[(first_column + i) * p.to_stride + first_row + x] =
          from_float<T>(square.load(static_cast<uint32_t>(x * (kSide + 1) + i)));
}

// How an operand comes to have k along its rows.
struct Operand {
  Tensor from;
  bool turned;
  DType type;

  int64_t rows() const { return turned ? from.cols : from.rows; }
  int64_t k() const { return turned ? from.rows : from.cols; }
  bool as_it_is() const { return !turned && type == DType::f32; }
  // Rows begin at 16 bytes in either type.
  int64_t stride() const { return (k() + 7) / 8 * 8; }
  size_t bytes() const {
    return as_it_is() ? 0 : static_cast<size_t>(rows() * stride()) * size_of(type);
  }

  Tensor prepare(Queue& queue) const {
    if (as_it_is()) return from;
    Tensor to(queue.scratch<char>(bytes()), type, rows(), k());
    to.stride = stride();
    if (!turned) {
      copy_rows(queue, from, to);
      return to;
    }
    TurnParams p{};
    p.from = from;
    p.to = to.data;
    p.to_stride = to.stride;
    p.rows = static_cast<int32_t>(from.rows);
    p.cols = static_cast<int32_t>(from.cols);
    with_type(type, [&](auto t) {
      queue.launch(turn_square<decltype(t)>,
                   dim3(blocks_for(from.rows, kSide), blocks_for(from.cols, kSide)),
                   dim3(kSide * kTurnRows), SharedBytes{}.take<float>(kSide * (kSide + 1)).used, p);
    });
    return to;
  }
};

}  // namespace

void gemm(Queue& queue, const GemmArgs& args) {
  if (args.out.size() == 0) return;
  const DType type = args.bf16 ? DType::bf16 : DType::f32;
  const Operand a{args.a, args.transpose_a, type}, b{args.b, !args.transpose_b, type};
  queue.reserve_scratch(a.bytes() + b.bytes() + 2 * 256);
  LinearArgs product{};
  product.x = a.prepare(queue);
  product.weight = b.prepare(queue);
  product.bias = args.bias;
  if (args.accumulate) product.residual = args.out;
  product.out = args.out;
  linear(queue, product);
}

}  // namespace unifluid::cuda
