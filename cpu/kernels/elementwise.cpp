// Element by element operations of training, with their gradients.
#include "cpu/kernels/rows.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

struct ValueAndSlope {
  Vec value, slope;
};

UNIFLUID_INLINE ValueAndSlope silu_slope(Vec x) {
  const Vec s = div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x))));
  const Vec value = mul(x, s);
  // s + x s (1 - s)
  return {value, fma(value, sub(set1(1.0f), s), s)};
}

UNIFLUID_INLINE ValueAndSlope gelu_tanh_slope(Vec x) {
  const Vec square = mul(x, x);
  const Vec inner = mul(set1(0.7978845608028654f), fma(mul(square, x), set1(0.044715f), x));
  const Vec t = tanh(inner);
  const Vec half = set1(0.5f);
  const Vec gate = mul(half, add(set1(1.0f), t));
  const Vec inner_slope =
      mul(set1(0.7978845608028654f), fma(square, set1(3 * 0.044715f), set1(1.0f)));
  const Vec bend = mul(mul(half, x), mul(fnma(t, t, set1(1.0f)), inner_slope));
  return {mul(x, gate), add(gate, bend)};
}

UNIFLUID_INLINE ValueAndSlope gelu_erf_slope(Vec x) {
  float in[kLanes], out[kLanes];
  store(in, x);
  for (int i = 0; i < kLanes; ++i)
    out[i] = 0.5f * (1.0f + __builtin_erff(in[i] * 0.70710678118654752f));
  const Vec share = load(out);
  const Vec density = mul(set1(0.3989422804014327f), exp(mul(set1(-0.5f), mul(x, x))));
  return {mul(x, share), fma(x, density, share)};
}

UNIFLUID_INLINE ValueAndSlope slope_of(Vec x, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return silu_slope(x);
    case Activation::gelu_tanh:
      return gelu_tanh_slope(x);
    case Activation::gelu_erf:
      return gelu_erf_slope(x);
    case Activation::none:
      break;
  }
  return {x, set1(1.0f)};
}

void add_run(const AddArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float* x = row_of(a.x, i);
    float* out = mutable_row_of(a.out, i);
    each_vector(a.x.cols, [&](int64_t c, int n) {
      store_n(out + c, add(load_n(out + c, n), load_n(x + c, n)), n);
    });
  }
}

void activation_run(const ActivationArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float* x = row_of(a.x, i);
    const OperandRow out = operand_row(a.out, i);
    each_vector(a.x.cols, [&](int64_t c, int n) {
      out.store(c, activate(load_n(x + c, n), a.activation), n);
    });
  }
}

void activation_backward_run(const ActivationBackwardArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float *x = row_of(a.x, i), *dout = row_of(a.dout, i);
    const OperandRow dx = operand_row(a.dx, i);
    each_vector(a.x.cols, [&](int64_t c, int n) {
      Vec d = mul(load_n(dout + c, n), slope_of(load_n(x + c, n), a.activation).slope);
      if (a.accumulate) d = add(load_n(dx.data + c, n), d);
      dx.store(c, d, n);
    });
  }
}

void gated_run(const GatedArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float *gate = row_of(a.gate, i), *up = row_of(a.up, i);
    const OperandRow out = operand_row(a.out, i);
    each_vector(a.gate.cols, [&](int64_t c, int n) {
      out.store(c, mul(activate(load_n(gate + c, n), a.activation), load_n(up + c, n)), n);
    });
  }
}

void gated_backward_run(const GatedBackwardArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float *gate = row_of(a.gate, i), *up = row_of(a.up, i), *dout = row_of(a.dout, i);
    const OperandRow dgate = operand_row(a.dgate, i), dup = operand_row(a.dup, i);
    each_vector(a.gate.cols, [&](int64_t c, int n) {
      const Vec d = load_n(dout + c, n), u = load_n(up + c, n);
      const ValueAndSlope g = slope_of(load_n(gate + c, n), a.activation);
      dgate.store(c, mul(mul(d, u), g.slope), n);
      dup.store(c, mul(d, g.value), n);
    });
  }
}

