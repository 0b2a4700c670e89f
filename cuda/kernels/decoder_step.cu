// decoder_step: all layers of a decoder on few rows in one persistent launch.
//
// A step of decoding reads every weight once, and its time would be that of memory, were it not for
// the places where one operation waits for another: eight a layer, in each of which memory stands
// still for some microseconds. Here weights are one stream through shared memory that such a wait
// does not stop (decoder_stream.h): a block to each multiprocessor, four warps of it that copy and
// nothing else, eight that do everything else in the phases of a layer, with a barrier of all
// blocks after each.
//
//   q, k and v | scores | values | output | norms, gates | down | norms of the next layer
//
// A norm needs all columns of a row, of which each block has computed a few; of few rows each block
// computes it for itself, and has the stream of them (x) in its own shared memory. Inputs of a
// product are in shared memory as a whole. Rows of attention are those of attention_split.h, whose
// memory lies over that of the inputs.
//
// The bits are those of the operations one by one: each column is one accumulator in the same
// order, norms add up in the order of rms_norm's threads, and what they store in bfloat16 is
// rounded to it here. What another block has written is read past the first-level cache.
#include "cuda/kernels/decoder_step.h"

#include <algorithm>

#include "cuda/device/grid.h"
#include "cuda/device/wgmma.h"
#include "cuda/kernels/epilogue.h"

namespace unifluid::cuda::step {
namespace {

#ifdef UNIFLUID_WARPGROUPS

// An array that the host staged, in shared memory.
template <class T>
class Table {
 public:
  UNIFLUID_DEVICE Table(SharedArena& arena, int count)
      : words_(arena.take<uint64_t>(static_cast<uint32_t>(count) * kWords<T>)) {
    static_assert(sizeof(T) % sizeof(uint64_t) == 0);
  }
  // By all threads; a barrier must follow.
  UNIFLUID_DEVICE void read(const T* from, int count) const {
    const auto words = reinterpret_cast<const unsigned long long*>(from);
    for (uint32_t i = threadIdx.x; i < static_cast<uint32_t>(count) * kWords<T>; i += kThreads)
      words_.store(i, load_fresh(words + i));
  }
  UNIFLUID_DEVICE T operator[](int i) const {
    uint64_t words[kWords<T>];
#pragma unroll
    for (uint32_t w = 0; w < kWords<T>; ++w)
      words[w] = words_.load(static_cast<uint32_t>(i) * kWords<T> + w);
    T value;
    memcpy(&value, words, sizeof value);
    return value;
  }

 private:
  const Shared<uint64_t> words_;
};

UNIFLUID_DEVICE Piece piece_at(const Shared<bf16>& from, uint32_t at) {
  const Vector<bf16> v = from.load_vector(at);
  Piece piece;
  for (int i = 0; i < kPiece; ++i) piece.value[i] = v.value[i];
  return piece;
}
UNIFLUID_DEVICE void put_piece(const Shared<bf16>& to, uint32_t at, const Piece& piece) {
  Vector<bf16> v;
  for (int i = 0; i < kPiece; ++i) v.value[i] = piece.value[i];
  to.store_vector(at, v);
}

class Step {
 public:
  UNIFLUID_DEVICE Step(const StepParams& params, SharedArena arena)
      : p(params),
        ring(arena, static_cast<uint32_t>(params.slots)),
        stream(arena.take<bf16>(static_cast<uint32_t>(params.rows * params.width))),
        sums(arena.take<float>(2 * kMostRows * kNormWarps)),
        shares(arena.take<Share>(kProducts)),
        layers(arena, params.layer_count),
        spans(arena, params.span_count),
        tiles(arena, params.tile_count),
        of_attention(arena),
        x(arena.take<bf16>(input_elements(params))) {}

  UNIFLUID_DEVICE void run() {
    layers.read(p.layers, p.layer_count);
    spans.read(p.spans, p.span_count);
    tiles.read(p.tiles, p.tile_count);
    if (threadIdx.x == 0) {
      ring.begin();
      shares.store(kProjections, share_of(p.q_columns + 2 * p.kv_columns, p.width, 1));
      shares.store(kOutput, share_of(p.width, p.q_columns, 1));
      shares.store(kGates, share_of(p.mlp, p.width, 2));
      shares.store(kDown, share_of(p.width, p.mlp, 1));
    }
    __syncthreads();
    // Those that work have more to keep.
    if (threadIdx.x >= Workers::kCount) {
      give_registers<104>();
      copy();
    } else {
      take_registers<200>();
      work();
    }
  }

 private:
  // ---- warps that copy ----

