// Attention over ragged spans, with an online softmax over blocks of keys (Milakov & Gimelshein,
// 1805.02867; blocked as in FlashAttention, 2205.14135).
//
// A task is a block of rows of one span for the query heads that share one key head, so that a
// block of keys, once in the cache, serves all of them. It keeps its queries (rotated and scaled),
// their running maxima, sums and weighted values in scratch; the scores of one block of keys are
// all of the score matrix that exists.
//
// Invariance: blocks of keys begin at multiples of kKeys of the key's index in its sequence; a
// score is one vector accumulator over the head, added up by halves; values are added in the order
// of their keys. A key that a row does not see has weight exactly 0 in it, and a block of which it
// sees nothing changes nothing. So a row's result does not depend on the rows beside it.
#include "cpu/kernels/attention_rows.h"
#include "cpu/kernels/gemm_tile.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// Keys in a block: their scores for all queries of a task (8 KiB) stay in the first-level cache,
// and rescaling the accumulators once a block costs little beside 64 products with values.
constexpr int64_t kKeys = 64;
// Queries of one task. More would reuse a block of keys more often, but their accumulators and
// queries, 2 * 32 * 256 floats for a large head, should leave room for the block in the
// second-level cache.
constexpr int64_t kQueries = 32;
// Multiplications below which threads are not worth waking.
constexpr int64_t kSmallWork = 1 << 17;

// Masked scores lie far below the least maximum, so that e^(masked - maximum) is 0 even where a row
// has seen nothing yet.
constexpr float kMasked = -3e38f;
constexpr float kLeast = -1e30f;

// ---- what a call needs, worked out once ----

struct Plan {
  const AttentionArgs* args;
  Parallel* parallel;
  int64_t group;       // query heads to a key head
  int64_t heads;       // of a group that one task takes
  int64_t parts;       // tasks that a group is split into
  int64_t block_rows;  // rows of one task
  int64_t padded;      // head_dim rounded up to whole vectors
  size_t task_bytes;   // scratch of one task
  char* shared;        // thread 0's scratch: the tables, then its task's
  size_t shared_bytes;
  const float* frequencies;  // [head_dim / 2], or null without rotary embedding
  float* rotation;           // [m, head_dim]: cosines, then sines, of each row
  float* rotated_keys;       // [m, kv_heads * head_dim] of spans without a cache, or null
};

int64_t blocks_of(const Plan& plan, const AttentionSpan& span) {
  return divide_up(span.rows, plan.block_rows);
}

// ---- keys and values: rotation and append ----

void prepare_row(const Plan& plan, const AttentionSpan& span, int64_t r) {
  const AttentionArgs& args = *plan.args;
  const int64_t d = args.head_dim;
  const int64_t row = span.first_row + r;
  const float* rotation = nullptr;
  if (plan.frequencies) {
    float* out = plan.rotation + row * d;
    rotation_row(plan.frequencies, d / 2, args.first_position + span.index + r, out);
    rotation = out;
  }
  const bool cached = span.cache.keys != nullptr;
  if (!cached && !rotation) return;  // read in place
  const float *k = row_of(args.k, row), *v = row_of(args.v, row);
  for (int64_t h = 0; h < args.kv_heads; ++h) {
    float* key;
    if (cached) {
      const int64_t at = (h * span.cache.capacity + span.index + r) * d;
      key = static_cast<float*>(span.cache.keys) + at;
      __builtin_memcpy(static_cast<float*>(span.cache.values) + at, v + h * d,
                       static_cast<size_t>(d) * sizeof(float));
    } else {
      key = plan.rotated_keys + (row * args.kv_heads + h) * d;
    }
    if (rotation)
      rotate_rows(rotation, d, k + h * d, 0, 0, 1, 1, key, 0);
    else
      __builtin_memcpy(key, k + h * d, static_cast<size_t>(d) * sizeof(float));
  }
}

// One task per kQueries rows of a span.
void prepare_task(void* context, int64_t index, int) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const AttentionSpan* span = plan.args->spans;
  for (;; ++span) {
    const int64_t blocks = divide_up(span->rows, kQueries);
    if (index < blocks) break;
    index -= blocks;
  }
  const int64_t end = smaller(span->rows, (index + 1) * kQueries);
  for (int64_t r = index * kQueries; r < end; ++r) prepare_row(plan, *span, r);
}

