// All sampling steps of the diffusion head in one persistent launch.
//
// A step is a chain of 2 depth + 1 products, each of which needs all of the one before. For one
// image that is two rows, and a launch for each product would cost more than its work: a head of
// UniFluid's size (W 1280, depth 8, 100 steps) has 1700 of them. So blocks stay, one to a
// multiprocessor, divide the columns of every matrix among them, and rows go from one to the others
// through the second-level cache, 2 depth + 2 times a step. How long that takes is what a small
// step takes. Few rows are posted value by value (exchange.h): an element is computed upon when it
// comes. Many rows would double in bytes that way; they are stored, and blocks meet at a barrier of
// the grid. Whatever does not depend on what comes is read before the wait: the next weights are on
// their way to shared memory, biases, gates and what a norm multiplies by are in registers.
//
// Posts. A block can be one exchange behind the others, where it had no column to post and nobody
// waited for it; not two, since all post columns of the hidden state. So words are used again after
// three exchanges.
//
// Weights. A block needs the same part of every matrix at every step. Its shared memory is cut into
// slots of one unit each, the block's columns (16 at most) of one matrix. Where there are fewer
// slots than units, two slots are a ring through which the others stream from the second-level
// cache, and the rest of them stay; units that stay lie evenly between those that stream, so that a
// copy has more than one product's time. Eight warps divide the depth of a product; a lane copies
// just the 16-byte pieces that it multiplies by itself, so that no thread waits for another's.
//
// Rows. Many tokens at once are shared out to teams of blocks: a team has its own rows and all
// columns. More teams read more weights, fewer read more rows; the plan takes what is least.
//
// Order of sums, which depends on the width alone, so that a token has the same bits in any
// company: a warp adds its run of the depth in ascending pieces, eight partial sums are added in
// the order of the warps. A row is normalized in four parts by as many warps, since with one image
// all blocks wait for it; sums and squares of the parts are then joined. Tensor cores take columns
// as rows of A and rows as columns of B, eight to a tile, half of what the other way would waste on
// one image. A lane holds 8 neighbouring elements (bf16), which serve as the depths of two products
// of 16: in which order a fragment names its depths is free as long as both sides agree.
//
// State and guidance are small: every block of a team keeps the latents of all its tokens.
#include "cuda/kernels/diffusion_steps.h"

#include "cuda/device/exchange.h"
#include "cuda/device/grid.h"
#include "cuda/device/math.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/diffusion_tile.h"
#include "cuda/kernels/diffusion_weights.h"

namespace unifluid::cuda {
namespace {

using namespace steps;

// Pieces of a part of a row that a lane keeps in registers while it is normalized: those of wider
// rows (over 2048) are read again.
template <class T>
constexpr int kHeld = 16 / kSize<T>;
constexpr float kNormEps = 1e-6f;
// Rows of inputs that a thread waits for at once.
constexpr int kReceived = 2;

// One block at work. kPosts: rows go from block to block by posts, else by stores and a barrier.
template <class T, bool kPosts>
class Worker {
 public:
  UNIFLUID_DEVICE Worker(const StepsParams& params, SharedArena& arena)
      : p(params),
        team(params.team_table[blockIdx.x / params.members]),
        member(static_cast<int>(blockIdx.x) % params.members),
        first_column(member * params.columns),
        columns(min(params.columns, params.width - first_column)),
        share(params.width),
        x_stride(input_stride(share.all * 16)),
        x(arena.take<uint32_t>(static_cast<uint32_t>(params.most_rows * x_stride))),
        partial(
            arena.take<float>(static_cast<uint32_t>(kWarps * params.most_rows * kPartialStride))),
        own(arena.take<float>(static_cast<uint32_t>(params.most_rows * params.columns))),
        moments(arena.take<float>(kMoments)),
        state(arena.take<float>(static_cast<uint32_t>(params.most_tokens * params.channels))),
        weights(params, arena, first_column, columns) {}

