// Gradients of attention over whole sequences, without a score matrix in memory: FlashAttention-2's
// backward pass (arXiv 2307.08691, algorithm 2) in float32.
//
// `statistics` finds each query's log-sum of exponentials and D = sum(dout * out). Then scores are
// computed again in square tiles, twice: `query_gradients` takes a tile of queries and goes over
// the keys that they see, `key_gradients` a tile of keys and goes over the queries that see them.
// No sum is shared by two blocks, so that each has one order: keys, and queries of one head after
// the other, ascending.
//
// Where products may round their operands, tensor cores do all this
// (attention_backward_rounded.cu).
//
// Three pieces of shared memory hold rows of a tile: two that stay, and one for the two tensors of
// the other side in turn, so that heads of up to 512 fit the memory of every processor.
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/attention_backward.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

// Threads lie in a square; each has every kSide-th row and column of a tile of scores.
constexpr int kSide = 16, kThreads = kSide * kSide;

// `kColumns`: columns of a head, rounded up.
template <int kRows_, int kColumns_>
struct Shape {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kEach = kRows / kSide;            // rows of a thread
  static constexpr int kVectors = kColumns / 4 / kSide;  // of 4 columns of a thread
  // Rows a vector apart, so that 8 of them lie in different banks.
  static constexpr int kStride = kColumns + 4;
  static constexpr int kScoreStride = kRows + 1;
};

template <class S>
struct Tile {
  Shared<float> data;

  // Rows first .. first + kRows - 1 of a head; zeros past the end and in columns past the head's.
  UNIFLUID_DEVICE void load(const Rows& from, int64_t first_row, int first, int rows, int column,
                            int columns) const {
    for (int i = static_cast<int>(threadIdx.x); i < S::kRows * S::kColumns; i += kThreads) {
      const int r = i / S::kColumns, c = i % S::kColumns;
      const bool inside = first + r < rows && c < columns;
      data.store(static_cast<uint32_t>(r * S::kStride + c),
                 inside ? from.at(first_row + first + r, column + c) : 0.0f);
    }
  }
  UNIFLUID_DEVICE Vector<float> vector(int row, int column) const {
    return data.load_vector(static_cast<uint32_t>(row * S::kStride + column));
  }
};

// Of a tile, those of this thread: rows y + kSide * i, columns x + kSide * j.
template <class S>
struct Scores {
  float value[S::kEach][S::kEach];
};

// a b^T
template <class S>
UNIFLUID_DEVICE Scores<S> products(const Tile<S>& a, const Tile<S>& b, int y, int x) {
  Scores<S> s = {};
  for (int c = 0; c < S::kColumns; c += 4) {
    Vector<float> of_a[S::kEach], of_b[S::kEach];
    for (int i = 0; i < S::kEach; ++i) of_a[i] = a.vector(y + kSide * i, c);
    for (int j = 0; j < S::kEach; ++j) of_b[j] = b.vector(x + kSide * j, c);
    for (int i = 0; i < S::kEach; ++i)
      for (int j = 0; j < S::kEach; ++j)
        for (int e = 0; e < 4; ++e)
          s.value[i][j] = fmaf(of_a[i].value[e], of_b[j].value[e], s.value[i][j]);
  }
  return s;
}

template <class S>
struct Sums {
  Vector<float> value[S::kEach][S::kVectors];
};

// sums += weights rows, where weights [kRows, kRows] are rows of what is summed: row r of the
// result is the sum over j of weights[r, j] rows[j], or of weights[j, r] if transposed.
template <class S, bool kTurned>
UNIFLUID_DEVICE void add_products(Sums<S>& sums, const Shared<float>& weights, const Tile<S>& rows,
                                  int y, int x) {
  for (int j = 0; j < S::kRows; ++j) {
    float weight[S::kEach];
    for (int i = 0; i < S::kEach; ++i) {
      const int r = y + kSide * i;
      weight[i] = weights.load(
          static_cast<uint32_t>(kTurned ? j * S::kScoreStride + r : r * S::kScoreStride + j));
    }
    for (int n = 0; n < S::kVectors; ++n) {
      const Vector<float> v = rows.vector(j, 4 * (x + kSide * n));
      for (int i = 0; i < S::kEach; ++i)
        for (int e = 0; e < 4; ++e)
          sums.value[i][n].value[e] = fmaf(weight[i], v.value[e], sums.value[i][n].value[e]);
    }
  }
}

