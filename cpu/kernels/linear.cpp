// Linear layers: the matrix product with bias, activation, residual or gate applied to each block
// while it is in the cache.
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/matmul.h"
#include "cpu/kernels/rows.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// Below so many multiply-adds the calling thread is done before another would have begun.
constexpr int64_t kSmallProduct = int64_t{96} << 10;

// How one product is cut into tasks: blocks of rows times blocks of outputs, tasks with the same
// outputs in succession because they share the weights.
struct Split {
  int64_t rows, outputs;              // of the product
  int64_t block_rows, block_outputs;  // kBlockRows * kBlockOutputs values at most
  int64_t row_blocks;
  int64_t tasks;
};

Split split(int64_t rows, int64_t outputs, int threads) {
  Split s{rows, outputs, 0, 0, 0, 0};
  if (rows == 0) return s;  // no tasks
  // Equal blocks of whole tiles.
  s.row_blocks = divide_up(rows, kBlockRows);
  s.block_rows = divide_up(divide_up(rows, s.row_blocks), 4) * 4;
  s.row_blocks = divide_up(rows, s.block_rows);
  if (rows <= 4) {
    // The weights are read once and take the time: long runs of them, several for each thread so
    // that one that is held up does not hold up the others.
    const int64_t runs = divide_up(outputs, int64_t{8} * threads);
    s.block_outputs = smaller(divide_up(runs, 24) * 24, kBlockRows * kBlockOutputs / 4);
  } else {
    // Narrower blocks where there would be few tasks; 24 is a multiple of every tile's width.
    s.block_outputs = kBlockOutputs;
    if (divide_up(outputs, kBlockOutputs) * s.row_blocks < 4 * threads) s.block_outputs = 24;
  }
  s.tasks = divide_up(outputs, s.block_outputs) * s.row_blocks;
  return s;
}

struct Block {
  int64_t row, rows, output, outputs;
};

Block block(const Split& s, int64_t task) {
  Block b;
  b.row = task % s.row_blocks * s.block_rows;
  b.output = task / s.row_blocks * s.block_outputs;
  b.rows = smaller(s.block_rows, s.rows - b.row);
  b.outputs = smaller(s.block_outputs, s.outputs - b.output);
  return b;
}

struct LinearTask {
  const LinearArgs* args;
  Products products;
  Split split;
  Parallel* parallel;
};

void linear_task(void* context, int64_t index, int thread) {
  const LinearTask& task = *static_cast<const LinearTask*>(context);
  const LinearArgs& a = *task.args;
  const Block b = block(task.split, index);
  void* scratch = b.rows > 1 ? task.parallel->scratch(thread, kMatmulScratch) : nullptr;
  alignas(64) float product[kBlockRows * kBlockOutputs];
  matmul(row_of(a.x, b.row), a.x.stride, b.rows, a.weight, task.products, b.output, b.outputs,
         product, b.outputs, scratch);
  for (int64_t i = 0; i < b.rows; ++i) {
    const float* from = product + i * b.outputs;
    const float* bias = a.bias ? a.bias + b.output : nullptr;
    const float* residual = a.residual ? row_of(a.residual, b.row + i) + b.output : nullptr;
    float* to = mutable_row_of(a.out, b.row + i) + b.output;
    each_vector(b.outputs, [&](int64_t c, int n) {
      Vec v = load_n(from + c, n);
      if (bias) v = add(v, load_n(bias + c, n));
      v = activate(v, a.activation);
      if (residual) v = add(load_n(residual + c, n), v);
      store_n(to + c, v, n);
    });
  }
}

struct GatedTask {
  const GatedLinearArgs* args;
  Products products;
  Split split;
  Parallel* parallel;
};

void gated_task(void* context, int64_t index, int thread) {
  const GatedTask& task = *static_cast<const GatedTask*>(context);
  const GatedLinearArgs& a = *task.args;
  const Block b = block(task.split, index);
  void* scratch = b.rows > 1 ? task.parallel->scratch(thread, kMatmulScratch) : nullptr;
  alignas(64) float gate[kBlockRows * kBlockOutputs];
  alignas(64) float up[kBlockRows * kBlockOutputs];
  const float* x = row_of(a.x, b.row);
  matmul(x, a.x.stride, b.rows, a.gate, task.products, b.output, b.outputs, gate, b.outputs,
         scratch);
  matmul(x, a.x.stride, b.rows, a.up, task.products, b.output, b.outputs, up, b.outputs, scratch);
  for (int64_t i = 0; i < b.rows; ++i) {
    const int64_t from = i * b.outputs;
    float* to = mutable_row_of(a.out, b.row + i) + b.output;
    each_vector(b.outputs, [&](int64_t c, int n) {
      const Vec g = activate(load_n(gate + from + c, n), a.activation);
      store_n(to + c, mul(g, load_n(up + from + c, n)), n);
    });
  }
}

template <class Task>
void run(Task& task, Parallel::Task function, int64_t multiply_adds) {
  if (multiply_adds < kSmallProduct) {
    for (int64_t i = 0; i < task.split.tasks; ++i) function(&task, i, 0);
  } else {
    task.parallel->run(task.split.tasks, function, &task);
  }
}

}  // namespace

void linear(const LinearArgs& args, Products products, Parallel& parallel) {
  LinearTask task{&args, products, split(args.x.rows, args.weight.rows, parallel.threads()),
                  &parallel};
  run(task, linear_task, args.x.rows * args.weight.size());
}

void gated_linear(const GatedLinearArgs& args, Products products, Parallel& parallel) {
  GatedTask task{&args, products, split(args.x.rows, args.gate.rows, parallel.threads()),
                 &parallel};
  run(task, gated_task, 2 * args.x.rows * args.gate.size());
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
