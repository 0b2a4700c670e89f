// Gradients of attention. A task is one key head of one span: for each block of rows of each of its
// query heads the scores are computed again and five small products follow. What a task keeps, the
// scores of one block against all keys of the span, is scratch and not memory of the step.
#include "cpu/kernels/attention_rows.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/gemm_tile.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

struct Plan {
  const AttentionBackwardArgs* args;
  Parallel* parallel;
  bool pairs;          // operands of products are rounded
  const float* table;  // of rotations, or null
  char* shared;        // thread 0's scratch: the table, then its task's
  size_t shared_bytes, task_bytes;
};

// Pieces of a task's scratch, in floats, for spans of so many rows.
struct Room {
  int64_t head, block, scores, keys, queries, product;

  Room(int64_t rows, int64_t d, bool pairs) {
    const int64_t most = smaller(rows, kScoreRows);
    head = to_line(rows * d);
    block = to_line(most * d);
    scores = most * to_line(rows);
    const int64_t across = packed_size(d, rows, pairs), along = packed_size(rows, d, pairs);
    keys = across > along ? across : along;
    queries = packed_size(most, d, pairs);
    product = multiply_room(pairs);
  }
  int64_t total() const {
    return 2 * head + 2 * block + 3 * scores + 3 * keys + 2 * queries + product;
  }
};

// Gradients of a row's products from those of its weights, in place.
void softmax_row_backward(const AttentionArgs& f, const Sight& sight, int64_t columns,
                          const float* weights, const float* tangents, float* gradients) {
  Vec mean = zero();
  vectors_between(sight.first, sight.last,
                  [&](int64_t c) { mean = fma(load(gradients + c), load(weights + c), mean); });
  const Vec center = set1(sum(mean)), scale = set1(f.scale);
  vectors_between(sight.first, sight.last, [&](int64_t c) {
    Vec v = mul(mul(scale, load(weights + c)), sub(load(gradients + c), center));
    if (f.soft_cap > 0) {
      const Vec t = load(tangents + c);
      v = mul(v, fnma(t, t, set1(1.0f)));
    }
    store(gradients + c, v);
  });
  clear_around(sight.first, sight.last, columns, gradients);
}

