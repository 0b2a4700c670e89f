// gemm and linear_backward of training, on the products of linear.cu, and on Hopper on those of
// training_product.cu.
//
// The former take both operands with k along their rows, in the type that they multiply. Operands
// that lie otherwise are brought into that form first: float32 to bfloat16, and transposed where
// the transpose is asked for. That is one pass over an operand beside a product that reads each of
// its elements for every 64 or 128 rows of the other. The latter take them as they lie, rounded.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/kernels/training_product.h"
#include "cuda/kernels/training_rounding.h"
#include "cuda/kernels/training_sums.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

// How an operand comes to have k along its rows.
struct Operand {
  Tensor from;
  bool transposed;
  DType type;

  int64_t rows() const { return transposed ? from.cols : from.rows; }
  int64_t k() const { return transposed ? from.rows : from.cols; }
  bool as_it_is() const { return !transposed && from.type == type; }
  // Rows begin at 16 bytes in either type.
  int64_t stride() const { return (k() + 7) / 8 * 8; }
  size_t bytes() const {
    return as_it_is() ? 0 : static_cast<size_t>(rows() * stride()) * size_of(type);
  }

  Tensor prepare(Queue& queue) const {
    if (as_it_is()) return from;
    Tensor to(queue.scratch<char>(bytes()), type, rows(), k());
    to.stride = stride();
    if (transposed)
      transpose_rows(queue, from, to);
    else
      copy_rows(queue, from, to);
    return to;
  }
};

void gemm_as_linear(Queue& queue, const GemmArgs& args) {
  const DType type = args.bf16 ? DType::bf16 : DType::f32;
  const Operand a{args.a, args.transpose_a, type}, b{args.b, !args.transpose_b, type};
  queue.reserve_scratch(Queue::piece_bytes(a.bytes()) + Queue::piece_bytes(b.bytes()));
  LinearArgs product{};
  product.x = a.prepare(queue);
  product.weight = b.prepare(queue);
  product.bias = args.bias;
  if (args.accumulate) product.residual = args.out;
  product.out = args.out;
  linear(queue, product);
}

void gemm_by_warpgroups(Queue& queue, const GemmArgs& args) {
  TrainingProduct product{};
  product.a = args.a;
  product.turned_a = args.transpose_a;
  product.b = args.b;
  product.turned_b = !args.transpose_b;
  product.bias = args.bias;
  product.accumulate = args.accumulate;
  product.out = args.out;
  // The way forward keeps one sum over a layer's width: a row's results do not depend on how many
  // there are.
  product.parts = !args.transpose_b;
  const size_t sums = partial_sums(product);
  queue.reserve_scratch(RoundedOperands::bytes(args.a) + RoundedOperands::bytes(args.b) +
                        Queue::piece_bytes(sums * sizeof(float)));
  RoundedOperands operands(queue);
  product.a = operands.add(args.a);
  product.b = operands.add(args.b);
  operands.round();
  multiply(queue, product, queue.scratch<float>(sums));
}

}  // namespace

void gemm(Queue& queue, const GemmArgs& args) {
  if (args.out.size() == 0) return;
  const bool both = args.transpose_a && args.transpose_b;
  if (args.bf16 && queue.limits().transposed && !both && args.a.size() > 0)
    gemm_by_warpgroups(queue, args);
  else
    gemm_as_linear(queue, args);
}

// The gradient of the outputs is rounded once for both products.
void linear_backward(Queue& queue, const LinearBackwardArgs& args) {
  const Tensor& dout = args.dout;
  if (dout.size() == 0) return;
  if (!args.dweight && !args.dx) {
    if (args.dbias) column_sum(queue, {dout, args.dbias});
    return;
  }
  TrainingProduct weights{}, inputs{};
  weights.a = inputs.a = dout;
  weights.turned_a = weights.turned_b = inputs.turned_b = true;
  weights.parts = inputs.parts = true;
  weights.b = args.x;
  weights.accumulate = true;
  weights.out = args.dweight;
  inputs.b = args.weight;
  inputs.accumulate = args.accumulate;
  inputs.out = args.dx;
  const size_t runs = args.dbias ? static_cast<size_t>(sum_runs(dout.rows) * dout.cols) : 0;
  size_t sums = 0, bytes = RoundedOperands::bytes(dout);
  for (const TrainingProduct* p : {&weights, &inputs})
    if (p->out) {
      sums = std::max(sums, partial_sums(*p));
      bytes += RoundedOperands::bytes(p->b);
    }
  queue.reserve_scratch(bytes + Queue::piece_bytes(sums * sizeof(float)) +
                        Queue::piece_bytes(runs * sizeof(float)));

  RoundedOperands operands(queue);
  // What is rounded is summed beside it.
  const bool beside = runs && dout.type == DType::f32;
  float* run_sums = beside ? queue.scratch<float>(runs) : nullptr;
  weights.a = inputs.a = operands.add(dout, run_sums);
  for (TrainingProduct* p : {&weights, &inputs})
    if (p->out) p->b = operands.add(p->b);
  operands.round();
  if (beside)
    add_runs(queue, run_sums, sum_runs(dout.rows), dout.cols, args.dbias);
  else if (runs)
    column_sum(queue, {dout, args.dbias});
  float* partial = queue.scratch<float>(sums);
  for (const TrainingProduct* p : {&weights, &inputs})
    if (p->out) multiply(queue, *p, partial);
}

}  // namespace unifluid::cuda
