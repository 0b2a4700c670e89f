// What attention's gradients and its forward pass with rounded operands share: the rotation of a
// head's rows, and the softmax of whole rows of scores.
#pragma once

#include "cpu/kernels/rows.h"
#include "cpu/kernels/trigonometry.h"

namespace unifluid::cpu::UNIFLUID_ISA {

// Rows of queries whose scores exist at a time: whole tiles of the products, and enough of them to
// be worth packing their right operands for.
inline constexpr int64_t kScoreRows = 96;

// `attention` of spans without a cache with rounded operands (attention_rounded.cpp); only where
// `has_pairs`. False where memory is short.
bool attention_rounded(const AttentionArgs&, Parallel&);

UNIFLUID_INLINE int64_t to_line(int64_t floats) { return (floats + 15) / 16 * 16; }

// A row's rotation: `half` cosines, then as many sines. The angles are as transformers has them:
// float32 frequencies times float32 positions.
static inline void rotation_row(const float* frequencies, int64_t half, int64_t position,
                                float* row) {
  const Vec at = set1(static_cast<float>(position));
  each_vector(half, [&](int64_t c, int n) {
    const SinCos turn = sin_cos(mul(at, load_n(frequencies + c, n)));
    store_n(row + c, turn.cos, n);
    store_n(row + half + c, turn.sin, n);
  });
}

// table[row] [head_dim] is that of each row.
static inline void rotation_table(const AttentionArgs& f, int64_t rows, float* frequencies,
                                  float* table) {
  const int64_t d = f.head_dim;
  rope_frequencies(f.rope_theta, d, frequencies);
  for (int64_t r = 0; r < rows; ++r)
    rotation_row(frequencies, d / 2, f.first_position + r, table + r * d);
}

// Rows [first, first + rows) of one head of a sequence, turned forward or (sign -1) back.
static inline void rotate_rows(const float* table, int64_t d, const float* x, int64_t stride,
                               int64_t first, int64_t rows, float sign, float* out,
                               int64_t out_stride) {
  const int64_t half = d / 2;
  for (int64_t r = 0; r < rows; ++r) {
    const float *from = x + r * stride, *turn = table + (first + r) * d;
    float* to = out + r * out_stride;
    each_vector(half, [&](int64_t c, int n) {
      const Vec cosine = load_n(turn + c, n), sine = mul(set1(sign), load_n(turn + half + c, n));
      const Vec a = load_n(from + c, n), b = load_n(from + half + c, n);
      store_n(to + c, fnma(b, sine, mul(a, cosine)), n);
      store_n(to + half + c, fma(a, sine, mul(b, cosine)), n);
    });
  }
}

// Calls f(offset) for the whole vectors that hold any of first .. last.
template <class F>
UNIFLUID_INLINE void vectors_between(int64_t first, int64_t last, F f) {
  for (int64_t c = first / kLanes * kLanes; c <= last; c += kLanes) f(c);
}

// Keys that row i of a span sees: first to last.
struct Sight {
  int64_t first, last;
};
UNIFLUID_INLINE Sight sight_of(const AttentionArgs& f, const AttentionSpan& span, int64_t i) {
  if (i < span.prefix_end) return {0, span.prefix_end - 1};
  return {f.window > 0 && i >= f.window ? i - f.window + 1 : 0, i};
}

// The columns around first .. last's vectors.
UNIFLUID_INLINE void clear_around(int64_t first, int64_t last, int64_t columns, float* row) {
  for (int64_t c = 0; c < first / kLanes * kLanes; c += kLanes) store(row + c, zero());
  for (int64_t c = last / kLanes * kLanes + kLanes; c < columns; c += kLanes)
    store(row + c, zero());
}

// Products of a row's query and the keys, in place, to the weights of the values: the softmax of
// the scaled and capped products over the keys that it sees, and zeros. `columns`, whole vectors,
// may be more than there are keys. With a cap, `tangents` gets the hyperbolic tangents.
static inline void softmax_row(const AttentionArgs& f, const Sight& sight, int64_t columns,
                               float* scores, float* tangents) {
  constexpr float kMasked = -3e38f;
  const int64_t first = sight.first, last = sight.last;
  const Vec scale = set1(f.soft_cap > 0 ? f.scale / f.soft_cap : f.scale), cap = set1(f.soft_cap);
  vectors_between(first, last, [&](int64_t c) {
    Vec s = mul(scale, load(scores + c));
    if (f.soft_cap > 0) {
      const Vec t = tanh(s);
      store(tangents + c, t);
      s = fma(s, zero(), mul(cap, t));  // as soft_capped has it
    }
    store(scores + c, s);
  });
  for (int64_t j = first / kLanes * kLanes; j < first; ++j) scores[j] = kMasked;
  for (int64_t j = last + 1; j % kLanes != 0; ++j) scores[j] = kMasked;
  Vec most = set1(kMasked);
  vectors_between(first, last, [&](int64_t c) { most = max(most, load(scores + c)); });
  const Vec top = set1(max_of(most));
  Vec total = zero();
  vectors_between(first, last, [&](int64_t c) {
    const Vec weight = exp(sub(load(scores + c), top));
    store(scores + c, weight);
    total = add(total, weight);
  });
  const Vec inverse = set1(1.0f / sum(total));
  vectors_between(first, last,
                  [&](int64_t c) { store(scores + c, mul(load(scores + c), inverse)); });
  clear_around(first, last, columns, scores);
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