template <class S>
UNIFLUID_DEVICE void store(const Sums<S>& sums, const Rows& to, int64_t first_row, int first,
                           int rows, int column, int columns, int y, int x) {
  for (int i = 0; i < S::kEach; ++i) {
    const int r = first + y + kSide * i;
    if (r >= rows) continue;
    for (int n = 0; n < S::kVectors; ++n)
      for (int e = 0; e < 4; ++e) {
        const int c = 4 * (x + kSide * n) + e;
        if (c < columns) to.at(first_row + r, column + c) = sums.value[i][n].value[e];
      }
  }
}

struct Score {
  float value, slope;  // and its derivative with respect to the product of q and k
};
UNIFLUID_DEVICE Score score_of(const AttentionGradients& p, float product) {
  const float s = product * p.scale;
  if (!(p.soft_cap > 0)) return {s, p.scale};
  const float t = tanhf(s / p.soft_cap);
  // As soft_capped has it.
  return {fmaf(s, 0.0f, p.soft_cap * t), p.scale * fmaf(-t, t, 1.0f)};
}

// ---- kernels: blocks of (tiles, heads), the last of (tiles, key heads) ----

// What a block works on, and where its threads are in it.
struct Place {
  GradientSpan span;
  int first, last;  // rows of the tile
  int head;
  int y, x;
};
template <class S>
UNIFLUID_DEVICE Place place_of(const AttentionGradients& p) {
  const AttentionTile tile = p.tiles[blockIdx.x];
  const GradientSpan span = p.spans[tile.span];
  const int thread = static_cast<int>(threadIdx.x);
  return {span,
          tile.first,
          min(tile.first + S::kRows, span.rows) - 1,
          static_cast<int>(blockIdx.y),
          thread / kSide,
          thread % kSide};
}

// The keys that a tile of queries sees, from the beginning of a tile of theirs.
template <class S>
UNIFLUID_DEVICE Sight keys_of(const AttentionGradients& p, const Place& at) {
  return {sight_of(p, at.span, at.first).first / S::kRows * S::kRows,
          sight_of(p, at.span, at.last).last};
}