// ---- the products ----

// scores[i * kKeys + j] = q_i . key_j for Q queries and the first `count` of K keys. Q * K, the
// accumulators, is a multiple of kLanes; behind the last key it is read again.
template <int Q, int K>
UNIFLUID_INLINE void score_tile(const float* q, int64_t padded, const float* keys, int64_t stride,
                                int64_t count, int64_t d, float* scores) {
  const float* key[K];
  for (int64_t j = 0; j < K; ++j) key[j] = keys + smaller(j, count - 1) * stride;
  Vec acc[Q * K];
  for (int t = 0; t < Q * K; ++t) acc[t] = zero();
  int64_t c = 0;
  for (; c + kLanes <= d; c += kLanes) {
    Vec x[Q];
    for (int i = 0; i < Q; ++i) x[i] = load(q + i * padded + c);
    for (int j = 0; j < K; ++j) {
      const Vec k = load(key[j] + c);
      for (int i = 0; i < Q; ++i) acc[i * K + j] = fma(x[i], k, acc[i * K + j]);
    }
  }
  if (c < d) {
    const int rest = static_cast<int>(d - c);
    for (int j = 0; j < K; ++j) {
      const Vec k = load_n(key[j] + c, rest);
      for (int i = 0; i < Q; ++i) acc[i * K + j] = fma(load(q + i * padded + c), k, acc[i * K + j]);
    }
  }
  float out[Q * K];
  for (int t = 0; t < Q * K; t += kLanes) store(out + t, sums(acc + t));
  for (int i = 0; i < Q; ++i) {
    if (count >= K)
      __builtin_memcpy(scores + i * kKeys, out + i * K, K * sizeof(float));
    else
      for (int64_t j = 0; j < count; ++j) scores[i * kKeys + j] = out[i * K + j];
  }
}

// Tiles of scores: accumulators enough to hide the latency of a multiplication, few enough to stay
// in registers. One query against many keys has little reuse, but then memory is what it waits for.
constexpr int kTileQueries = kRegisters >= 32 ? 4 : 2;
constexpr int kTileKeys = 4;

template <int Q, int K>
void score_rows(const float* q, int64_t padded, const float* keys, int64_t stride, int64_t count,
                int64_t d, float* scores) {
  for (int64_t j = 0; j < count; j += K)
    score_tile<Q, K>(q, padded, keys + j * stride, stride, count - j, d, scores + j);
}

// Scores of all queries against `count` keys of a block.
void score_block(const float* q, int64_t queries, int64_t padded, const float* keys, int64_t stride,
                 int64_t count, int64_t d, float* scores) {
  int64_t i = 0;
  for (; i + kTileQueries <= queries; i += kTileQueries)
    score_rows<kTileQueries, kTileKeys>(q + i * padded, padded, keys, stride, count, d,
                                        scores + i * kKeys);
  for (; i < queries; ++i)
    score_rows<1, kLanes>(q + i * padded, padded, keys, stride, count, d, scores + i * kKeys);
}

// acc[i, :] += sum over keys j of weights[i * kKeys + j] * value_j, for Q queries and V vectors of
// columns. Keys are taken in order.
template <int Q, int V>
UNIFLUID_INLINE void value_tile(const float* weights, const float* values, int64_t stride,
                                int64_t count, float* acc, int64_t padded) {
  Vec partial[Q][V];
  for (int i = 0; i < Q; ++i)
    for (int c = 0; c < V; ++c) partial[i][c] = load(acc + i * padded + c * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    Vec value[V];
    for (int c = 0; c < V; ++c) value[c] = load(values + j * stride + c * kLanes);
    for (int i = 0; i < Q; ++i) {
      const Vec w = set1(weights[i * kKeys + j]);
      for (int c = 0; c < V; ++c) partial[i][c] = fma(w, value[c], partial[i][c]);
    }
  }
  for (int i = 0; i < Q; ++i)
    for (int c = 0; c < V; ++c) store(acc + i * padded + c * kLanes, partial[i][c]);
}

// The last, partial vector of columns.
template <int Q>
UNIFLUID_INLINE void value_edge(const float* weights, const float* values, int64_t stride,
                                int64_t count, float* acc, int64_t padded, int rest) {
  Vec partial[Q];
  for (int i = 0; i < Q; ++i) partial[i] = load(acc + i * padded);
  for (int64_t j = 0; j < count; ++j) {
    const Vec value = load_n(values + j * stride, rest);
    for (int i = 0; i < Q; ++i) partial[i] = fma(set1(weights[i * kKeys + j]), value, partial[i]);
  }
  for (int i = 0; i < Q; ++i) store(acc + i * padded, partial[i]);
}

