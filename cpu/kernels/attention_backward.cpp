// Gradients of attention. A task is one key head of one span: for each of its query heads the
// scores are computed again, whole, and five small products follow. Training sequences are short;
// what a task keeps, three square matrices, is scratch and not memory of the step.
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/trigonometry.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

constexpr float kMasked = -3e38f;

struct Plan {
  const AttentionBackwardArgs* args;
  Parallel* parallel;
  const float* frequencies;  // [head_dim / 2], or null
  char* shared;              // thread 0's scratch: the frequencies, then its task's
  size_t shared_bytes, task_bytes;
  int64_t longest;
};

// The rotation of `rows` rows of one head, forward or (sign -1) back.
void rotate_rows(const Plan& plan, const float* x, int64_t stride, int64_t rows, float sign,
                 float factor, float* out, int64_t out_stride) {
  const AttentionArgs& f = plan.args->forward;
  const int64_t d = f.head_dim, half = d / 2;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = x + r * stride;
    float* to = out + r * out_stride;
    if (!plan.frequencies) {
      each_vector(
          d, [&](int64_t c, int n) { store_n(to + c, mul(set1(factor), load_n(from + c, n)), n); });
      continue;
    }
    const Vec at = set1(static_cast<float>(f.first_position + r));
    each_vector(half, [&](int64_t c, int n) {
      const SinCos turn = sin_cos(mul(at, load_n(plan.frequencies + c, n)));
      const Vec sine = mul(set1(sign), turn.sin);
      const Vec a = load_n(from + c, n), b = load_n(from + half + c, n);
      store_n(to + c, mul(set1(factor), fnma(b, sine, mul(a, turn.cos))), n);
      store_n(to + half + c, mul(set1(factor), fma(a, sine, mul(b, turn.cos))), n);
    });
  }
}

// Scores of row i to weights, in place; `slope` gets the derivative of the cap.
void softmax_row(const AttentionArgs& f, const AttentionSpan& span, int64_t i, float* scores,
                 float* slope) {
  const int64_t rows = span.rows;
  int64_t first = 0, last = i;
  if (i < span.prefix_end)
    last = span.prefix_end - 1;
  else if (f.window > 0 && i - f.window + 1 > 0)
    first = i - f.window + 1;
  if (f.soft_cap > 0) {
    const Vec cap = set1(f.soft_cap);
    each_vector(rows, [&](int64_t c, int n) {
      const Vec s = load_n(scores + c, n), t = tanh(div(s, cap));
      store_n(slope + c, fnma(t, t, set1(1.0f)), n);
      // As soft_capped has it.
      store_n(scores + c, fma(s, zero(), mul(cap, t)), n);
    });
  }
  for (int64_t j = 0; j < first; ++j) scores[j] = kMasked;
  for (int64_t j = last + 1; j < rows; ++j) scores[j] = kMasked;
  float top = kMasked;
  for (int64_t j = first; j <= last; ++j) top = scores[j] > top ? scores[j] : top;
  Vec total = zero();
  each_vector(rows, [&](int64_t c, int n) {
    Vec weight = exp(sub(load_n(scores + c, n), set1(top)));
    if (n < kLanes) {
      float t[kLanes] = {};
      store_n(t, weight, n);
      weight = load(t);
    }
    store_n(scores + c, weight, n);
    total = add(total, weight);
  });
  const Vec inverse = set1(1.0f / sum(total));
  each_vector(
      rows, [&](int64_t c, int n) { store_n(scores + c, mul(load_n(scores + c, n), inverse), n); });
}