template <class S>
__global__ void __launch_bounds__(kThreads) statistics(AttentionGradients p) {
  SharedArena arena;
  const Tile<S> queries{arena.take<float>(S::kRows * S::kStride)};
  const Tile<S> keys{arena.take<float>(S::kRows * S::kStride)};
  const Place at = place_of<S>(p);
  const auto& [span, begin, last, head, y, x] = at;
  const int d = p.head_dim, column = head * d, key_column = head / p.group * d;
  queries.load(p.q, span.first_row, begin, span.rows, column, d);

  const Sight keys_seen = keys_of<S>(p, at);
  float most[S::kEach], total[S::kEach] = {};
  for (int i = 0; i < S::kEach; ++i) most[i] = -INFINITY;
  for (int first = keys_seen.first; first <= keys_seen.last; first += S::kRows) {
    keys.load(p.k, span.first_row, first, span.rows, key_column, d);
    __syncthreads();
    const Scores<S> s = products(queries, keys, y, x);
    for (int i = 0; i < S::kEach; ++i) {
      const Sight sight = sight_of(p, span, begin + y + kSide * i);
      float score[S::kEach], top = most[i];
      for (int j = 0; j < S::kEach; ++j) {
        const int key = first + x + kSide * j;
        const bool seen = key >= sight.first && key <= sight.last;
        score[j] = seen ? score_of(p, s.value[i][j]).value : -INFINITY;
        top = fmaxf(top, score[j]);
      }
      top = warp_max<kSide>(top);
      float part = 0;
      for (int j = 0; j < S::kEach; ++j)
        if (score[j] != -INFINITY) part += expf(score[j] - top);  // of NaN too
      part = warp_sum<kSide>(part);
      // Nothing seen so far: nothing to rescale.
      total[i] = (most[i] > -INFINITY ? total[i] * expf(most[i] - top) : total[i]) + part;
      most[i] = top;
    }
    __syncthreads();
  }
  for (int i = 0; i < S::kEach; ++i) {
    const int r = begin + y + kSide * i;
    float dot = 0;
    if (r < span.rows)
      for (int c = x; c < d; c += kSide)
        dot = fmaf(p.dout.at(span.first_row + r, column + c),
                   p.out.at(span.first_row + r, column + c), dot);
    dot = warp_sum<kSide>(dot);
    if (r >= span.rows || x != 0) continue;
    const int64_t to = (span.first_row + r) * p.heads + head;
    p.sums[to] = most[i] + logf(total[i]);
    p.dots[to] = dot;
  }
}