  UNIFLUID_DEVICE void copy() const {
    const CachePolicy policy = keep_shortly();
    const int products = kProducts * p.layer_count;
    Place at{0, 1};
#pragma unroll 1
    for (int n = 0; n < products; ++n) {
      const StepLayer layer = layers[n / kProducts];
      const int product = n % kProducts;
      copy_product(
          ring, at, shares.load(product), matrices_of(product), policy,
          [&](int column, int matrix) { return weights_of(layer, product, column, matrix); });
    }
    cp_async_commit();
    cp_async_wait<0>();
  }
  UNIFLUID_DEVICE static int matrices_of(int product) { return product == kGates ? 2 : 1; }
  // The weights of a column.
  UNIFLUID_DEVICE const bf16* weights_of(const StepLayer& layer, int product, int column,
                                         int matrix) const {
    const bf16* rows = layer.o;
    int k = p.width;
    if (product == kProjections) {
      const int of_kv = column - p.q_columns;
      rows = of_kv < 0 ? layer.q : of_kv < p.kv_columns ? layer.k : layer.v;
      if (of_kv >= 0) column = of_kv < p.kv_columns ? of_kv : of_kv - p.kv_columns;
    } else if (product == kOutput) {
      k = p.q_columns;
    } else if (product == kGates) {
      rows = matrix ? layer.up : layer.gate;
    } else {
      rows = layer.down;
      k = p.mlp;
    }
    return rows + static_cast<int64_t>(column) * k;
  }

  // ---- warps that work ----

  // Two halves to a layer, attention and the gated product, each of which adds a branch to the
  // stream. What either does is here once: code that a turn of this loop runs through has to stay
  // in the cache for instructions, as it would come late behind all those weights.
  UNIFLUID_DEVICE void work() {
    Workers::meet();
    load_stream();
    NormWeights norms = norm_weights(nullptr, layers[0].input_norm);
#pragma unroll 1
    for (int half = 0;; ++half) {
      const int layer = half / 2;
      const bool attention = half % 2 == 0;
      normalize(norms, half > 0);
      if (layer == p.layer_count) break;
      if (attention) {
        attend(layer);
        take_input(p.mixed, p.mixed_stride, p.q_columns);
      } else {
        multiply_gates();
        take_input(p.hidden, p.hidden_stride, p.mlp);
      }
      multiply_branch(attention ? kOutput : kDown);
      const StepLayer l = layers[layer];
      norms = attention ? norm_weights(l.post_attention_norm, l.pre_mlp_norm)
                        : norm_weights(l.post_mlp_norm, next_norm(layer));
      meet_all();
    }
    for (int row = static_cast<int>(blockIdx.x); row < p.rows; row += static_cast<int>(gridDim.x))
      for (int c = thread() * kPiece; c < p.width; c += Workers::kCount * kPiece)
        store_vector(p.out + row * p.out_stride + c, x.load_vector(input_at(row, c)));
  }

  UNIFLUID_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }
  UNIFLUID_DEVICE void meet_all() { team_barrier_of<Workers>(p.arrivals, gridDim.x, round); }

  // ---- products ----

  // The inputs of a product over k, when all have written them.
  UNIFLUID_DEVICE void take_input(const bf16* from, int64_t from_stride, int k) {
    meet_all();
    for (int row = 0; row < p.rows; ++row)
      for (int c = thread() * kPiece; c < padded(k); c += Workers::kCount * kPiece)
        cp_async16(x, input_at(row, c), from + row * from_stride + c, c < k);
    cp_async_commit();
    cp_async_wait<0>();
    Workers::meet();
  }

  // What a layer reads from memory beside its matrices, asked for in the second-level cache while
  // its first product is computed: behind all the weights on their way it would come late. By one
  // thread; the blocks share it.
  UNIFLUID_DEVICE void prefetch(int layer) const {
    if (threadIdx.x != (kWarps - 1) * kWarp) return;
    const AttentionParams a = attention_of(layer);
    each_block_of_keys(a, layer, false, [&](const AttendedSpan& span, const Keys& of) {
      const int cached = min(kKeyBlock, span.index - of.block);
      if (cached <= 0) return;
      const auto bytes = static_cast<uint32_t>(cached * a.head_dim) * sizeof(bf16);
      const int64_t at = of.head * span.key_head_stride + of.block * span.key_stride;
      prefetch_l2(static_cast<const bf16*>(span.keys) + at, bytes);
      prefetch_l2(static_cast<const bf16*>(span.values) + at, bytes);
    });
    const StepLayer l = layers[layer];
    const float* const norms[] = {l.post_attention_norm, l.pre_mlp_norm, l.post_mlp_norm,
                                  next_norm(layer)};
    constexpr int kNorms = 4;
#pragma unroll
    for (int i = 0; i < kNorms; ++i)
      if (i % static_cast<int>(gridDim.x) == static_cast<int>(blockIdx.x))
        prefetch_l2(norms[i], static_cast<uint32_t>(p.width) * sizeof(float));
  }