void span_task(void* context, int64_t index, int thread) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const AttentionBackwardArgs& a = *plan.args;
  const AttentionArgs& f = a.forward;
  const AttentionSpan& span = f.spans[index / f.kv_heads];
  const int64_t kv = index % f.kv_heads, group = f.heads / f.kv_heads;
  // Scores have whole vectors of columns, the last of which are zeros.
  const int64_t d = f.head_dim, rows = span.rows, columns = to_line(rows);
  // Those that `pack` has made: narrow panels end before a line does.
  const int64_t products = smaller(columns, divide_up(rows, kPanel) * kPanel);
  if (rows == 0) return;
  char* scratch = thread == 0 ? plan.shared + plan.shared_bytes
                              : static_cast<char*>(plan.parallel->scratch(thread, plan.task_bytes));
  const Room room(rows, d, plan.pairs);
  float* at = reinterpret_cast<float*>(scratch);
  const auto take = [&](int64_t floats) {
    float* piece = at;
    at += floats;
    return piece;
  };
  float *turned_k = take(room.head), *turned_dk = take(room.head);
  float *turned_q = take(room.block), *turned_dq = take(room.block);
  float *weights = take(room.scores), *gradients = take(room.scores), *tangents = take(room.scores);
  float *keys_across = take(room.keys), *keys_along = take(room.keys);
  float* values_across = take(room.keys);
  float *packed_q = take(room.queries), *packed_dout = take(room.queries);
  float* product = take(room.product);
  const auto multiply = [&](View x, const float* packed, int64_t m, int64_t n, int64_t k, bool more,
                            float* out, int64_t stride) {
    multiply_packed(x, packed, m, n, k, more, plan.pairs, out, stride, product);
  };

  View k{row_of(f.k, span.first_row) + kv * d, f.k.stride, 1};
  float* dk = mutable_row_of(a.dk, span.first_row) + kv * d;
  int64_t dk_stride = a.dk.stride;
  if (plan.table) {
    rotate_rows(plan.table, d, k.data, k.row, 0, rows, 1, turned_k, d);
    k = {turned_k, d, 1};
    dk = turned_dk;
    dk_stride = d;
  }
  float* dv = mutable_row_of(a.dv, span.first_row) + kv * d;
  pack(transposed(k), d, rows, plan.pairs, keys_across);
  pack(k, rows, d, plan.pairs, keys_along);
  pack({row_of(f.v, span.first_row) + kv * d, 1, f.v.stride}, d, rows, plan.pairs, values_across);

  for (int64_t h = 0; h < group; ++h) {
    const int64_t column = (kv * group + h) * d;
    for (int64_t first = 0; first < rows; first += kScoreRows) {
      const int64_t count = smaller(rows - first, kScoreRows);
      const int64_t row = span.first_row + first;
      const bool more = h > 0 || first > 0;
      View q{row_of(f.q, row) + column, f.q.stride, 1};
      float* dq = mutable_row_of(a.dq, row) + column;
      int64_t dq_stride = a.dq.stride;
      if (plan.table) {
        rotate_rows(plan.table, d, q.data, q.row, first, count, 1, turned_q, d);
        q = {turned_q, d, 1};
        dq = turned_dq;
        dq_stride = d;
      }
      const View dout{row_of(a.dout, row) + column, a.dout.stride, 1};
      multiply(q, keys_across, count, products, d, false, weights, columns);
      multiply(dout, values_across, count, products, d, false, gradients, columns);
      for (int64_t i = 0; i < count; ++i) {
        const Sight sight = sight_of(f, span, first + i);
        const int64_t of = i * columns;
        softmax_row(f, sight, columns, weights + of, tangents + of);
        softmax_row_backward(f, sight, columns, weights + of, tangents + of, gradients + of);
      }
      pack(dout, count, d, plan.pairs, packed_dout);
      multiply({weights, 1, columns}, packed_dout, rows, d, count, more, dv, a.dv.stride);
      multiply({gradients, columns, 1}, keys_along, count, d, rows, false, dq, dq_stride);
      pack(q, count, d, plan.pairs, packed_q);
      multiply({gradients, 1, columns}, packed_q, rows, d, count, more, dk, dk_stride);
      if (plan.table)
        rotate_rows(plan.table, d, turned_dq, d, first, count, -1,
                    mutable_row_of(a.dq, row) + column, a.dq.stride);
    }
  }
  if (plan.table)
    rotate_rows(plan.table, d, turned_dk, d, 0, rows, -1,
                mutable_row_of(a.dk, span.first_row) + kv * d, a.dk.stride);
}

}  // namespace

bool attention_backward(const AttentionBackwardArgs& args, Parallel& parallel) {
  const AttentionArgs& f = args.forward;
  int64_t longest = 0;
  for (int64_t i = 0; i < f.span_count; ++i)
    if (f.spans[i].rows > longest) longest = f.spans[i].rows;
  if (longest == 0) return true;
  Plan plan{};
  plan.args = &args;
  plan.parallel = &parallel;
  plan.pairs = f.bf16 && has_pairs();
  const int64_t d = f.head_dim;
  const bool rotary = f.rope_theta > 0;
  const int64_t table = rotary ? to_line(longest * d) : 0,
                frequencies = rotary ? to_line(d / 2) : 0;
  plan.shared_bytes = sizeof(float) * static_cast<size_t>(table + frequencies);
  plan.task_bytes = sizeof(float) * static_cast<size_t>(Room(longest, d, plan.pairs).total());
  for (int t = 1; t < parallel.threads(); ++t)
    if (!parallel.scratch(t, plan.task_bytes)) return false;
  plan.shared = static_cast<char*>(parallel.scratch(0, plan.shared_bytes + plan.task_bytes));
  if (!plan.shared) return false;
  if (rotary) {
    float* rotations = reinterpret_cast<float*>(plan.shared);
    rotation_table(f, longest, rotations + table, rotations);
    plan.table = rotations;
  }
  parallel.run(f.span_count * f.kv_heads, span_task, &plan);
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
