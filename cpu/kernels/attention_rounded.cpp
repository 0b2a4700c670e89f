// Attention of sequences without a cache whose operands are rounded to bfloat16, as training has it
// where the processor multiplies pairs of those: products of blocks of queries with all keys, and
// the softmax of whole rows between them.
//
// Keys and values are packed once for each sequence and head, then every block of a query head's
// rows is a task. The scores of such a block are all of the score matrix that exists.
#include "cpu/kernels/attention_rows.h"
#include "cpu/kernels/gemm.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

struct Plan {
  const AttentionArgs* args;
  Parallel* parallel;
  const float* table;  // of rotations, or null
  int64_t longest;
  // Thread 0's scratch: these tables, then its task's.
  char* shared;
  size_t shared_bytes, task_bytes;
  float* packed;     // keys, then values, of every head of every span
  int64_t* offsets;  // of each span: where its heads begin
};

int64_t keys_size(const Plan& plan, int64_t rows) {
  return packed_size(plan.args->head_dim, rows, true);
}
int64_t values_size(const Plan& plan, int64_t rows) {
  return packed_size(rows, plan.args->head_dim, true);
}

float* scratch_of(const Plan& plan, int thread) {
  return static_cast<float*>(thread == 0 ? static_cast<void*>(plan.shared + plan.shared_bytes)
                                         : plan.parallel->scratch(thread, plan.task_bytes));
}

// Where keys and values of a span's head are packed.
struct Packed {
  float *keys, *values;
};
Packed packed_of(const Plan& plan, const AttentionSpan& span, int64_t kv) {
  const int64_t keys = keys_size(plan, span.rows), values = values_size(plan, span.rows);
  float* at = plan.packed + plan.offsets[&span - plan.args->spans] + kv * (keys + values);
  return {at, at + keys};
}

void pack_span_task(void* context, int64_t index, int thread) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const AttentionArgs& f = *plan.args;
  const AttentionSpan& span = f.spans[index / f.kv_heads];
  const int64_t kv = index % f.kv_heads, d = f.head_dim, rows = span.rows;
  const Packed to = packed_of(plan, span, kv);
  View k{row_of(f.k, span.first_row) + kv * d, f.k.stride, 1};
  if (plan.table) {
    float* turned = scratch_of(plan, thread);
    rotate_rows(plan.table, d, k.data, k.row, 0, rows, 1, turned, d);
    k = {turned, d, 1};
  }
  pack(transposed(k), d, rows, true, to.keys);
  pack({row_of(f.v, span.first_row) + kv * d, f.v.stride, 1}, rows, d, true, to.values);
}

int64_t blocks_of(const AttentionSpan& span) { return divide_up(span.rows, kScoreRows); }

void attend_task(void* context, int64_t index, int thread) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const AttentionArgs& f = *plan.args;
  const int64_t h = index % f.heads, kv = h / (f.heads / f.kv_heads), d = f.head_dim;
  index /= f.heads;
  const AttentionSpan* span = f.spans;
  for (; index >= blocks_of(*span); ++span) index -= blocks_of(*span);
  const int64_t rows = span->rows, columns = to_line(rows), first = index * kScoreRows;
  const int64_t count = rows - first < kScoreRows ? rows - first : kScoreRows;
  const int64_t row = span->first_row + first;
  const Packed packed = packed_of(plan, *span, kv);

  float* scores = scratch_of(plan, thread);
  float* tangents = scores + kScoreRows * to_line(plan.longest);
  float* turned = tangents + to_line(plan.longest);
  float* room = turned + to_line(kScoreRows * d);
  View q{row_of(f.q, row) + h * d, f.q.stride, 1};
  if (plan.table) {
    rotate_rows(plan.table, d, q.data, q.row, first, count, 1, turned, d);
    q = {turned, d, 1};
  }
  multiply_packed(q, packed.keys, count, columns, d, false, true, scores, columns, room);
  for (int64_t i = 0; i < count; ++i)
    softmax_row(f, sight_of(f, *span, first + i), columns, scores + i * columns, tangents);
  multiply_packed({scores, columns, 1}, packed.values, count, d, rows, false, true,
                  mutable_row_of(f.out, row) + h * d, f.out.stride, room);
}

}  // namespace

bool attention_rounded(const AttentionArgs& args, Parallel& parallel) {
  Plan plan{};
  plan.args = &args;
  plan.parallel = &parallel;
  int64_t tasks = 0, packed = 0;
  for (int64_t i = 0; i < args.span_count; ++i) {
    const int64_t rows = args.spans[i].rows;
    plan.longest = rows > plan.longest ? rows : plan.longest;
    tasks += args.heads * blocks_of(args.spans[i]);
    packed += args.kv_heads * (keys_size(plan, rows) + values_size(plan, rows));
  }
  if (tasks == 0) return true;
  const int64_t d = args.head_dim, longest = plan.longest;
  const bool rotary = args.rope_theta > 0;
  const int64_t table = rotary ? to_line(longest * d) : 0,
                frequencies = rotary ? to_line(d / 2) : 0;
  const int64_t attend =
      (kScoreRows + 1) * to_line(longest) + to_line(kScoreRows * d) + multiply_room(true);
  const int64_t task = attend > longest * d ? attend : longest * d;
  const int64_t offsets = to_line(2 * args.span_count);
  plan.shared_bytes = sizeof(float) * static_cast<size_t>(table + frequencies + packed + offsets);
  plan.task_bytes = sizeof(float) * static_cast<size_t>(task);
  for (int t = 1; t < parallel.threads(); ++t)
    if (!parallel.scratch(t, plan.task_bytes)) return false;
  plan.shared = static_cast<char*>(parallel.scratch(0, plan.shared_bytes + plan.task_bytes));
  if (!plan.shared) return false;
  float* rotations = reinterpret_cast<float*>(plan.shared);
  plan.packed = rotations + table + frequencies;
  plan.offsets = reinterpret_cast<int64_t*>(plan.packed + packed);
  for (int64_t i = 0, at = 0; i < args.span_count; ++i) {
    const int64_t rows = args.spans[i].rows;
    plan.offsets[i] = at;
    at += args.kv_heads * (keys_size(plan, rows) + values_size(plan, rows));
  }
  if (rotary) {
    rotation_table(args, longest, rotations + table, rotations);
    plan.table = rotations;
  }
  parallel.run(args.span_count * args.kv_heads, pack_span_task, &plan);
  parallel.run(tasks, attend_task, &plan);
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
