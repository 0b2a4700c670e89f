// gemm of training, on the products of linear.cu.
//
// Those take both operands with k along their rows, in the type that they multiply. Operands that
// lie otherwise are brought into that form first: float32 to bfloat16, and turned where the
// transpose is asked for. That is one pass over an operand beside a product that reads each of its
// elements for every 64 or 128 rows of the other.
#include "cuda/kernels.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

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
    if (turned)
      turn_rows(queue, from, to);
    else
      copy_rows(queue, from, to);
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
