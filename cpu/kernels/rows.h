// What kernels share that go over rows: vectors of a row, activations, and runs of rows as tasks.
#pragma once

#include "cpu/kernels/bf16_pairs.h"
#include "cpu/kernels/kernels.h"

namespace unifluid::cpu::UNIFLUID_ISA {

UNIFLUID_INLINE const float* row_of(const Tensor& t, int64_t row) {
  return static_cast<const float*>(t.data) + row * t.stride;
}
UNIFLUID_INLINE float* mutable_row_of(const Tensor& t, int64_t row) {
  return static_cast<float*>(t.data) + row * t.stride;
}

// A row to write to that may be bfloat16, as what only products take is.
struct OperandRow {
  float* data;
  bool rounded;
  __attribute__((always_inline)) void store(int64_t at, Vec v, int n) const {
    if (rounded)
      store_rounded_n(reinterpret_cast<BFloat16*>(data) + at, v, n);
    else
      store_n(data + at, v, n);
  }
};
UNIFLUID_INLINE OperandRow operand_row(const Tensor& t, int64_t row) {
  return {static_cast<float*>(t.row(row)), t.type == DType::bf16};
}

// Calls f(offset, lanes) for every vector of `count` elements.
template <class F>
UNIFLUID_INLINE void each_vector(int64_t count, F f) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) f(c, kLanes);
  if (c < count) f(c, static_cast<int>(count - c));
}

UNIFLUID_INLINE Vec activate(Vec x, Activation activation) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::silu:
      return silu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::gelu_erf:
      return gelu_erf(x);
  }
  return x;
}

// 1 / sqrt(x), correctly rounded twice rather than estimated.
UNIFLUID_INLINE float inverse_root(float x) { return 1.0f / __builtin_sqrtf(x); }

// Lanes past the end of a row as zeros.
UNIFLUID_INLINE Vec keep(Vec v, int n) {
  if (n == kLanes) return v;
  float t[kLanes] = {};
  store_n(t, v, n);
  return load(t);
}

struct RowMoments {
  float mean, root;  // root: 1 / sqrt(variance + eps)
};
UNIFLUID_INLINE RowMoments moments_of(const float* x, int64_t n, float eps) {
  Vec total = zero();
  each_vector(n, [&](int64_t c, int k) { total = add(total, load_n(x + c, k)); });
  const float mean = sum(total) / static_cast<float>(n);
  const Vec center = set1(mean);
  Vec squares = zero();
  each_vector(n, [&](int64_t c, int k) {
    const Vec d = keep(sub(load_n(x + c, k), center), k);
    squares = fma(d, d, squares);
  });
  return {mean, inverse_root(sum(squares) / static_cast<float>(n) + eps)};
}

// Rows of a task. Partial sums over rows are kept for each such run and added up in order, so they
// depend on the number of rows alone.
inline constexpr int64_t kRunRows = 64;
// Elements below which the calling thread is done before another would have begun.
inline constexpr int64_t kSmallRows = int64_t{1} << 14;

UNIFLUID_INLINE int64_t runs_of(int64_t rows) { return divide_up(rows, kRunRows); }

template <class Context>
struct RunsOfRows {
  Context* context;
  void (*body)(Context&, int64_t first, int64_t end, int64_t run);
  int64_t rows, run_rows;
};
template <class Context>
static void run_task(void* context, int64_t index, int) {
  const auto& work = *static_cast<const RunsOfRows<Context>*>(context);
  const int64_t first = index * work.run_rows;
  work.body(*work.context, first, smaller(first + work.run_rows, work.rows), index);
}
// Calls body(context, first row, end, run) for every run of kRunRows rows.
template <class Context>
static void each_run(Context& context, int64_t rows, int64_t elements,
                     void (*body)(Context&, int64_t, int64_t, int64_t), Parallel& parallel) {
  RunsOfRows<Context> work{&context, body, rows, kRunRows};
  const int64_t runs = runs_of(rows);
  if (elements < kSmallRows) {
    for (int64_t i = 0; i < runs; ++i) run_task<Context>(&work, i, 0);
  } else {
    parallel.run(runs, run_task<Context>, &work);
  }
}
// The same, of rows that no sum goes over: the runs may be as many as the threads ask for, so that
// all have some of the few rows that a step of a model has.
template <class Context>
static void each_share(Context& context, int64_t rows, int64_t elements,
                       void (*body)(Context&, int64_t, int64_t, int64_t), Parallel& parallel) {
  if (rows == 0) return;
  const int64_t tasks = elements < kSmallRows ? 1 : smaller(rows, 4 * parallel.threads());
  RunsOfRows<Context> work{&context, body, rows, divide_up(rows, tasks)};
  parallel.run(divide_up(rows, work.run_rows), run_task<Context>, &work);
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