void gated_add_run(const GatedAddArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float *x = row_of(a.x, i), *gate = row_of(a.gate, i), *y = row_of(a.y, i);
    float* out = mutable_row_of(a.out, i);
    each_vector(a.x.cols, [&](int64_t c, int n) {
      store_n(out + c, fma(load_n(gate + c, n), load_n(y + c, n), load_n(x + c, n)), n);
    });
  }
}

void gated_add_backward_run(const GatedAddBackwardArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float *gate = row_of(a.gate, i), *y = row_of(a.y, i), *dout = row_of(a.dout, i);
    const OperandRow dgate = operand_row(a.dgate, i), dy = operand_row(a.dy, i);
    each_vector(a.y.cols, [&](int64_t c, int n) {
      const Vec d = load_n(dout + c, n), g = load_n(gate + c, n);
      dgate.store(c, mul(d, load_n(y + c, n)), n);
      dy.store(c, mul(d, g), n);
    });
  }
}

template <class Args>
void over_rows(const Args& args, const Tensor& like,
               void (*body)(const Args&, int64_t, int64_t, int64_t), Parallel& parallel) {
  each_run<const Args>(args, like.rows, like.size(), body, parallel);
}

// Columns of a task of `column_sum`.
constexpr int64_t kSumColumns = 4 * kLanes;

template <class T>
void column_sum_task(void* context, int64_t index, int) {
  const ColumnSumArgs& a = *static_cast<const ColumnSumArgs*>(context);
  const auto row = [&](int64_t i) { return static_cast<const T*>(a.x.row(i)); };
  const int64_t first = index * kSumColumns;
  const int64_t count = a.x.cols - first < kSumColumns ? a.x.cols - first : kSumColumns;
  if (count == kSumColumns) {
    Vec total[4] = {zero(), zero(), zero(), zero()};
    for (int64_t i = 0; i < a.x.rows; ++i) {
      const T* x = row(i) + first;
      for (int v = 0; v < 4; ++v) total[v] = add(total[v], load(x + v * kLanes));
    }
    for (int v = 0; v < 4; ++v) {
      float* out = a.out + first + v * kLanes;
      store(out, add(load(out), total[v]));
    }
    return;
  }
  each_vector(count, [&](int64_t c, int n) {
    Vec total = zero();
    for (int64_t i = 0; i < a.x.rows; ++i) total = add(total, load_n(row(i) + first + c, n));
    float* out = a.out + first + c;
    store_n(out, add(load_n(out, n), total), n);
  });
}

}  // namespace

void add_tensors(const AddArgs& a, Parallel& p) { over_rows(a, a.x, add_run, p); }
void activation(const ActivationArgs& a, Parallel& p) { over_rows(a, a.x, activation_run, p); }
void activation_backward(const ActivationBackwardArgs& a, Parallel& p) {
  over_rows(a, a.x, activation_backward_run, p);
}
void gated(const GatedArgs& a, Parallel& p) { over_rows(a, a.gate, gated_run, p); }
void gated_backward(const GatedBackwardArgs& a, Parallel& p) {
  over_rows(a, a.gate, gated_backward_run, p);
}
void gated_add(const GatedAddArgs& a, Parallel& p) { over_rows(a, a.x, gated_add_run, p); }
void gated_add_backward(const GatedAddBackwardArgs& a, Parallel& p) {
  over_rows(a, a.y, gated_add_backward_run, p);
}

void column_sum(const ColumnSumArgs& args, Parallel& parallel) {
  ColumnSumArgs a = args;
  const Parallel::Task task =
      a.x.type == DType::bf16 ? column_sum_task<BFloat16> : column_sum_task<float>;
  const int64_t tasks = divide_up(a.x.cols, kSumColumns);
  if (a.x.size() < kSmallRows)
    for (int64_t i = 0; i < tasks; ++i) task(&a, i, 0);
  else
    parallel.run(tasks, task, &a);
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