template <int Q>
UNIFLUID_INLINE void value_rows(const float* weights, const float* values, int64_t stride,
                                int64_t count, int64_t d, float* acc, int64_t padded) {
  constexpr int kVectors = kRegisters >= 32 ? 4 : 2;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= d; c += kVectors * kLanes)
    value_tile<Q, kVectors>(weights, values + c, stride, count, acc + c, padded);
  for (; c + kLanes <= d; c += kLanes)
    value_tile<Q, 1>(weights, values + c, stride, count, acc + c, padded);
  if (c < d)
    value_edge<Q>(weights, values + c, stride, count, acc + c, padded, static_cast<int>(d - c));
}

void value_block(const float* weights, int64_t queries, const float* values, int64_t stride,
                 int64_t count, int64_t d, float* acc, int64_t padded) {
  int64_t i = 0;
  for (; i + 4 <= queries; i += 4)
    value_rows<4>(weights + i * kKeys, values, stride, count, d, acc + i * padded, padded);
  for (; i < queries; ++i)
    value_rows<1>(weights + i * kKeys, values, stride, count, d, acc + i * padded, padded);
}

// ---- the softmax of one block ----

// Turns a query's scores of a block into weights e^(score - maximum), and brings its maximum, sum
// and accumulator up to date. Keys of the block before `first` or after `last` are not seen. A
// score that is not finite makes the sum NaN, and with it the row: neither a maximum nor the cap
// may hide it.
void softmax_block(float* scores, int64_t first, int64_t last, float soft_cap, float* maximum,
                   float* total, float* acc, int64_t padded) {
  // The vectors in sight.
  const int64_t begin = first / kLanes * kLanes;
  const int64_t end = last < first ? begin : last / kLanes * kLanes + kLanes;
  for (int64_t j = 0; j < begin; j += kLanes) store(scores + j, zero());
  for (int64_t j = end; j < kKeys; j += kLanes) store(scores + j, zero());
  if (begin == end) return;
  for (int64_t j = begin; j < first; ++j) scores[j] = kMasked;
  for (int64_t j = last + 1; j < end; ++j) scores[j] = kMasked;
  Vec most = set1(*maximum);
  Vec check = zero();  // stays 0 as long as every score times 0 is 0
  if (soft_cap > 0) {
    const Vec cap = set1(soft_cap);
    for (int64_t j = begin; j < end; j += kLanes) {
      const Vec s = load(scores + j);
      check = fma(s, zero(), check);
      // The cap would bring a masked score back into sight.
      const Vec capped = select(less(s, set1(kLeast)), s, mul(cap, tanh(div(s, cap))));
      store(scores + j, capped);
      most = max(most, capped);
    }
  } else {
    for (int64_t j = begin; j < end; j += kLanes) {
      const Vec s = load(scores + j);
      check = fma(s, zero(), check);
      most = max(most, s);
    }
  }
  const float updated = max_of(most);
  const Vec top = set1(updated);
  Vec weights = check;
  for (int64_t j = begin; j < end; j += kLanes) {
    const Vec weight = exp(sub(load(scores + j), top));
    store(scores + j, weight);
    weights = add(weights, weight);
  }
  if (updated > *maximum) {
    float factor[kLanes];
    store(factor, exp(set1(*maximum - updated)));
    const Vec shrink = set1(factor[0]);
    for (int64_t c = 0; c < padded; c += kLanes) store(acc + c, mul(load(acc + c), shrink));
    *total *= factor[0];
    *maximum = updated;
  }
  *total += sum(weights);
}

// ---- a task ----

struct Source {
  const float *keys, *values;  // of the sequence's row 0
  int64_t key_stride, value_stride;
};