// The weights of a begin, and the gradients of its products of q and k, from these products and
// those of dout and v; zeros where a row does not see a key.
template <class S>
UNIFLUID_DEVICE void score_gradients(const AttentionGradients& p, const GradientSpan& span,
                                     int head, int first_query, int first_key,
                                     const Scores<S>& scores, const Scores<S>& douts, int y, int x,
                                     const Shared<float>& gradients, const Shared<float>* weights) {
  for (int i = 0; i < S::kEach; ++i) {
    const int query = first_query + y + kSide * i;
    const bool there = query < span.rows;
    const Sight sight = sight_of(p, span, query);
    const int64_t at = (span.first_row + query) * p.heads + head;
    const float sum = there ? p.sums[at] : 0.0f, dot = there ? p.dots[at] : 0.0f;
    for (int j = 0; j < S::kEach; ++j) {
      const int key = first_key + x + kSide * j;
      float weight = 0, gradient = 0;
      if (there && key >= sight.first && key <= sight.last) {
        const Score s = score_of(p, scores.value[i][j]);
        weight = expf(s.value - sum);
        gradient = weight * (douts.value[i][j] - dot) * s.slope;
      }
      const uint32_t to = static_cast<uint32_t>((y + kSide * i) * S::kScoreStride + x + kSide * j);
      gradients.store(to, gradient);
      if (weights) weights->store(to, weight);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) query_gradients(AttentionGradients p) {
  SharedArena arena;
  const Tile<S> queries{arena.take<float>(S::kRows * S::kStride)};
  const Tile<S> douts{arena.take<float>(S::kRows * S::kStride)};
  const Tile<S> other{arena.take<float>(S::kRows * S::kStride)};
  const auto gradients = arena.take<float>(S::kRows * S::kScoreStride);
  const Place at = place_of<S>(p);
  const auto& [span, begin, last, head, y, x] = at;
  const int d = p.head_dim, column = head * d, key_column = head / p.group * d;
  queries.load(p.q, span.first_row, begin, span.rows, column, d);
  douts.load(p.dout, span.first_row, begin, span.rows, column, d);

  const Sight keys_seen = keys_of<S>(p, at);
  Sums<S> dq = {};
  for (int first = keys_seen.first; first <= keys_seen.last; first += S::kRows) {
    other.load(p.v, span.first_row, first, span.rows, key_column, d);
    __syncthreads();
    const Scores<S> of_values = products(douts, other, y, x);
    __syncthreads();
    other.load(p.k, span.first_row, first, span.rows, key_column, d);
    __syncthreads();
    const Scores<S> of_keys = products(queries, other, y, x);
    score_gradients(p, span, head, begin, first, of_keys, of_values, y, x, gradients,
                    static_cast<const Shared<float>*>(nullptr));
    __syncthreads();
    add_products<S, false>(dq, gradients, other, y, x);
    __syncthreads();
  }
  store(dq, p.dq, span.first_row, begin, span.rows, column, d, y, x);
}

template <class S>
__global__ void __launch_bounds__(kThreads) key_gradients(AttentionGradients p) {
  SharedArena arena;
  const Tile<S> keys{arena.take<float>(S::kRows * S::kStride)};
  const Tile<S> values{arena.take<float>(S::kRows * S::kStride)};
  const Tile<S> other{arena.take<float>(S::kRows * S::kStride)};
  const auto gradients = arena.take<float>(S::kRows * S::kScoreStride);
  const auto weights = arena.take<float>(S::kRows * S::kScoreStride);
  const auto [span, begin, last_key, key_head, y, x] = place_of<S>(p);
  const int d = p.head_dim, key_column = key_head * d;
  keys.load(p.k, span.first_row, begin, span.rows, key_column, d);
  values.load(p.v, span.first_row, begin, span.rows, key_column, d);

  const Sight rows = seen_by(p, span, begin, last_key);
  Sums<S> dk = {}, dv = {};
  for (int head = key_head * p.group; head < (key_head + 1) * p.group; ++head) {
    const int column = head * d;
    for (int first = rows.first / S::kRows * S::kRows; first <= rows.last; first += S::kRows) {
      other.load(p.q, span.first_row, first, span.rows, column, d);
      __syncthreads();
      const Scores<S> of_keys = products(other, keys, y, x);
      __syncthreads();
      other.load(p.dout, span.first_row, first, span.rows, column, d);
      __syncthreads();
      const Scores<S> of_values = products(other, values, y, x);
      score_gradients(p, span, head, first, begin, of_keys, of_values, y, x, gradients, &weights);
      __syncthreads();
      add_products<S, true>(dv, weights, other, y, x);
      __syncthreads();
      other.load(p.q, span.first_row, first, span.rows, column, d);
      __syncthreads();
      add_products<S, true>(dk, gradients, other, y, x);
      __syncthreads();
    }
  }
  store(dk, p.dk, span.first_row, begin, span.rows, key_column, d, y, x);
  store(dv, p.dv, span.first_row, begin, span.rows, key_column, d, y, x);
}

// ---- rotary embedding ----

struct RotationParams {
  Rows from;
  void* to;  // float or bf16; may be `from`
  int64_t to_stride;
  const int32_t* positions;  // of each row
  const float* frequencies;
  int32_t half;
  float sign;        // -1: back
  ElementGrid grid;  // of pairs
};
template <class T>
__global__ void __launch_bounds__(kElementThreads) rotate_pair(RotationParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const int c = static_cast<int>(at.column % p.half);
  const int64_t low = at.column / p.half * 2 * p.half + c, high = low + p.half;
  float sine, cosine;
  sincosf(static_cast<float>(p.positions[at.row]) * p.frequencies[c], &sine, &cosine);
  sine *= p.sign;
  const float a = p.from.at(at.row, low), b = p.from.at(at.row, high);
  T* to = static_cast<T*>(p.to) + at.row * p.to_stride;
  to[low] = from_float<T>(a * cosine - b * sine);
  to[high] = from_float<T>(fmaf(a, sine, b * cosine));
}

// ---- host ----

template <class S>
void launch_all(Queue& queue, const AttentionGradients& p, size_t tiles) {
  const unsigned count = static_cast<unsigned>(tiles);
  const unsigned heads = static_cast<unsigned>(p.heads);
  const auto bytes = [](int rows, int scores) {
    SharedBytes all;
    for (int i = 0; i < rows; ++i) all.template take<float>(S::kRows * S::kStride);
    for (int i = 0; i < scores; ++i) all.template take<float>(S::kRows * S::kScoreStride);
    return all.used;
  };
  queue.launch(statistics<S>, dim3(count, heads), dim3(kThreads), bytes(2, 0), p);
  queue.launch(query_gradients<S>, dim3(count, heads), dim3(kThreads), bytes(3, 1), p);
  queue.launch(key_gradients<S>, dim3(count, heads / static_cast<unsigned>(p.group)),
               dim3(kThreads), bytes(3, 2), p);
}

// The tile for a head: as large as fits 99 KiB, the least shared memory of a processor.
constexpr int kLargestHead = 512;
using Small = Shape<32, 64>;
using Middle = Shape<32, 128>;
using Large = Shape<16, 256>;
using Largest = Shape<16, kLargestHead>;

void float_gradients(Queue& queue, const AttentionGradients& p, size_t tiles) {
  if (p.head_dim <= Small::kColumns)
    launch_all<Small>(queue, p, tiles);
  else if (p.head_dim <= Middle::kColumns)
    launch_all<Middle>(queue, p, tiles);
  else if (p.head_dim <= Large::kColumns)
    launch_all<Large>(queue, p, tiles);
  else
    launch_all<Largest>(queue, p, tiles);
}

// What the kernels go over, and the position of each row.
struct Lists {
  std::vector<GradientSpan> spans;
  std::vector<AttentionTile> tiles;
  std::vector<int32_t> positions;
};

Lists lists_of(const AttentionArgs& f, int tile_rows) {
  Lists lists;
  lists.positions.resize(static_cast<size_t>(f.q.rows));
  for (int64_t i = 0; i < f.span_count; ++i) {
    const AttentionSpan& s = f.spans[i];
    const int32_t count = static_cast<int32_t>(s.rows);
    for (int32_t first = 0; first < count; first += tile_rows)
      lists.tiles.push_back({static_cast<int32_t>(i), first});
    lists.spans.push_back({s.first_row, count, static_cast<int32_t>(s.prefix_end)});
    for (int64_t r = 0; r < s.rows; ++r)
      lists.positions[static_cast<size_t>(s.first_row + r)] =
          static_cast<int32_t>(f.first_position + r);
  }
  return lists;
}

struct Scratch {
  float *sums, *dots;
  // As the kernels want them: q and k where they are rotated or rounded, v and dout where they are
  // rounded; else empty.
  Tensor q, k, v, dout;
};

Scratch take_scratch(Queue& queue, const AttentionArgs& f, bool rotary, bool rounded) {
  const bool changed = rotary || rounded;
  const DType type = rounded ? DType::bf16 : DType::f32;
  const int64_t rows = f.q.rows;
  const Tensor like_q(nullptr, type, rows, f.heads * f.head_dim);
  const Tensor like_k(nullptr, type, rows, f.kv_heads * f.head_dim);
  const size_t each = Queue::piece_bytes(like_q.bytes()) + Queue::piece_bytes(like_k.bytes());
  const size_t row_heads = static_cast<size_t>(rows * f.heads);
  queue.reserve_scratch((changed ? each : 0) + (rounded ? each : 0) +
                        2 * Queue::piece_bytes(row_heads * sizeof(float)));
  const auto take = [&](bool wanted, Tensor like) {
    if (wanted) like.data = queue.scratch<char>(like.bytes());
    return like;
  };
  Scratch s{};
  s.sums = queue.scratch<float>(row_heads);
  s.dots = queue.scratch<float>(row_heads);
  s.q = take(changed, like_q);
  s.k = take(changed, like_k);
  s.v = take(rounded, like_k);
  s.dout = take(rounded, like_q);
  return s;
}

// All but what is staged, from the operands as they came.
AttentionGradients params_of(const AttentionBackwardArgs& args, const Scratch& scratch) {
  const AttentionArgs& f = args.forward;
  AttentionGradients p{};
  p.q = f.q;
  p.k = f.k;
  p.v = f.v;
  p.out = f.out;
  p.dout = args.dout;
  p.dq = args.dq;
  p.dk = args.dk;
  p.dv = args.dv;
  p.heads = static_cast<int32_t>(f.heads);
  p.group = static_cast<int32_t>(f.heads / f.kv_heads);
  p.head_dim = static_cast<int32_t>(f.head_dim);
  p.window = static_cast<int32_t>(f.window);
  p.scale = f.scale;
  p.soft_cap = f.soft_cap;
  p.sums = scratch.sums;
  p.dots = scratch.dots;
  return p;
}

// All but where from and to.
RotationParams stage_rotation(Queue& queue, const AttentionArgs& f,
                              const std::vector<int32_t>& positions) {
  RotationParams p{};
  p.positions = queue.stage(positions.data(), positions.size());
  const std::vector<float> frequencies = rope_frequencies(f.rope_theta, f.head_dim);
  p.frequencies = queue.stage(frequencies.data(), frequencies.size());
  p.half = static_cast<int32_t>(f.head_dim / 2);
  return p;
}

void rotate(Queue& queue, RotationParams p, const Tensor& from, const Tensor& to, float sign) {
  p.from = from;
  p.to = to.data;
  p.to_stride = to.stride;
  p.sign = sign;
  p.grid = ElementGrid(from.rows, from.cols / 2);
  launch_elements(queue, to.type == DType::bf16 ? rotate_pair<bf16> : rotate_pair<float>, p.grid,
                  p);
}

}  // namespace

void attention_backward(Queue& queue, const AttentionBackwardArgs& args) {
  const AttentionArgs& f = args.forward;
  if (f.q.rows == 0) return;
  if (f.head_dim > kLargestHead)
    throw Error(error_code::kInvalidArgument,
                "expected heads of at most " + std::to_string(kLargestHead) +
                    " to train on a GPU but the model has heads of " + std::to_string(f.head_dim));
  const bool rotary = f.rope_theta > 0, rounded = f.bf16 && takes_rounded(f.head_dim);
  const int tile_rows = rounded                          ? kRoundedTileRows
                        : f.head_dim <= Middle::kColumns ? Small::kRows
                                                         : Large::kRows;
  const Lists lists = lists_of(f, tile_rows);
  if (lists.tiles.empty()) return;

  const Scratch scratch = take_scratch(queue, f, rotary, rounded);
  AttentionGradients p = params_of(args, scratch);
  p.spans = queue.stage(lists.spans.data(), lists.spans.size());
  p.tiles = queue.stage(lists.tiles.data(), lists.tiles.size());
  RotationParams rotation{};
  if (rotary) {
    rotation = stage_rotation(queue, f, lists.positions);
    rotate(queue, rotation, f.q, scratch.q, 1);
    rotate(queue, rotation, f.k, scratch.k, 1);
  } else if (rounded) {
    copy_rows(queue, f.q, scratch.q);
    copy_rows(queue, f.k, scratch.k);
  }
  if (rounded) {
    copy_rows(queue, f.v, scratch.v);
    copy_rows(queue, args.dout, scratch.dout);
    p.rounded_q = static_cast<const bf16*>(scratch.q.data);
    p.rounded_k = static_cast<const bf16*>(scratch.k.data);
    p.rounded_v = static_cast<const bf16*>(scratch.v.data);
    p.rounded_dout = static_cast<const bf16*>(scratch.dout.data);
    rounded_gradients(queue, p, lists.tiles.size());
  } else {
    if (rotary) {
      p.q = scratch.q;
      p.k = scratch.k;
    }
    float_gradients(queue, p, lists.tiles.size());
  }
  if (rotary) {
    rotate(queue, rotation, args.dq, args.dq, -1);
    rotate(queue, rotation, args.dk, args.dk, -1);
  }
}

}  // namespace unifluid::cuda