  UNIFLUID_DEVICE void run() {
    for (int i = thread(); i < team.tokens * p.channels; i += kThreads)
      state.store(i, p.state[team.token * p.channels + i]);
    __syncthreads();
    weights.begin();
    for (int step = 0; step < p.steps; ++step) {
      modulation = static_cast<const T*>(p.modulation) +
                   (static_cast<int64_t>(step) * p.rows + team.row) * p.modulation_width;
      project_input();
      if (step + 1 < p.steps) prefetch_modulation();
      for (int index = 0; index <= 2 * p.depth; ++index) run_product(index);
      if (p.network_out) return;
      update(p.first_step + step);
    }
    if (member > 0) return;
    for (int i = thread(); i < team.tokens * p.channels; i += kThreads) {
      const float v = state.load(i);
      p.state[team.token * p.channels + i] = v;
      if (p.last) p.token_table[team.token + i / p.channels].out[i % p.channels] = v;
    }
  }

 private:
  static constexpr int kRowsEach = kPosts ? 1 : kMostRowsEach;
  static constexpr int kWarpRows = kWarps / kParts, kRowsTogether = kWarpRows * kRowsEach;

  UNIFLUID_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }

  // ---- the exchange of rows ----

  // What was handed out before it can be received after it, by the blocks of the team.
  UNIFLUID_DEVICE void meet() {
    if constexpr (kPosts)
      ++round;
    else
      grid_barrier(p.arrivals, round);
  }
  // The same, of whole rows: what lies behind the width is handed out as zeros.
  UNIFLUID_DEVICE void meet_for_rows() {
    if (kPosts && member == 0) {
      const int tail = p.stride - p.width;
      for (int at = thread(); at < team.rows * tail; at += kThreads)
        post(posted(round + 1, at / tail, p.width + at % tail), 0.0f, round + 1);
    }
    meet();
  }
  UNIFLUID_DEVICE Posted* posted(uint32_t of_round, int row, int column) const {
    const int64_t at = static_cast<int64_t>(of_round % kPostRounds) * p.rows + team.row + row;
    return p.posts + at * p.posts_stride + column;
  }
  UNIFLUID_DEVICE void hand_out_hidden(int row, int column, float v) const {
    if constexpr (kPosts)
      post(posted(round + 1, row, column), v, round + 1);
    else
      hidden_row(row)[column] = v;
  }
  UNIFLUID_DEVICE void hand_out_inner(int row, int column, float v) const {
    if constexpr (kPosts)
      post(posted(round + 1, row, column), v, round + 1);
    else
      inner_row(row)[column] = from_float<T>(v);
  }
  UNIFLUID_DEVICE void hand_out_output(int row, int column, float v) const {
    if constexpr (kPosts)
      post(posted(round + 1, row, column), v, round + 1);
    else
      p.out[static_cast<int64_t>(team.row + row) * p.outputs + column] = v;
  }
  UNIFLUID_DEVICE float receive_output(int row, int column) const {
    if constexpr (kPosts)
      return receive(posted(round, row, column), round);
    else
      return load_fresh(p.out + static_cast<int64_t>(team.row + row) * p.outputs + column);
  }
  // Looks at elements k .. of a row. 0: all have come.
  UNIFLUID_DEVICE uint32_t look_at_piece(int row, int k, float (&values)[kSize<T>]) const {
    const Posted* from = posted(round, row, k);
    uint32_t other = 0;
    for (int i = 0; i < kSize<T>; i += 2) {
      Posted now[2];
      look(from + i, now);
      for (int e = 0; e < 2; ++e) {
        values[i + e] = now[e].value;
        other |= now[e].round ^ round;
      }
    }
    return other;
  }
  UNIFLUID_DEVICE void load_hidden(int row, int k, float (&values)[kSize<T>]) const {
    const float* from = hidden_row(row) + k;
    for (int i = 0; i < kSize<T>; i += 4) {
      const Piece four = piece_of(load_fresh(reinterpret_cast<const uint4*>(from + i)));
      for (int e = 0; e < 4; ++e)
        values[i + e] = k + i + e < p.width ? element<float>(four, e) : 0.0f;
    }
  }

  UNIFLUID_DEVICE const T* modulation_row(int row) const {
    return modulation + static_cast<int64_t>(row) * p.modulation_width;
  }
  UNIFLUID_DEVICE float* hidden_row(int row) const {
    return p.hidden + static_cast<int64_t>(team.row + row) * p.stride;
  }
  UNIFLUID_DEVICE T* inner_row(int row) const {
    return static_cast<T*>(p.inner) + static_cast<int64_t>(team.row + row) * p.stride;
  }