  template <int kMatrices, class Finish>
  UNIFLUID_DEVICE void multiply(Product product, Finish finish) {
    multiply_product<kMatrices>(ring, place, shares.load(product), x,
                                static_cast<uint32_t>(p.input_stride), p.rows, finish);
  }
  UNIFLUID_DEVICE static void store(bf16* row, int column, const FragmentC& of) {
    *reinterpret_cast<uint32_t*>(row + column) = pack_bf16(of.x[0], of.x[1]);
  }

  UNIFLUID_DEVICE void project() {
    const int row = lane_index() / 4;
    multiply<1>(kProjections, [&](int column, const FragmentC(&of)[1]) {
      const int of_kv = column - p.q_columns;
      if (of_kv < 0)
        store(p.q + row * p.q_stride, column, of[0]);
      else if (of_kv < p.kv_columns)
        store(p.k + row * p.k_stride, of_kv, of[0]);
      else
        store(p.v + row * p.v_stride, of_kv - p.kv_columns, of[0]);
    });
  }
  UNIFLUID_DEVICE void multiply_branch(Product product) {
    bf16* const row = p.branch + lane_index() / 4 * p.branch_stride;
    multiply<1>(product, [&](int column, const FragmentC(&of)[1]) { store(row, column, of[0]); });
  }
  UNIFLUID_DEVICE void multiply_gates() {
    bf16* const row = p.hidden + lane_index() / 4 * p.hidden_stride;
    multiply<2>(kGates, [&](int column, const FragmentC(&of)[2]) {
      const float4 active = activate(p.activation, make_float4(of[0].x[0], of[0].x[1], 0.0f, 0.0f));
      *reinterpret_cast<uint32_t*>(row + column) =
          pack_bf16(active.x * of[1].x[0], active.y * of[1].x[1]);
    });
  }

  // ---- norms: pieces of a row belong to the lanes that they have in `rms_norm` ----

  struct NormWeights {
    Piece branch[kNormTurns], next[kNormTurns];
  };

  // Of the norm of a branch, if any, and of the one that follows: on their way before the wait.
  UNIFLUID_DEVICE NormWeights norm_weights(const float* branch, const float* next) const {
    NormWeights w{};
    for (int turn = 0; turn < kNormTurns; ++turn) {
      const int column = column_of(turn);
      if (column >= p.width) continue;
      if (branch) w.branch[turn] = load_piece<true>(branch, column, p.width);
      w.next[turn] = load_piece<true>(next, column, p.width);
    }
    return w;
  }
  // Of the stream, after a layer.
  UNIFLUID_DEVICE const float* next_norm(int layer) const {
    return layer + 1 < p.layer_count ? layers[layer + 1].input_norm : p.final_norm;
  }
  UNIFLUID_DEVICE static int norm_warp(int turn) { return turn * kWarps + warp_index(); }
  UNIFLUID_DEVICE static int column_of(int turn) {
    return (norm_warp(turn) * kWarp + lane_index()) * kPiece;
  }
  // Calls body(turn, row, column, before(row)) for this lane's pieces of all rows, by whole warps,
  // also where they lie behind the row's end.
  template <class Before, class Body>
  UNIFLUID_DEVICE void each_piece(Before before, Body body) const {
#pragma unroll 1
    for (int row = 0; row < p.rows; ++row) {
      const auto of_row = before(row);
#pragma unroll
      for (int turn = 0; turn < kNormTurns; ++turn)
        if (norm_warp(turn) < p.norm_warps) body(turn, row, column_of(turn), of_row);
    }
  }
  template <class Body>
  UNIFLUID_DEVICE void each_piece(Body body) const {
    each_piece([](int) { return 0; },
               [&](int turn, int row, int column, int) { body(turn, row, column); });
  }
  UNIFLUID_DEVICE static uint32_t sum_at(int which, int row, int warp) {
    return static_cast<uint32_t>((which * kMostRows + row) * kNormWarps + warp);
  }
  UNIFLUID_DEVICE void add_up(int which, int turn, int row, const Piece& piece) const {
    const float sum = warp_sum(squares_of(piece));
    if (lane_index() == 0) sums.store(sum_at(which, row, norm_warp(turn)), sum);
  }
  UNIFLUID_DEVICE float scale_of(int which, int row) const {
    float total = 0;
    for (int w = 0; w < p.norm_warps; ++w) total += sums.load(sum_at(which, row, w));
    return root_scale(total, p.width, p.eps);
  }
  UNIFLUID_DEVICE uint32_t stream_at(int row, int column) const {
    return static_cast<uint32_t>(row * p.width + column);
  }
  UNIFLUID_DEVICE uint32_t input_at(int row, int column) const {
    return static_cast<uint32_t>(row * p.input_stride + column);
  }

