// All sampling steps of the diffusion head in one persistent launch.
//
// A step is a chain of 2 depth + 1 products, each of which needs all of the one before. For one
// image that is two rows, and a launch for each product would cost more than its work: a head of
// UniFluid's size (W 1280, depth 8, 100 steps) has 1700 of them. So blocks stay, one to a
// multiprocessor, divide the columns of every matrix among them, and rows go from one to the others
// through the second-level cache, 2 depth + 2 times a step. How long that takes is what a small
// step takes. Few rows are posted value by value (diffusion_exchange.h): an element is computed
// upon when it comes; inputs of mlp2, which are rounded to bf16 anyway, travel as pairs of two
// rows. Many rows would double in bytes that way; they are stored, and the blocks of a team meet at
// a barrier. Whatever does not depend on what comes is read before the wait: the next weights are
// on their way to shared memory, biases, gates and what a norm multiplies by are in registers. With
// posts the instructions of a product are most of what is left of its time, so that there all is
// known to be aligned, and there is one tile of rows.
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
//
// One row or two in bf16, of widths and few columns that a compiler can know, have a kernel of
// their own with the same bits: diffusion_pair.cu. So have many rows where blocks come in clusters:
// diffusion_cluster.cu.
#include "cuda/kernels/diffusion_steps.h"

#include <algorithm>

#include "cuda/device/exchange.h"
#include "cuda/device/grid.h"
#include "cuda/device/math.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/diffusion_elements.h"
#include "cuda/kernels/diffusion_exchange.h"
#include "cuda/kernels/diffusion_tile.h"
#include "cuda/kernels/diffusion_weights.h"

namespace unifluid::cuda {
namespace {

using namespace steps;

// Pieces of a part of a row that a lane keeps in registers while it is normalized: those of wider
// rows (over 2048) are read again.
template <class T>
constexpr int kHeld = 16 / kSize<T>;
// One block at work. kPosts: rows go from block to block by posts, else by stores and a barrier;
// all that is read in vectors is aligned to them then.
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
        blocks(arena.take<uint64_t>(steps_field(params.depth, StepsField{}))),
        input(arena.take<float>(
            kPosts ? static_cast<uint32_t>(params.columns * (params.channels + 1)) : 0)),
        weights(params, arena, blocks, first_column, columns),
        exchange(params, team) {}

  UNIFLUID_DEVICE void run() {
    for (int i = thread(); i < team.tokens * p.channels; i += kThreads)
      state.store(i, p.state[team.token * p.channels + i]);
    const uint64_t* fields = reinterpret_cast<const uint64_t*>(p.blocks);
    for (uint32_t i = threadIdx.x; i < steps_field(p.depth, StepsField{}); i += kThreads)
      blocks.store(i, fields[i]);
    if constexpr (kPosts) begin_posts();
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
  static constexpr int kTiles = kPosts ? 1 : kRowTiles;
  // Results of a unit that a thread finishes: of one column, rows kRowsApart from each other.
  static constexpr int kRowsApart = kThreads / kTileColumns;
  static constexpr int kResults = (kTiles * kTileRows + kRowsApart - 1) / kRowsApart;

  UNIFLUID_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }

  // What stays the same: the first layer's weights and biases, [columns, C + 1], and the zeros
  // behind the width of inputs, which nobody posts.
  UNIFLUID_DEVICE void begin_posts() {
    const int each = p.channels + 1;
    for (int at = thread(); at < columns * each; at += kThreads) {
      const int column = at / each, c = at - column * each;
      const T* weight = static_cast<const T*>(p.input_proj) +
                        static_cast<int64_t>(first_column + column) * p.channels;
      input.store(static_cast<uint32_t>(at),
                  c < p.channels ? to_float(weight[c]) : p.input_proj_bias[first_column + column]);
    }
    const int pieces = p.width / kSize<T>, tail = share.all * 4 - pieces;
    for (int at = thread(); at < team.rows * tail; at += kThreads)
      store_piece(x, static_cast<uint32_t>(at / tail * x_stride + (pieces + at % tail) * 4), {});
    exchange.begin();
    const int row = thread() / kTileColumns;
    if (row < team.rows) own_token = p.row_token[team.row + row] - team.token;
  }

