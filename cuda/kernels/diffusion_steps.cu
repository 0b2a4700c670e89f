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
// the order of the warps. Tensor cores take columns as rows of A and rows as columns of B, eight to
// a tile, half of what the other way would waste on one image. A lane holds 8 neighbouring elements
// (bf16), which serve as the depths of two products of 16: in which order a fragment names its
// depths is free as long as both sides agree.
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

// Elements of a row that a lane keeps in registers while it is normalized; wider rows (over 1280)
// are read again.
constexpr int kHeldElements = 40;
constexpr float kNormEps = 1e-6f;
// Pieces that a thread waits for at once.
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
      for (int b = 0; b < p.depth; ++b) run_block(b);
      run_final();
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
  UNIFLUID_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }

  // ---- the exchange of rows ----

  // What was handed out before it can be received after it, by the blocks of the team.
  UNIFLUID_DEVICE void meet() {
    if constexpr (kPosts)
      ++round;
    else
      grid_barrier(p.arrivals, round);
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
  // Looks at elements k .. of a row; those behind the width are 0. False: not all have come.
  UNIFLUID_DEVICE bool look_at_piece(int row, int k, float (&values)[kSize<T>]) const {
    const Posted* from = posted(round, row, k);
    bool all = true;
    for (int i = 0; i < kSize<T>; i += 2) {
      Posted now[2];
      look(from + i, now);
      for (int e = 0; e < 2; ++e) {
        const bool inside = k + i + e < p.width;
        all = all && (!inside || now[e].round == round);
        values[i + e] = inside ? now[e].value : 0.0f;
      }
    }
    return all;
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
      meet();
      __syncthreads();
    }
    for (int tile = 0; tile * kTileColumns < count; ++tile) {
      const int begin = tile * kTileColumns, here = min(kTileColumns, count - begin);
      float2 operands[kResults];
      for (int i = 0; i < kResults; ++i) {
        const int at = thread() + i * kThreads;
        if (at < team.rows * here) operands[i] = before(at / here, begin + at % here);
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
      if (index >= 0) weights.release(unit);
      for (int i = 0; i < kResults; ++i) {
        const int at = thread() + i * kThreads;
        if (at >= team.rows * here) continue;
        const int row = at / here, column = at % here;
        float sum = 0;
        for (int w = 0; w < kWarps; ++w)
          sum += partial.load((w * p.most_rows + row) * kPartialStride + column);
        after(row, begin + column, sum, operands[i]);
      }
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

  UNIFLUID_DEVICE void run_block(int b) {
    const StepsBlock block = p.blocks[b];
    const int shift = b * 3 * p.width, gate = shift + 2 * p.width;
    product(
        static_cast<const T*>(block.mlp0), first_column, columns, 2 * b,
        [&](int, int column) { return make_float2(block.mlp0_bias[first_column + column], 0.0f); },
        [&] { load_normalized(block.norm_weight, block.norm_bias, shift); },
        [&](int row, int column, float sum, float2 bias) {
          hand_out_inner(row, first_column + column, activate<Activation::silu>(sum + bias.x));
        });
    product(
        static_cast<const T*>(block.mlp2), first_column, columns, 2 * b + 1,
        [&](int row, int column) {
          return make_float2(block.mlp2_bias[first_column + column],
                             to_float(modulation_row(row)[gate + first_column + column]));
        },
        [&] { load_inner(); },
        [&](int row, int column, float sum, float2 bias_gate) {
          const uint32_t at = static_cast<uint32_t>(row * p.columns + column);
          const float v = fmaf(bias_gate.y, sum + bias_gate.x, own.load(at));
          own.store(at, v);
          hand_out_hidden(row, first_column + column, v);
        });
  }

  UNIFLUID_DEVICE void run_final() {
    const int each = (p.outputs + p.members - 1) / p.members, first = member * each;
    product(
        static_cast<const T*>(p.final_linear), first, min(each, p.outputs - first), -1,
        [&](int, int column) { return make_float2(p.final_linear_bias[first + column], 0.0f); },
        [&] { load_normalized(nullptr, nullptr, p.depth * 3 * p.width); },
        [&](int row, int column, float sum, float2 bias) {
          sum += bias.x;
          if (p.network_out)
            static_cast<T*>(p.network_out)[(team.row + row) * p.network_stride + first + column] =
                from_float<T>(sum);
          else
            hand_out_output(row, first + column, sum);
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

  // x = norm(hidden) * (1 + scale) + shift, where norm is layer norm, with weight and bias unless
  // null; a warp a row. `shift`: the column of the modulations; scales follow.
  UNIFLUID_DEVICE void load_normalized(const float* weight, const float* bias, int shift) {
    constexpr int kHeld = kHeldElements / kSize<T>;
    const int step = kWarp * kSize<T>, begin = lane_index() * kSize<T>;
    Affine affines[kHeld];
    const auto prepare = [&](int row) {
      if (row >= team.rows) return;
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
        if (begin + i * step < p.stride)
          affines[i] = affine(weight, bias, modulation_row(row) + shift, begin + i * step);
    };
    prepare(warp_index());
    meet();
    for (int row = warp_index(); row < team.rows; row += kWarps) {
      if (row >= kWarps) prepare(row);
      float held[kHeld][kSize<T>];
      receive_row(row, held);
      // visit(k, values, affine) for all pieces of the lane, in ascending order
      const auto each = [&](auto visit) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
          if (begin + i * step < p.stride)
            visit(begin + i * step, held[i], [&] { return affines[i]; });
        for (int k = begin + kHeld * step; k < p.stride; k += step) {
          float values[kSize<T>];
          receive_piece(row, k, values);
          visit(k, values, [&] { return affine(weight, bias, modulation_row(row) + shift, k); });
        }
      };
      float total = 0;
      each([&](int, const float(&values)[kSize<T>], auto) {
        for (int i = 0; i < kSize<T>; ++i) total += values[i];
      });
      const float mean = warp_sum(total) / static_cast<float>(p.width);
      float squares = 0;
      each([&](int k, const float(&values)[kSize<T>], auto) {
        for (int i = 0; i < kSize<T>; ++i) {
          const float d = k + i < p.width ? values[i] - mean : 0.0f;
          squares = fmaf(d, d, squares);
        }
      });
      const float variance = warp_sum(squares) / static_cast<float>(p.width);
      const float inverse = 1.0f / sqrtf(variance + kNormEps);
      each([&](int k, const float(&values)[kSize<T>], auto get_affine) {
        const Affine a = get_affine();
        float normalized[kSize<T>];
        for (int i = 0; i < kSize<T>; ++i) {
          const float v = fmaf((values[i] - mean) * inverse, a.scale[i], a.shift[i]);
          normalized[i] = k + i < p.width ? v : 0.0f;
        }
        store_piece(x, static_cast<uint32_t>(row * x_stride + k / kSize<T> * 4),
                    piece_of<T>(normalized));
      });
    }
    __syncthreads();
  }

  // The lane's pieces of a row of the hidden state, as many as it keeps.
  template <int kHeld>
  UNIFLUID_DEVICE void receive_row(int row, float (&held)[kHeld][kSize<T>]) const {
    const int step = kWarp * kSize<T>, begin = lane_index() * kSize<T>;
    if constexpr (kPosts) {
      for (;;) {
        bool all = true;
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
          if (begin + i * step < p.stride)
            all = look_at_piece(row, begin + i * step, held[i]) && all;
        if (all) return;
        look_again();
      }
    } else {
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
        if (begin + i * step < p.stride) load_hidden(row, begin + i * step, held[i]);
    }
  }
  UNIFLUID_DEVICE void receive_piece(int row, int k, float (&values)[kSize<T>]) const {
    if constexpr (kPosts)
      while (!look_at_piece(row, k, values)) look_again();
    else
      load_hidden(row, k, values);
  }

  // x = inner
  UNIFLUID_DEVICE void load_inner() {
    meet();
    const int row_pieces = share.all * 4, count = team.rows * row_pieces;
    const auto put = [&](int at, const Piece& piece) {
      store_piece(x, static_cast<uint32_t>(at / row_pieces * x_stride + at % row_pieces * 4),
                  piece);
    };
    if constexpr (kPosts) {
      for (int first = thread(); first < count; first += kReceived * kThreads) {
        float values[kReceived][kSize<T>];
        for (;;) {
          bool all = true;
#pragma unroll
          for (int i = 0; i < kReceived; ++i) {
            const int at = first + i * kThreads;
            if (at < count)
              all = look_at_piece(at / row_pieces, at % row_pieces * kSize<T>, values[i]) && all;
          }
          if (all) break;
          look_again();
        }
#pragma unroll
        for (int i = 0; i < kReceived; ++i)
          if (first + i * kThreads < count) put(first + i * kThreads, piece_of<T>(values[i]));
      }
    } else {
      for (int at = thread(); at < count; at += kThreads) {
        const int k = at % row_pieces * kSize<T>;
        Piece piece{};
        if (k < p.width)
          piece =
              piece_of(load_fresh(reinterpret_cast<const uint4*>(inner_row(at / row_pieces) + k)));
        if (k + kSize < T >> p.width) {  // nobody wrote what lies behind the width
          float values[kSize<T>];
          for (int i = 0; i < kSize<T>; ++i)
            values[i] = k + i < p.width ? element<T>(piece, i) : 0.0f;
          piece = piece_of<T>(values);
        }
        put(at, piece);
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
      const auto limited = [limit](float v) { return fminf(fmaxf(v, -limit), limit); };
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