  // ---- products ----

  // For this block's columns [first, first + count) of `weight` and all rows of the team:
  // after(row, column, sum, operands), where `operands` are what before(row, column) read ahead of
  // the wait. `load` waits for the inputs and puts them into `x`. Columns count from `first`;
  // `index`: of the product in the stream of weights; -1: of a matrix that is not in it.
  template <class Before, class Load, class After>
  UNIFLUID_DEVICE void product(const T* weight, int first, int count, int index, Before before,
                               Load load, After after) {
    if (count <= 0) {  // the inputs are for others
      meet_for_rows();
      __syncthreads();
    }
    for (int tile = 0; tile * kTileColumns < count; ++tile) {
      const int begin = tile * kTileColumns, here = min(kTileColumns, count - begin);
      // A thread has the same column of some rows.
      const int column = thread() % kTileColumns, first_row = thread() / kTileColumns;
      constexpr int kRowsApart = kThreads / kTileColumns;
      float2 operands[kResults];
      for (int i = 0; i < kResults; ++i) {
        const int row = first_row + i * kRowsApart;
        if (column < here && row < team.rows) operands[i] = before(row, begin + column);
      }
      if (tile == 0) load();
      const int unit = weights.unit_of(index, tile);
      const int slot = index < 0 ? -1 : weights.acquire(unit);
      Accumulator<T> sums[kRowTiles];
      if (slot >= 0)
        add_up(sums, here, [&](int i, int column) { return weights.piece(slot, i, column); });
      else
        add_up(sums, here, [&](int i, int column) {
          return read_piece(weight + static_cast<int64_t>(first + begin + column) * p.width,
                            (share.first + i) * kDepth<T> + lane_index() % 4 * kSize<T>, p.width,
                            p.aligned);
        });
      if (tile > 0) __syncthreads();  // the partial sums of the tile before have been read
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if (r * kTileRows >= team.rows) break;
        sums[r].finish(team.rows - r * kTileRows, [&](int column, int row, float sum) {
          row += warp_index() * p.most_rows + r * kTileRows;
          partial.store(static_cast<uint32_t>(row * kPartialStride + column), sum);
        });
      }
      __syncthreads();
      for (int i = 0; i < kResults; ++i) {
        const int row = first_row + i * kRowsApart;
        if (column >= here || row >= team.rows) continue;
        float sum = 0;
        for (int w = 0; w < kWarps; ++w)
          sum += partial.load((w * p.most_rows + row) * kPartialStride + column);
        after(row, begin + column, sum, operands[i]);
      }
      // Others wait for the results, not for the copies that begin here.
      if (index >= 0) weights.release(unit);
    }
  }