  UNIFLUID_DEVICE const T* modulation_row(int row) const {
    return modulation + static_cast<int64_t>(row) * p.modulation_width;
  }

  // ---- products ----

  // For this block's columns [first, first + count) of `weight` and all rows of the team:
  // after(row, column, sum, operands, mine), by whole warps, `mine` where there is such a result;
  // `operands` are what before(row, column) read ahead of the wait. `load` waits for the inputs and
  // puts them into `x`. Columns count from `first`. `streamed`: the product is the next in the
  // stream of weights, else it is not in it.
  template <class Before, class Load, class After>
  UNIFLUID_DEVICE void product(const T* weight, int first, int count, bool streamed, Before before,
                               Load load, After after) {
    if (count <= 0) {  // the inputs are for others
      exchange.meet();
      __syncthreads();
    }
    for (int tile = 0; tile * kTileColumns < count; ++tile) {
      const int begin = tile * kTileColumns, here = min(kTileColumns, count - begin);
      const int column = thread() % kTileColumns, first_row = thread() / kTileColumns;
      float2 operands[kResults];
      for (int i = 0; i < kResults; ++i) {
        const int row = first_row + i * kRowsApart;
        operands[i] = column < here && row < team.rows ? before(row, begin + column)
                                                       : make_float2(0.0f, 0.0f);
      }
      if (tile == 0) load();
      const int slot = streamed ? weights.acquire() : -1;
      Accumulator<T> sums[kTiles];
      if (slot >= 0)
        add_up(sums, here, [&](int i, bool high) { return weights.piece(slot, i, high); });
      else
        add_up(sums, here, [&](int i, bool high) {
          const int column = first + begin + lane_index() / 4 + (high ? 8 : 0);
          return read_piece(weight + static_cast<int64_t>(column) * p.width,
                            (share.first + i) * kDepth<T> + lane_index() % 4 * kSize<T>, p.width,
                            kPosts || p.aligned);
        });
      if (tile > 0) __syncthreads();  // the partial sums of the tile before have been read
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
        if (r * kTileRows >= team.rows) break;
        sums[r].finish(team.rows - r * kTileRows, [&](int column, int row, float sum) {
          row += warp_index() * p.most_rows + r * kTileRows;
          partial.store(static_cast<uint32_t>(row * kPartialStride + column), sum);
        });
      }
      __syncthreads();
      constexpr int kRowsOfWarp = kWarp / kTileColumns;
      for (int i = 0; i < kResults; ++i) {
        if (warp_index() * kRowsOfWarp + i * kRowsApart >= team.rows) break;
        const int row = first_row + i * kRowsApart;
        const bool mine = column < here && row < team.rows;
        float sum = 0;
        if (mine)
          for (int w = 0; w < kWarps; ++w)
            sum += partial.load((w * p.most_rows + row) * kPartialStride + column);
        after(row, begin + column, sum, operands[i], mine);
      }
      // Others wait for the results, not for the copies that begin here.
      if (streamed) weights.release();
    }
  }