  UNIFLUID_DEVICE void load_stream() const {
    each_piece([&](int, int row, int column) {
      if (column < p.width)
        cp_async16(stream, stream_at(row, column), p.x + row * p.x_stride + column, true);
    });
    cp_async_commit();
    cp_async_wait<0>();
  }

  // With a branch its norm is added to the stream. Then the stream's norm is the next input.
  UNIFLUID_DEVICE void normalize(const NormWeights& weights, bool has_branch) const {
    if (has_branch) {
      each_piece([&](int, int row, int column) {
        if (column < p.width)
          cp_async16(x, input_at(row, column), p.branch + row * p.branch_stride + column, true);
      });
      cp_async_commit();
      cp_async_wait<0>();
      each_piece([&](int turn, int row, int column) {
        add_up(0, turn, row, column < p.width ? piece_at(x, input_at(row, column)) : Piece{});
      });
      Workers::meet();
    }
    each_piece([&](int row) { return has_branch ? scale_of(0, row) : 0.0f; },
               [&](int turn, int row, int column, float scale) {
                 Piece v{};
                 if (column < p.width) {
                   v = piece_at(stream, stream_at(row, column));
                   if (has_branch) {
                     Piece branch = piece_at(x, input_at(row, column));
                     scale_piece(branch, scale, weights.branch[turn]);
                     // The norm is of the row as it is stored.
                     for (int i = 0; i < kPiece; ++i)
                       v.value[i] = rounded<bf16>(branch.value[i] + v.value[i]);
                     put_piece(stream, stream_at(row, column), v);
                   }
                 }
                 add_up(1, turn, row, v);
               });
    Workers::meet();
    each_piece([&](int row) { return scale_of(1, row); },
               [&](int turn, int row, int column, float scale) {
                 Piece v{};
                 if (column < p.width) {
                   v = piece_at(stream, stream_at(row, column));
                   scale_piece(v, scale, weights.next[turn]);
                 }
                 if (column < padded(p.width)) put_piece(x, input_at(row, column), v);
               });
    Workers::meet();
  }

  // ---- attention ----

  UNIFLUID_DEVICE AttentionParams attention_of(int layer) const {
    AttentionParams a = p.attention;
    a.window = static_cast<int32_t>(layers[layer].window);
    return a;
  }
  UNIFLUID_DEVICE AttendedSpan span_of(int span, int layer) const {
    const StepSpan s = spans[span];
    AttendedSpan of_layer = s.first_layer;
    const int64_t before = layer * s.layer_stride;
    of_layer.keys = static_cast<bf16*>(of_layer.keys) + before;
    of_layer.values = static_cast<bf16*>(of_layer.values) + before;
    return of_layer;
  }