Source source_of(const Plan& plan, const AttentionSpan& span, int64_t kv_head) {
  const AttentionArgs& args = *plan.args;
  const int64_t d = args.head_dim;
  if (span.cache.keys) {
    const int64_t at = kv_head * span.cache.capacity * d;
    return {static_cast<const float*>(span.cache.keys) + at,
            static_cast<const float*>(span.cache.values) + at, d, d};
  }
  Source source{row_of(args.k, span.first_row) + kv_head * d,
                row_of(args.v, span.first_row) + kv_head * d, args.k.stride, args.v.stride};
  if (plan.rotated_keys) {
    source.key_stride = args.kv_heads * d;
    source.keys = plan.rotated_keys + span.first_row * source.key_stride + kv_head * d;
  }
  return source;
}

// Queries q of the task are rows first_row .. first_row + rows - 1 of the span, `heads` to a row.
void attend(const Plan& plan, const AttentionSpan& span, int64_t kv_head, int64_t first_head,
            int64_t heads, int64_t first_row, int64_t rows, float* scratch) {
  const AttentionArgs& args = *plan.args;
  const int64_t d = args.head_dim, padded = plan.padded, queries = rows * heads;
  float* const q = scratch;
  float* const acc = q + kQueries * padded;
  float* const scores = acc + kQueries * padded;
  float* const maximum = scores + kQueries * kKeys;
  float* const total = maximum + kQueries;

  for (int64_t r = 0, i = 0; r < rows; ++r) {
    const int64_t row = span.first_row + first_row + r;
    for (int64_t h = 0; h < heads; ++h, ++i) {
      const float* from = row_of(args.q, row) + (kv_head * plan.group + first_head + h) * d;
      float* to = q + i * padded;
      for (int64_t c = larger(0, padded - kLanes); c < padded; ++c) to[c] = 0;
      if (plan.frequencies)
        rotate_rows(plan.rotation + row * d, d, from, 0, 0, 1, 1, to, 0);
      else
        __builtin_memcpy(to, from, static_cast<size_t>(d) * sizeof(float));
      const Vec scale = set1(args.scale);
      for (int64_t c = 0; c < padded; c += kLanes) {
        store(to + c, mul(load(to + c), scale));
        store(acc + i * padded + c, zero());
      }
      maximum[i] = kLeast;
      total[i] = 0;
    }
  }

  // All that any of the rows sees.
  const int64_t index = span.index + first_row;
  const Sight head = sight_of(args, span, index), tail = sight_of(args, span, index + rows - 1);
  const int64_t begin = smaller(head.first, tail.first);
  const int64_t end = larger(head.last, tail.last) + 1;
  const Source source = source_of(plan, span, kv_head);

  for (int64_t block = begin / kKeys * kKeys; block < end; block += kKeys) {
    const int64_t from = larger(begin, block), to = smaller(end, block + kKeys);
    score_block(q, queries, padded, source.keys + from * source.key_stride, source.key_stride,
                to - from, d, scores + (from - block));
    for (int64_t r = 0, i = 0; r < rows; ++r) {
      const Sight sight = sight_of(args, span, index + r);
      const int64_t first = smaller(larger(sight.first - block, 0), kKeys);
      const int64_t last = smaller(sight.last - block, kKeys - 1);
      for (int64_t h = 0; h < heads; ++h, ++i)
        softmax_block(scores + i * kKeys, first, last < first ? first - 1 : last, args.soft_cap,
                      maximum + i, total + i, acc + i * padded, padded);
    }
    value_block(scores + (from - block), queries, source.values + from * source.value_stride,
                source.value_stride, to - from, d, acc, padded);
  }

  for (int64_t r = 0, i = 0; r < rows; ++r) {
    float* out = static_cast<float*>(args.out.data) +
                 (span.first_row + first_row + r) * args.out.stride +
                 (kv_head * plan.group + first_head) * d;
    for (int64_t h = 0; h < heads; ++h, ++i, out += d) {
      const Vec inverse = set1(1.0f / total[i]);
      const float* from = acc + i * padded;
      int64_t c = 0;
      for (; c + kLanes <= d; c += kLanes) store(out + c, mul(load(from + c), inverse));
      if (c < d) store_n(out + c, mul(load(from + c), inverse), static_cast<int>(d - c));
    }
  }
}