void span_task(void* context, int64_t index, int thread) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const AttentionBackwardArgs& a = *plan.args;
  const AttentionArgs& f = a.forward;
  const AttentionSpan& span = f.spans[index / f.kv_heads];
  const int64_t kv = index % f.kv_heads, group = f.heads / f.kv_heads;
  const int64_t d = f.head_dim, rows = span.rows;
  char* scratch = thread == 0 ? plan.shared + plan.shared_bytes
                              : static_cast<char*>(plan.parallel->scratch(thread, plan.task_bytes));
  float* q = reinterpret_cast<float*>(scratch);
  float* k = q + plan.longest * d;
  float* dk = k + plan.longest * d;
  float* dq = dk + plan.longest * d;
  float* p = dq + plan.longest * d;
  float* ds = p + plan.longest * plan.longest;
  float* slope = ds + plan.longest * plan.longest;
  // Products' panels, aligned.
  char* room = reinterpret_cast<char*>(slope + plan.longest * plan.longest);
  room += (64 - reinterpret_cast<uintptr_t>(room) % 64) % 64;

  const float* values = row_of(f.v, span.first_row) + kv * d;
  float* dv = mutable_row_of(a.dv, span.first_row) + kv * d;
  rotate_rows(plan, row_of(f.k, span.first_row) + kv * d, f.k.stride, rows, 1, 1, k, d);
  for (int64_t h = 0; h < group; ++h) {
    const int64_t column = (kv * group + h) * d;
    const bool more = h > 0;
    const float* dout = row_of(a.dout, span.first_row) + column;
    rotate_rows(plan, row_of(f.q, span.first_row) + column, f.q.stride, rows, 1, f.scale, q, d);
    small_gemm({q, d, 1}, {k, 1, d}, rows, rows, d, false, p, rows, room);
    for (int64_t i = 0; i < rows; ++i) softmax_row(f, span, i, p + i * rows, slope + i * rows);
    small_gemm({p, 1, rows}, {dout, a.dout.stride, 1}, rows, d, rows, more, dv, a.dv.stride, room);
    small_gemm({dout, a.dout.stride, 1}, {values, 1, f.v.stride}, rows, rows, d, false, ds, rows,
               room);
    for (int64_t i = 0; i < rows; ++i) {
      float* s = ds + i * rows;
      const float* weight = p + i * rows;
      Vec mean = zero();
      each_vector(rows, [&](int64_t c, int n) {
        mean = fma(load_n(s + c, n), load_n(weight + c, n), mean);
      });
      const Vec center = set1(sum(mean));
      each_vector(rows, [&](int64_t c, int n) {
        Vec v = mul(load_n(weight + c, n), sub(load_n(s + c, n), center));
        if (f.soft_cap > 0) v = mul(v, load_n(slope + i * rows + c, n));
        store_n(s + c, v, n);
      });
    }
    small_gemm({ds, rows, 1}, {k, d, 1}, rows, d, rows, false, dq, d, room);
    rotate_rows(plan, dq, d, rows, -1, f.scale, mutable_row_of(a.dq, span.first_row) + column,
                a.dq.stride);
    small_gemm({ds, 1, rows}, {q, d, 1}, rows, d, rows, more, dk, d, room);
  }
  rotate_rows(plan, dk, d, rows, -1, 1, mutable_row_of(a.dk, span.first_row) + kv * d, a.dk.stride);
}

size_t to_line(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

bool attention_backward(const AttentionBackwardArgs& args, Parallel& parallel) {
  const AttentionArgs& f = args.forward;
  Plan plan{};
  plan.args = &args;
  plan.parallel = &parallel;
  for (int64_t i = 0; i < f.span_count; ++i)
    if (f.spans[i].rows > plan.longest) plan.longest = f.spans[i].rows;
  if (plan.longest == 0) return true;
  const int64_t d = f.head_dim, s = plan.longest;
  const size_t larger = small_gemm_bytes(s, s > d ? s : d) + small_gemm_bytes(d, s);
  plan.task_bytes =
      to_line(sizeof(float) * static_cast<size_t>(4 * s * d + 3 * s * s)) + larger + 128;
  plan.shared_bytes = f.rope_theta > 0 ? to_line(sizeof(float) * static_cast<size_t>(d / 2)) : 0;
  for (int t = 1; t < parallel.threads(); ++t)
    if (!parallel.scratch(t, plan.task_bytes)) return false;
  plan.shared = static_cast<char*>(parallel.scratch(0, plan.shared_bytes + plan.task_bytes));
  if (!plan.shared) return false;
  if (f.rope_theta > 0) {
    float* frequencies = reinterpret_cast<float*>(plan.shared);
    rope_frequencies(f.rope_theta, d, frequencies);
    plan.frequencies = frequencies;
  }
  parallel.run(f.span_count * f.kv_heads, span_task, &plan);
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