  // The warp's part of `here` columns, whose pieces weight(i, column) gives.
  template <class Weight>
  UNIFLUID_DEVICE void add_up(Accumulator<T> (&sums)[kRowTiles], int here, Weight weight) const {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll 2
    for (int i = 0; i < share.count; ++i) {
      const Piece low = g < here ? weight(i, g) : Piece{};
      const Piece high = g + 8 < here ? weight(i, g + 8) : Piece{};
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if (r * kTileRows >= team.rows) break;
        sums[r].add(low, high, x, team.rows - r * kTileRows, [&](int row) {
          row += r * kTileRows;
          return static_cast<uint32_t>(row * x_stride + ((share.first + i) * 4 + t) * 4);
        });
      }
    }
  }

  // ---- the network ----

  // hidden = input_proj(latents) for the block's columns.
  UNIFLUID_DEVICE void project_input() {
    for (int at = thread(); at < team.rows * columns; at += kThreads) {
      const int row = at / columns, column = first_column + at % columns;
      const int token = p.row_token[team.row + row] - team.token;
      const T* weight =
          static_cast<const T*>(p.input_proj) + static_cast<int64_t>(column) * p.channels;
      float sum = 0;
      for (int c = 0; c < p.channels; ++c)
        sum = fmaf(to_float(weight[c]), rounded<T>(state.load(token * p.channels + c)), sum);
      sum += p.input_proj_bias[column];
      own.store(row * p.columns + at % columns, sum);
      hand_out_hidden(row, column, sum);
    }
  }

  // The next step's modulations come from far: they are wanted in the second-level cache by then.
  UNIFLUID_DEVICE void prefetch_modulation() const {
    constexpr int64_t kLine = 128 / sizeof(T);
    const T* next = modulation + static_cast<int64_t>(p.rows) * p.modulation_width;
    const int64_t count = static_cast<int64_t>(team.rows) * p.modulation_width;
    for (int64_t i = (static_cast<int64_t>(member) * kThreads + thread()) * kLine; i < count;
         i += static_cast<int64_t>(p.members) * kThreads * kLine)
      prefetch_l2(next + i);
  }

  // Products of the network: mlp0 and mlp2 of each block, then the final layer. One place in the
  // code for all of them, as the instructions of a step must fit into their cache.
  enum class Kind { expand, contract, finish };
  UNIFLUID_DEVICE void run_product(int index) {
    const Kind kind = index == 2 * p.depth ? Kind::finish
                      : index % 2          ? Kind::contract
                                           : Kind::expand;
    const StepsBlock block = p.depth > 0 ? p.blocks[min(index / 2, p.depth - 1)] : StepsBlock{};
    const void* weight = block.mlp0;
    const float* bias = block.mlp0_bias;
    const int shift = index / 2 * 3 * p.width, gate = shift + 2 * p.width;
    int first = first_column, count = columns;
    if (kind == Kind::contract) {
      weight = block.mlp2;
      bias = block.mlp2_bias;
    } else if (kind == Kind::finish) {
      const int each = (p.outputs + p.members - 1) / p.members;
      weight = p.final_linear;
      bias = p.final_linear_bias;
      first = member * each;
      count = min(each, p.outputs - first);
    }
    product(
        static_cast<const T*>(weight), first, count, kind == Kind::finish ? -1 : index,
        [&](int row, int column) {
          return make_float2(
              bias[first + column],
              kind == Kind::contract ? to_float(modulation_row(row)[gate + first + column]) : 0.0f);
        },
        [&] {
          const bool affine = kind == Kind::expand;
          if (kind == Kind::contract)
            load_inner();
          else
            load_normalized(affine ? block.norm_weight : nullptr,
                            affine ? block.norm_bias : nullptr, shift);
        },
        [&](int row, int column, float sum, float2 bias_gate) {
          sum += bias_gate.x;
          if (kind == Kind::expand) {
            hand_out_inner(row, first + column, activate<Activation::silu>(sum));
          } else if (kind == Kind::contract) {
            const uint32_t at = static_cast<uint32_t>(row * p.columns + column);
            const float v = fmaf(bias_gate.y, sum, own.load(at));
            own.store(at, v);
            hand_out_hidden(row, first + column, v);
          } else if (p.network_out) {
            static_cast<T*>(p.network_out)[(team.row + row) * p.network_stride + first + column] =
                from_float<T>(sum);
          } else {
            hand_out_output(row, first + column, sum);
          }
        });
  }

  // What a norm does to a normalized row, piece by piece: v * scale + shift.
  struct Affine {
    float scale[kSize<T>], shift[kSize<T>];
  };
  // (v * weight + bias) * (1 + scale) + shift, weight and bias unless null
  UNIFLUID_DEVICE Affine affine(const float* weight, const float* bias, const T* shifts, int k) {
    const bool aligned = p.width % kSize<T> == 0;
    const Piece shift = read_piece(shifts, k, p.width, aligned);
    const Piece scale = read_piece(shifts + p.width, k, p.width, aligned);
    Affine a;
    for (int i = 0; i < kSize<T>; ++i) {
      a.scale[i] = 1.0f + element<T>(scale, i);
      a.shift[i] = element<T>(shift, i);
    }
    if (!weight) return a;
    for (int i = 0; i < kSize<T>; i += 4) {
      const Piece weights4 = read_piece(weight, k + i, p.width, p.vectors_aligned);
      const Piece biases4 = read_piece(bias, k + i, p.width, p.vectors_aligned);
      for (int e = 0; e < 4; ++e) {
        a.shift[i + e] = fmaf(element<float>(biases4, e), a.scale[i + e], a.shift[i + e]);
        a.scale[i + e] *= element<float>(weights4, e);
      }
    }
    return a;
  }

  // The elements of a part of a row: runs of a piece for each lane, every fourth one.
  UNIFLUID_DEVICE static constexpr int run_of(int part, int i) {
    return (i * kParts + part) * kWarp * kSize<T>;
  }
  UNIFLUID_DEVICE int part_size(int part) const {
    constexpr int kRun = kWarp * kSize<T>;
    const int whole = p.width / (kParts * kRun);
    return whole * kRun + min(max(p.width - run_of(part, whole), 0), kRun);
  }
  // Of a part: the sum of its elements, and of their squared distances from their mean.
  struct Moments {
    float sum, squares;
  };
  // Mean, and inverse of the standard deviation, of a row from those of its parts.
  struct Norm {
    float mean, inverse;
  };
  // What is known of the parts before they come.
  struct Sizes {
    float size[kParts], inverse[kParts], inverse_width;
  };
  UNIFLUID_DEVICE Sizes part_sizes() const {
    Sizes sizes;
    sizes.inverse_width = 1.0f / static_cast<float>(p.width);
    for (int part = 0; part < kParts; ++part) {
      sizes.size[part] = static_cast<float>(part_size(part));
      sizes.inverse[part] = 1.0f / fmaxf(sizes.size[part], 1.0f);
    }
    return sizes;
  }
  template <class Get>
  UNIFLUID_DEVICE Norm norm_of(const Sizes& sizes, Get moments_of) const {
    float total = 0, squares = 0;
    for (int part = 0; part < kParts; ++part) total += moments_of(part).sum;
    const float mean = total * sizes.inverse_width;
    for (int part = 0; part < kParts; ++part) {
      const Moments m = moments_of(part);
      const float away = fmaf(-sizes.size[part], mean, m.sum);
      squares += fmaf(away * away, sizes.inverse[part], m.squares);
    }
    return {mean, rsqrtf(fmaf(squares, sizes.inverse_width, kNormEps))};
  }

  // x = norm(hidden) * (1 + scale) + shift, where norm is layer norm, with weight and bias unless
  // null. `shift`: the column of the modulations; scales follow. A warp has one part of kRowsEach
  // rows at a time.
  UNIFLUID_DEVICE void load_normalized(const float* weight, const float* bias, int shift) {
    const int part = warp_index() % kParts, warp_row = warp_index() / kParts;
    const auto element_of = [&](int i) { return run_of(part, i) + lane_index() * kSize<T>; };
    const auto affine_at = [&](int row, int k) {
      return affine(weight, bias, modulation_row(row) + shift, k);
    };
    int rows[kRowsEach];
    Affine affines[kRowsEach][kHeld<T>];
    const auto prepare = [&](int first) {
#pragma unroll
      for (int j = 0; j < kRowsEach; ++j) {
        rows[j] = first + j * kWarpRows + warp_row;
#pragma unroll
        for (int i = 0; i < kHeld<T>; ++i)
          if (rows[j] < team.rows && element_of(i) < p.stride)
            affines[j][i] = affine_at(rows[j], element_of(i));
      }
    };
    prepare(0);
    const Sizes sizes = part_sizes();
    const float inverse_size = 1.0f / static_cast<float>(max(part_size(part), 1));
    meet_for_rows();
    for (int first = 0, buffer = 0; first < team.rows; first += kRowsTogether, buffer ^= 1) {
      if (first > 0) prepare(first);
      float held[kRowsEach][kHeld<T>][kSize<T>];
      for (;;) {
        uint32_t other = 0;
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j)
#pragma unroll
          for (int i = 0; i < kHeld<T>; ++i)
            if (rows[j] < team.rows && element_of(i) < p.stride)
              other |= look_or_load(rows[j], element_of(i), held[j][i]);
        if (other == 0) break;
        look_again();
      }
      // visit(k, i, values) for the lane's pieces of row j, in ascending order; i is kHeld for
      // those that are read again
      const auto each = [&](int j, auto visit) {
#pragma unroll
        for (int i = 0; i < kHeld<T>; ++i)
          if (element_of(i) < p.stride) visit(element_of(i), i, held[j][i]);
        for (int i = kHeld<T>; element_of(i) < p.stride; ++i) {
          float values[kSize<T>];
          while (look_or_load(rows[j], element_of(i), values) != 0) look_again();
          visit(element_of(i), kHeld<T>, values);
        }
      };
      float sums[kRowsEach] = {}, squares[kRowsEach] = {};
#pragma unroll
      for (int j = 0; j < kRowsEach; ++j) {
        if (rows[j] < team.rows)
          each(j, [&](int, int, const float(&values)[kSize<T>]) {
            for (int e = 0; e < kSize<T>; ++e) sums[j] += values[e];
          });
        sums[j] = warp_sum(sums[j]);
      }
#pragma unroll
      for (int j = 0; j < kRowsEach; ++j) {
        const float mean = sums[j] * inverse_size;
        if (rows[j] < team.rows)
          each(j, [&](int k, int, const float(&values)[kSize<T>]) {
            for (int e = 0; e < kSize<T>; ++e) {
              const float d = k + e < p.width ? values[e] - mean : 0.0f;
              squares[j] = fmaf(d, d, squares[j]);
            }
          });
        squares[j] = warp_sum(squares[j]);
      }
      const auto moments_of = [&](int j, int of_part) {
        const int row = buffer * kRowsTogether + j * kWarpRows + warp_row;
        return static_cast<uint32_t>((row * kParts + of_part) * 2);
      };
      if (lane_index() == 0)
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j) {
          moments.store(moments_of(j, part), sums[j]);
          moments.store(moments_of(j, part) + 1, squares[j]);
        }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kRowsEach; ++j) {
        if (rows[j] >= team.rows) break;
        const Norm norm = norm_of(sizes, [&](int of_part) {
          const uint32_t at = moments_of(j, of_part);
          return Moments{moments.load(at), moments.load(at + 1)};
        });
        each(j, [&](int k, int i, const float(&values)[kSize<T>]) {
          const Affine a = i < kHeld<T> ? affines[j][i < kHeld<T> ? i : 0] : affine_at(rows[j], k);
          float normalized[kSize<T>];
          for (int e = 0; e < kSize<T>; ++e) {
            const float v = fmaf((values[e] - norm.mean) * norm.inverse, a.scale[e], a.shift[e]);
            normalized[e] = k + e < p.width ? v : 0.0f;
          }
          store_piece(x, static_cast<uint32_t>(rows[j] * x_stride + k / kSize<T> * 4),
                      piece_of<T>(normalized));
        });
      }
    }
    __syncthreads();
  }

  UNIFLUID_DEVICE uint32_t look_or_load(int row, int k, float (&values)[kSize<T>]) const {
    if constexpr (kPosts) {
      return look_at_piece(row, k, values);
    } else {
      load_hidden(row, k, values);
      return 0;
    }
  }

  // x = inner
  UNIFLUID_DEVICE void load_inner() {
    meet_for_rows();
    const int row_pieces = share.all * 4;
    const auto put = [&](int row, int piece, const Piece& values) {
      store_piece(x, static_cast<uint32_t>(row * x_stride + piece * 4), values);
    };
    if constexpr (kPosts) {
      for (int first = 0; first < team.rows; first += kReceived)
        for (int piece = thread(); piece < row_pieces; piece += kThreads) {
          float values[kReceived][kSize<T>];
          for (;;) {
            uint32_t other = 0;
#pragma unroll
            for (int i = 0; i < kReceived; ++i)
              if (first + i < team.rows)
                other |= look_at_piece(first + i, piece * kSize<T>, values[i]);
            if (other == 0) break;
            look_again();
          }
#pragma unroll
          for (int i = 0; i < kReceived; ++i)
            if (first + i < team.rows) put(first + i, piece, piece_of<T>(values[i]));
        }
    } else {
      for (int row = 0, piece = thread();; piece += kThreads) {
        for (; piece >= row_pieces; piece -= row_pieces) ++row;
        if (row >= team.rows) break;
        const int k = piece * kSize<T>;
        Piece values{};
        if (k < p.width)
          values = piece_of(load_fresh(reinterpret_cast<const uint4*>(inner_row(row) + k)));
        if (k + kSize < T >> p.width) {  // nobody wrote what lies behind the width
          float inside[kSize<T>];
          for (int i = 0; i < kSize<T>; ++i)
            inside[i] = k + i < p.width ? element<T>(values, i) : 0.0f;
          values = piece_of<T>(inside);
        }
        put(row, piece, values);
      }
    }
    __syncthreads();
  }

  // ---- the sampler ----

  // The latents after a step, from the network's outputs.
  UNIFLUID_DEVICE void update(int step_index) {
    const DiffusionStep step = p.step_table[step_index];
    meet();
    for (int at = thread(); at < team.tokens * p.channels; at += kThreads) {
      const int token_index = team.token + at / p.channels, c = at % p.channels;
      const StepsToken token = p.token_table[token_index];
      const bool noisy = !p.flow && step.noise;
      const int64_t draw = static_cast<int64_t>(step_index) * p.tokens + token_index;
      const float noise = noisy ? p.noise[draw * p.channels + c] : 0.0f;
      const int row = token.row - team.row;
      const float limit = token.x0_limit;
      // Of two operands fminf and fmaxf take the one that is a number. What is not finite becomes
      // NaN, as on the CPU: it must not end as a pixel.
      const auto limited = [limit](float v) {
        return fmaf(v, 0.0f, v < -limit ? -limit : v > limit ? limit : v);
      };
      const float now = state.load(at);
      float predicted = receive_output(row, c);
      if (token.rows > 1) {
        const float empty = receive_output(row + 1, c);
        predicted = empty + token.guidance * (predicted - empty);
      }
      if (p.flow) {
        float v = predicted;
        if (limit < INFINITY) v = (now - limited(now - step.tau * v)) / step.tau;
        state.store(at, now - v / static_cast<float>(p.step_count));
        continue;
      }
      const float x0 = limited(step.recip * now - step.recipm1 * predicted);
      float next = step.coef_x0 * x0 + step.coef_x * now;
      if (noisy) {
        const float f = 0.5f * (receive_output(row, p.channels + c) + 1.0f);
        const float log_variance = f * step.log_beta + (1.0f - f) * step.log_tilde;
        next += token.temperature * expf(0.5f * log_variance) * noise;
      }
      state.store(at, next);
    }
    __syncthreads();
  }

  const StepsParams& p;
  const StepsTeam team;
  const int member, first_column, columns;
  const DepthShare<T> share;
  const int x_stride;
  const Shared<uint32_t> x;     // [rows, x_stride] the inputs of a product
  const Shared<float> partial;  // [warps, rows, kPartialStride]
  const Shared<float> own;      // [rows, columns] hidden, of the block's columns
  const Shared<float> moments;  // of parts of rows, [2, kRowsTogether, kParts, 2]
  const Shared<float> state;    // [tokens, C]
  WeightStream<T> weights;
  uint32_t round = 0;
  const T* modulation = nullptr;  // of this step and the team's first row
};

template <class T, bool kPosts>
__global__ void __launch_bounds__(kThreads, 1) sampling_steps(StepsParams params) {
  SharedArena arena;
  Worker<T, kPosts>(params, arena).run();
}

}  // namespace

void launch_steps(Queue& queue, DType type, const StepsPass& pass, StepsParams params) {
  params.aligned = pass.aligned;
  params.vectors_aligned = pass.vectors_aligned;
  params.posts_stride = static_cast<int32_t>(pass.posts_stride);
  params.members = pass.members;
  params.columns = pass.columns;
  params.most_rows = pass.most_rows;
  params.most_tokens = pass.most_tokens;
  params.slots = pass.slots;
  const unsigned blocks =
      static_cast<unsigned>(pass.teams.size()) * static_cast<unsigned>(pass.members);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    queue.launch_cooperative(pass.posts ? sampling_steps<T, true> : sampling_steps<T, false>,
                             dim3(blocks), dim3(kThreads), pass.shared, params);
  });
}

}  // namespace unifluid::cuda