  // The warp's part of `here` columns. weight(i, high): piece i of column lane / 4, or 8 further.
  template <class Weight>
  UNIFLUID_DEVICE void add_up(Accumulator<T> (&sums)[kTiles], int here, Weight weight) const {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll 2
    for (int i = 0; i < share.count; ++i) {
      const Piece low = g < here ? weight(i, false) : Piece{};
      const Piece high = g + 8 < here ? weight(i, true) : Piece{};
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
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
    const auto project = [&](int row, int column, int token, auto weight, float bias) {
      float sum = 0;
#pragma unroll(kPosts ? 8 : 4)
      for (int c = 0; c < p.channels; ++c)
        sum = fmaf(weight(c), rounded<T>(state.load(token * p.channels + c)), sum);
      sum += bias;
      own.store(row * p.columns + column, sum);
      exchange.hand_out_hidden(row, first_column + column, sum);
    };
    if constexpr (kPosts) {
      const int row = thread() / kTileColumns;
      if (row >= team.rows) return;
      for (int column = thread() % kTileColumns; column < columns; column += kTileColumns) {
        const int at = column * (p.channels + 1);
        project(
            row, column, own_token, [&](int c) { return input.load(at + c); },
            input.load(at + p.channels));
      }
    } else {
      for (int at = thread(); at < team.rows * columns; at += kThreads) {
        const int row = at / columns, column = at % columns;
        const int token = p.row_token[team.row + row] - team.token;
        const T* weight = static_cast<const T*>(p.input_proj) +
                          static_cast<int64_t>(first_column + column) * p.channels;
        project(
            row, column, token, [&](int c) { return to_float(weight[c]); },
            p.input_proj_bias[first_column + column]);
      }
    }
  }

  // The next step's modulations come from far: they are wanted in the second-level cache by then.
  UNIFLUID_DEVICE void prefetch_modulation() const {
    prefetch_l2(modulation + static_cast<int64_t>(p.rows) * p.modulation_width,
                team.rows * p.modulation_width, member * kThreads + thread(), p.members * kThreads);
  }

  // Products of the network: mlp0 and mlp2 of each block, then the final layer. One place in the
  // code for all of them, as the instructions of a step must fit into their cache.
  enum class Kind { expand, contract, finish };
  UNIFLUID_DEVICE void run_product(int index) {
    const Kind kind = index == 2 * p.depth ? Kind::finish
                      : index % 2          ? Kind::contract
                                           : Kind::expand;
    const auto field = [&](StepsField of) {
      return blocks.load(steps_field(min(index / 2, p.depth - 1), of));
    };
    const auto floats = [&](StepsField of) { return reinterpret_cast<const float*>(field(of)); };
    const T* weight = nullptr;
    const float *bias = nullptr, *norm_weight = nullptr, *norm_bias = nullptr;
    const int shift = index / 2 * 3 * p.width, gate = shift + 2 * p.width;
    int first = first_column, count = columns;
    if (kind == Kind::expand) {
      weight = reinterpret_cast<const T*>(field(StepsField::mlp0));
      bias = floats(StepsField::mlp0_bias);
      norm_weight = floats(StepsField::norm_weight);
      norm_bias = floats(StepsField::norm_bias);
    } else if (kind == Kind::contract) {
      weight = reinterpret_cast<const T*>(field(StepsField::mlp2));
      bias = floats(StepsField::mlp2_bias);
    } else {
      const int each = (p.outputs + p.members - 1) / p.members;
      weight = static_cast<const T*>(p.final_linear);
      bias = p.final_linear_bias;
      first = member * each;
      count = min(each, p.outputs - first);
    }
    product(
        weight, first, count, kind != Kind::finish,
        [&](int row, int column) {
          return make_float2(
              load_constant(bias + first + column),
              kind == Kind::contract ? to_float(modulation_row(row)[gate + first + column]) : 0.0f);
        },
        [&] {
          if (kind == Kind::contract)
            load_inner();
          else
            load_normalized(norm_weight, norm_bias, shift);
        },
        [&](int row, int column, float sum, float2 bias_gate, bool mine) {
          sum += bias_gate.x;
          if (kind == Kind::expand) {
            exchange.hand_out_inner(row, first + column, activate<Activation::silu>(sum), mine);
          } else if (!mine) {
            return;
          } else if (kind == Kind::contract) {
            const uint32_t at = static_cast<uint32_t>(row * p.columns + column);
            const float v = fmaf(bias_gate.y, sum, own.load(at));
            own.store(at, v);
            exchange.hand_out_hidden(row, first + column, v);
          } else if (p.network_out) {
            static_cast<T*>(p.network_out)[(team.row + row) * p.network_stride + first + column] =
                from_float<T>(sum);
          } else {
            exchange.hand_out_output(row, first + column, sum);
          }
        });
  }

  // Without a branch where it can be, so that what is read of all pieces comes together.
  template <class U>
  UNIFLUID_DEVICE Piece read_row(const U* row, int k, bool aligned) const {
    if constexpr (kPosts)
      return piece_of(load_constant(reinterpret_cast<const uint4*>(row + (k < p.width ? k : 0))));
    else
      return read_piece(row, k, p.width, aligned);
  }
  UNIFLUID_DEVICE void read_modulation(AffineParts<T>& parts, const T* shifts, int k) const {
    const bool aligned = p.width % kSize<T> == 0;
    parts.shift = read_row(shifts, k, aligned);
    parts.scale = read_row(shifts + p.width, k, aligned);
  }
  // Of the elements 4 i on of the piece.
  UNIFLUID_DEVICE void read_norm(AffineParts<T>& parts, const float* weight, const float* bias,
                                 int k, int i) const {
    parts.weights[i] = read_row(weight, k + 4 * i, p.vectors_aligned);
    parts.biases[i] = read_row(bias, k + 4 * i, p.vectors_aligned);
  }
  // x = norm(hidden) * (1 + scale) + shift, where norm is layer norm, with weight and bias unless
  // null. `shift`: the column of the modulations; scales follow. A warp has one part of kRowsEach
  // rows at a time.
  UNIFLUID_DEVICE void load_normalized(const float* weight, const float* bias, int shift) {
    const int part = warp_index() % kParts, warp_row = warp_index() / kParts;
    const int first_element = run_of<T>(part, 0) + lane_index() * kSize<T>;
    const auto element_of = [&](int i) { return first_element + run_of<T>(0, i); };
    // Posts end where the row does.
    const int end = kPosts ? p.width : p.stride;
    constexpr int kQuads = kSize<T> / 4;
    const auto affine_at = [&](int row, int k) {
      AffineParts<T> parts;
      read_modulation(parts, modulation_row(row) + shift, k);
      Affine<T> a = modulated<T>(parts);
      if (weight)
        for (int i = 0; i < kQuads; ++i) {
          read_norm(parts, weight, bias, k, i);
          learn<T>(a, parts, i);
        }
      return a;
    };
    int rows[kRowsEach];
    Affine<T> affines[kRowsEach][kHeld<T>];
    const auto prepare = [&](int first) {
      for (int j = 0; j < kRowsEach; ++j) rows[j] = first + j * kWarpRows + warp_row;
      if constexpr (kPosts) {
        AffineParts<T> parts[kHeld<T>];
        const T* shifts = modulation_row(min(rows[0], team.rows - 1)) + shift;
#pragma unroll
        for (int i = 0; i < kHeld<T>; ++i) read_modulation(parts[i], shifts, element_of(i));
        if (weight)
#pragma unroll
          for (int i = 0; i < kHeld<T> * kQuads; ++i)
            read_norm(parts[i / kQuads], weight, bias, element_of(i / kQuads), i % kQuads);
#pragma unroll
        for (int i = 0; i < kHeld<T>; ++i) {
          if (element_of(i) >= end) continue;
          affines[0][i] = modulated<T>(parts[i]);
          if (weight)
            for (int quad = 0; quad < kQuads; ++quad) learn<T>(affines[0][i], parts[i], quad);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j)
#pragma unroll
          for (int i = 0; i < kHeld<T>; ++i)
            if (rows[j] < team.rows && element_of(i) < end)
              affines[j][i] = affine_at(rows[j], element_of(i));
      }
    };
    prepare(0);
    const float inverse_size = p.parts.inverse[part];
    exchange.meet();
    for (int first = 0, buffer = 0; first < team.rows; first += kRowsTogether, buffer ^= 1) {
      if (first > 0) prepare(first);
      float held[kRowsEach][kHeld<T>][kSize<T>];
      for (Watch watch;; watch.look_again()) {
        uint32_t other = 0;
#pragma unroll
        for (int j = 0; j < kRowsEach; ++j)
#pragma unroll
          for (int i = 0; i < kHeld<T>; ++i)
            if (rows[j] < team.rows && element_of(i) < end)
              other |= exchange.look_at_hidden(rows[j], element_of(i), held[j][i]);
        if (other == 0) break;
      }
      // visit(k, i, values) for the lane's pieces of row j, in ascending order; i is kHeld for
      // those that are read again
      const auto each = [&](int j, auto visit) {
#pragma unroll
        for (int i = 0; i < kHeld<T>; ++i)
          if (element_of(i) < end) visit(element_of(i), i, held[j][i]);
        for (int i = kHeld<T>; element_of(i) < end; ++i) {
          float values[kSize<T>];
          for (Watch watch; exchange.look_at_hidden(rows[j], element_of(i), values) != 0;)
            watch.look_again();
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
              const float d = kPosts || k + e < p.width ? values[e] - mean : 0.0f;
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
        const Norm norm = norm_of(p.parts, moments, moments_of(j, 0));
        each(j, [&](int k, int i, const float(&values)[kSize<T>]) {
          const Affine<T> a =
              i < kHeld<T> ? affines[j][i < kHeld<T> ? i : 0] : affine_at(rows[j], k);
          float normalized[kSize<T>];
          for (int e = 0; e < kSize<T>; ++e) {
            const float v = fmaf((values[e] - norm.mean) * norm.inverse, a.scale[e], a.shift[e]);
            normalized[e] = kPosts || k + e < p.width ? v : 0.0f;
          }
          store_piece(x, static_cast<uint32_t>(rows[j] * x_stride + k / kSize<T> * 4),
                      piece_of<T>(normalized));
        });
      }
    }
    __syncthreads();
  }

  // x = inner
  UNIFLUID_DEVICE void load_inner() {
    exchange.meet();
    // Posts end where the row does.
    const int row_pieces = kPosts ? p.width / kSize<T> : share.all * 4;
    exchange.receive_inner(row_pieces, [&](int row, int piece, const Piece& values) {
      store_piece(x, static_cast<uint32_t>(row * x_stride + piece * 4), values);
    });
    __syncthreads();
  }

  // ---- the sampler ----

  // The latents after a step, from the network's outputs.
  UNIFLUID_DEVICE void update(int step_index) {
    const DiffusionStep step = p.step_table[step_index];
    exchange.meet();
    for (int at = thread(); at < team.tokens * p.channels; at += kThreads) {
      const int token_index = team.token + at / p.channels, c = at % p.channels;
      const StepsToken token = p.token_table[token_index];
      const bool noisy = !p.flow && step.noise;
      const int64_t draw = static_cast<int64_t>(step_index) * p.tokens + token_index;
      const float noise = noisy ? p.noise[draw * p.channels + c] : 0.0f;
      const int row = token.row - team.row;
      // What there is not is the first once more.
      float outputs[3];
      exchange.receive_outputs({row, token.rows > 1 ? row + 1 : row, row},
                               {c, c, noisy ? p.channels + c : c}, outputs);
      state.store(at, updated(p, step, token, noisy, noise, state.load(at), outputs));
    }
    __syncthreads();
  }

  const StepsParams& p;
  const StepsTeam team;
  const int member, first_column, columns;
  const DepthShare<T> share;
  const int x_stride;
  const Shared<uint32_t> x;       // [rows, x_stride] the inputs of a product
  const Shared<float> partial;    // [warps, rows, kPartialStride]
  const Shared<float> own;        // [rows, columns] hidden, of the block's columns
  const Shared<float> moments;    // of parts of rows, [2, kRowsTogether, kParts, 2]
  const Shared<float> state;      // [tokens, C]
  const Shared<uint64_t> blocks;  // [depth] StepsBlock
  const Shared<float> input;      // [columns, C + 1], see begin_posts
  WeightStream<T> weights;
  RowExchange<T, kPosts> exchange;
  int own_token = 0;              // of this thread's row in the first layer, see begin_posts
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
  if (pass.pair) {
    params.parts = parts_of<bf16>(params.width);
    launch_pair_steps(queue, pass, params);
    return;
  }
  const unsigned blocks =
      static_cast<unsigned>(pass.teams.size()) * static_cast<unsigned>(pass.members);
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    params.parts = parts_of<T>(params.width);
    queue.launch_cooperative(pass.posts ? sampling_steps<T, true> : sampling_steps<T, false>,
                             dim3(blocks), dim3(kThreads), pass.shared, params);
  });
}

}  // namespace unifluid::cuda