void attend_task(void* context, int64_t index, int thread) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const AttentionArgs& args = *plan.args;
  const int64_t part = index % plan.parts;
  index /= plan.parts;
  const int64_t kv_head = index % args.kv_heads;
  index /= args.kv_heads;
  const AttentionSpan* span = args.spans;
  for (; index >= blocks_of(plan, *span); ++span) index -= blocks_of(plan, *span);

  // Thread 0's scratch begins with the tables.
  char* scratch = thread == 0 ? plan.shared + plan.shared_bytes
                              : static_cast<char*>(plan.parallel->scratch(thread, plan.task_bytes));
  const int64_t first_head = part * plan.heads, first_row = index * plan.block_rows;
  attend(plan, *span, kv_head, first_head, smaller(plan.heads, plan.group - first_head), first_row,
         smaller(plan.block_rows, span->rows - first_row), reinterpret_cast<float*>(scratch));
}

// Multiplications of all spans, near enough.
int64_t work_of(const AttentionArgs& args) {
  int64_t products = 0;
  for (int64_t i = 0; i < args.span_count; ++i)
    products += args.spans[i].rows * (args.spans[i].index + args.spans[i].rows);
  return 2 * products * args.heads * args.head_dim;
}

size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

bool attention(const AttentionArgs& args, Parallel& parallel) {
  bool cached = false, cacheless = false;
  for (int64_t i = 0; i < args.span_count; ++i)
    (args.spans[i].cache.keys ? cached : cacheless) = true;
  if (args.bf16 && !cached && has_pairs()) return attention_rounded(args, parallel);
  Plan plan{};
  plan.args = &args;
  plan.parallel = &parallel;
  plan.group = args.heads / args.kv_heads;
  plan.padded = divide_up(args.head_dim, kLanes) * kLanes;
  const int threads = parallel.threads();
  const bool alone = threads == 1 || work_of(args) < kSmallWork;

  // A task takes whole groups of heads where there are enough tasks, as in prefill and in decoding
  // many sequences. For a few rows of few key heads, groups are split, and their keys read twice.
  plan.heads = smaller(plan.group, kQueries);
  int64_t tasks = 0;
  for (;; plan.heads = (plan.heads + 1) / 2) {
    plan.parts = divide_up(plan.group, plan.heads);
    plan.block_rows = larger(1, kQueries / plan.heads);
    tasks = 0;
    for (int64_t i = 0; i < args.span_count; ++i) tasks += blocks_of(plan, args.spans[i]);
    tasks *= args.kv_heads * plan.parts;
    if (alone || tasks >= threads || plan.heads == 1) break;
  }

  // Tables in thread 0's scratch: frequencies, rotations, rotated keys.
  const bool rotary = args.rope_theta > 0;
  int64_t preparations = 0;
  for (int64_t i = 0; i < args.span_count; ++i)
    preparations += divide_up(args.spans[i].rows, kQueries);
  const size_t half = static_cast<size_t>(args.head_dim / 2) * sizeof(float);
  const size_t rows = static_cast<size_t>(args.q.rows);
  const size_t frequency_bytes = rotary ? whole_lines(half) : 0;
  const size_t rotation_bytes = rotary ? whole_lines(rows * 2 * half) : 0;
  const size_t key_bytes =
      rotary && cacheless ? whole_lines(rows * 2 * half * static_cast<size_t>(args.kv_heads)) : 0;
  plan.shared_bytes = frequency_bytes + rotation_bytes + key_bytes;
  plan.task_bytes = sizeof(float) * static_cast<size_t>(kQueries * (2 * plan.padded + kKeys + 2));
  for (int t = alone ? 0 : threads - 1; t > 0; --t)
    if (!parallel.scratch(t, plan.task_bytes)) return false;
  plan.shared = static_cast<char*>(parallel.scratch(0, plan.shared_bytes + plan.task_bytes));
  if (!plan.shared) return false;

  if (rotary) {
    float* frequencies = reinterpret_cast<float*>(plan.shared);
    rope_frequencies(args.rope_theta, args.head_dim, frequencies);
    plan.frequencies = frequencies;
    plan.rotation = reinterpret_cast<float*>(plan.shared + frequency_bytes);
    if (cacheless)
      plan.rotated_keys = reinterpret_cast<float*>(plan.shared + frequency_bytes + rotation_bytes);
  }

  if (alone) {
    for (int64_t i = 0; i < preparations; ++i) prepare_task(&plan, i, 0);
    for (int64_t i = 0; i < tasks; ++i) attend_task(&plan, i, 0);
  } else {
    if (rotary || cached) parallel.run(preparations, prepare_task, &plan);
    parallel.run(tasks, attend_task, &plan);
  }
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