  // A block of keys of a key head, from key `block` on, for the queries of a tile.
  struct Keys {
    unsigned tile;
    int first_query, head, block;
    Sight seen;  // by the tile
  };
  // Those of all tiles and key heads, dealt to the blocks of the grid: body(span, keys) for all of
  // this one, or for the first.
  template <class Body>
  UNIFLUID_DEVICE void each_block_of_keys(const AttentionParams& a, int layer, bool only_first,
                                          Body body) const {
    int item = static_cast<int>(blockIdx.x);
    for (int t = 0; t < p.tile_count; ++t) {
      const AttentionTile tile = tiles[t];
      const AttendedSpan span = span_of(tile.span, layer);
      const Sight seen = sight_of_tile(a, span, tile.first);
      const int first = seen.first / kKeyBlock;
      const int items = (seen.last / kKeyBlock - first + 1) * a.kv_heads;
      for (; item < items; item += static_cast<int>(gridDim.x)) {
        body(span, Keys{static_cast<unsigned>(t), tile.first, item % a.kv_heads,
                        (first + item / a.kv_heads) * kKeyBlock, seen});
        if (only_first) return;
      }
      item -= items;
    }
  }
  UNIFLUID_DEVICE void attend(int layer) {
    prefetch(layer);
    project();
    // The first keys are on their way to the memory of the inputs while the others are waited for.
    Workers::meet();
    const AttentionParams a = attention_of(layer);
    each_block_of_keys(a, layer, true, [&](const AttendedSpan& span, const Keys& of) {
      load_keys<kHead, true, Workers>(a, span, of.head, of.block, of.seen, of_attention);
    });
    meet_all();
    bool loaded = true;
    each_block_of_keys(a, layer, false, [&](const AttendedSpan& span, const Keys& of) {
      if (!loaded)
        load_keys<kHead, true, Workers>(a, span, of.head, of.block, of.seen, of_attention);
      loaded = false;
      compute_scores<kHead, true, Workers>(a, span, of.tile, of.first_query, of.head, of.block,
                                           of_attention);
      Workers::meet();
    });
    if (p.attention.score_rows <= kFewQueries)
      add_all_values<kFewQueries>(layer);
    else
      add_all_values<kDecodeQueries>(layer);
  }
  // Likewise columns of the heads, for tiles of at most so many queries. The first has been
  // prepared when all meet after the scores.
  template <int kMostQueries>
  UNIFLUID_DEVICE void add_all_values(int layer) {
    bool met = false;
    const auto meet_once = [&] {
      if (!met) meet_all();
      met = true;
    };
    const AttentionParams a = attention_of(layer);
    int item = static_cast<int>(blockIdx.x);
    const int items = (a.head_dim + kValueColumns - 1) / kValueColumns * a.kv_heads;
    for (int t = 0; t < p.tile_count; ++t, item -= items) {
      if (item >= items) continue;
      const AttentionTile tile = tiles[t];
      const AttendedSpan span = span_of(tile.span, layer);
      for (; item < items; item += static_cast<int>(gridDim.x)) {
        const int head = item % a.kv_heads;
        add_values<kValueColumnWarps, kValueSlots, true, Workers, kMostQueries>(
            a, span, static_cast<unsigned>(t), tile.first, head, item / a.kv_heads * kValueColumns,
            of_attention, meet_once, [&](int query, int column, float first, float second) {
              store_pair<true>(
                  static_cast<bf16*>(a.out) + query_offset(a, span, head, query, a.out_stride),
                  column, a.head_dim, first, second);
            });
        Workers::meet();
      }
    }
    meet_once();
  }

  const StepParams& p;
  const Ring ring;
  const Shared<bf16> stream;  // [rows, width]
  const Shared<float> sums;   // of squares, of both norms: [2][kMostRows][kNormWarps]
  const Shared<Share> shares;
  const Table<StepLayer> layers;
  const Table<StepSpan> spans;
  const Table<AttentionTile> tiles;
  const SharedArena of_attention;  // from `x` on
  const Shared<bf16> x;            // [rows, input_stride]
  Place place{0, 0};
  uint32_t round = 0;
};

__global__ void __launch_bounds__(kThreads, 1)
    run_decoder_step(const __grid_constant__ StepParams p) {
  Step(p, SharedArena{}).run();
}

#else

__global__ void run_decoder_step(StepParams) {}

#endif

__global__ void clear_arrivals(uint32_t* arrivals) { *arrivals = 0; }

// ---- host ----

size_t attention_bytes() {
  return std::max(score_bytes<kHead>(), value_bytes<kValueColumnWarps, kValueSlots>());
}

}  // namespace

size_t shared_bytes(const StepParams& p) {
  const size_t attention = attention_bytes() / sizeof(bf16);
  return Ring::bytes(static_cast<size_t>(p.slots)) +
         SharedBytes{}
             .take<bf16>(static_cast<size_t>(p.rows * p.width))
             .take<float>(2 * kMostRows * kNormWarps)
             .take<Share>(kProducts)
             .take<uint64_t>(static_cast<uint32_t>(p.layer_count) * kWords<StepLayer>)
             .take<uint64_t>(static_cast<uint32_t>(p.span_count) * kWords<StepSpan>)
             .take<uint64_t>(static_cast<uint32_t>(p.tile_count) * kWords<AttentionTile>)
             .take<bf16>(std::max<size_t>(input_elements(p), attention))
             .used;
}

void launch(Queue& queue, const StepParams& p) {
  queue.launch(clear_arrivals, dim3(1), dim3(1), 0, p.arrivals);
  queue.launch_cooperative(run_decoder_step, dim3(static_cast<unsigned>(queue.limits().processors)),
                           dim3(kThreads), shared_bytes(p), p);
}

}  // namespace unifluid::cuda::step
