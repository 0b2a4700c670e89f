// The sampling steps of the diffusion head for the two rows of one guided token, or for one row or
// two that are not: the case that someone waits for, a single image. It is diffusion_steps.cu's
// work with posts, bit for bit, by the same plan; that file says how. What differs is that nothing
// but the exchange itself should take time, so that all sizes but the columns of a block are known
// to the compiler, and between the last post that comes and the posts that leave there is as little
// as can be:
//
//  - Weights, biases, gates and what a norm multiplies by are in registers before the wait. What a
//    norm needs from global memory is asked for one product ahead.
//  - A row's parts are normalized where they come, for all warps to multiply: two barriers. Inputs
//    of mlp2 come to the warp that multiplies them, without one.
//  - One warp, the finisher, adds the partial sums, posts, and has the latents: a step's update and
//    the first layer are its own work, while the others already look for the next hidden state. It
//    is the last one, since that has the least of a row to normalize.
//  - Copies of weights that stream come after the posts.
//
// Barriers. Partial sums of mlp0 and the final layer, and those of mlp2, are in places of their
// own: a warp may be through with the wait for mlp2's inputs before the finisher has read the
// former. All other shared memory is written after a barrier that its readers have passed.
#include "cuda/device/exchange.h"
#include "cuda/device/grid.h"
#include "cuda/device/math.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/diffusion_elements.h"
#include "cuda/kernels/diffusion_steps.h"
#include "cuda/kernels/diffusion_tile.h"
#include "cuda/kernels/diffusion_weights.h"

namespace unifluid::cuda {
namespace {

using namespace steps;

constexpr int kRows = kMostPairRows;
constexpr int kFinisher = kWarps - 1;
// Partial sums of a product.
constexpr int kPartials = kWarps * kTileColumns * kRows;
// Elements of a row that all warps multiply in a piece of each of their lanes that has one.
constexpr int kWidthUnit = kWarps * kDepth<bf16>;
static_assert(kWidthUnit == kRun<bf16>);

// kEach: the width in such units.
template <int kEach>
class Pair {
 public:
  UNIFLUID_DEVICE Pair(const StepsParams& params, SharedArena& arena)
      : p(params),
        team(params.team_table[blockIdx.x / params.members]),
        member(static_cast<int>(blockIdx.x) % params.members),
        first_column(member * params.columns),
        columns(min(params.columns, kWidth - first_column)),
        x(arena.take<uint32_t>(kRows * kInputStride)),
        partial(arena.take<float>(2 * kPartials)),
        moments(arena.take<float>(kRows * kParts * 2)),
        blocks(arena.take<uint64_t>(steps_field(params.depth, StepsField{}))),
        input_at(settled(static_cast<uint32_t>(min(lane_index() / 4, team.rows - 1) * kInputStride +
                                               (warp_index() * kEach * 4 + lane_index() % 4) * 4))),
        partial_at(settled(
            static_cast<uint32_t>((warp_index() * kTileColumns + lane_index() / 4) * kRows))),
        product_at(settled(static_cast<uint32_t>(own_column() * kRows + own_row()))),
        moments_at(settled(static_cast<uint32_t>(norm_row() * kParts * 2))),
        inverse_size(settled(piece_of<float>({params.parts.inverse[part()], 0, 0, 0}).word[0])),
        inner_place(settled(first_column + own_column())),
        hidden_place(settled(own_row() * params.posts_stride +
                             post_place<bf16>(first_column + own_column()))),
        weights(params, arena, blocks, first_column, columns) {}

  UNIFLUID_DEVICE void run() {
    const uint64_t* fields = reinterpret_cast<const uint64_t*>(p.blocks);
    for (uint32_t i = threadIdx.x; i < steps_field(p.depth, StepsField{}); i += kThreads)
      blocks.store(i, fields[i]);
    handed_out = p.posts + static_cast<int64_t>(team.row) * p.posts_stride;
    modulation = static_cast<const bf16*>(p.modulation) +
                 static_cast<int64_t>(team.row) * p.modulation_width;
    if (finishes()) begin_latents();
    __syncthreads();
    weights.begin();
    read_norm(0);
    for (int step = 0; step < p.steps; ++step) {
      if (finishes()) project_input();
      // Who looks before that gets in the way of the outputs that the finisher waits for.
      __syncthreads();
      const bf16* next = modulation + static_cast<int64_t>(p.rows) * p.modulation_width;
      if (step + 1 < p.steps) prefetch(next);
      if (finishes()) read_step(p.first_step + step);
      for (int block = 0; block < p.depth; ++block) {
        expand(block);
        contract(block);
      }
      finish();
      if (p.network_out) return;
      if (step + 1 < p.steps) {
        modulation = next;
        read_norm(0);
      }
      meet();
      if (finishes()) update();
    }
    if (member > 0 || !finishes() || !has_latent) return;
    p.state[(team.token + token_index) * p.channels + channel()] = latent;
    if (p.last) p.token_table[team.token + token_index].out[channel()] = latent;
  }

 private:
  static constexpr int kWidth = kEach * kWidthUnit;
  static constexpr int kInputStride = input_stride(kWidth / 2);
  // Pieces that a lane normalizes: of its part of a row, which is every fourth run.
  static constexpr int kPieces = (kEach + kParts - 1) / kParts;
  // Pairs of words of inputs of mlp2 that a lane waits for, of those of its warp.
  static constexpr int kPairs = kEach * kDepth<bf16> / 2, kLooks = (kPairs + kWarp - 1) / kWarp;

  UNIFLUID_DEVICE static bool finishes() { return warp_index() == kFinisher; }
  // Of the finisher's lanes: the column of a product, in the block's, and the row.
  UNIFLUID_DEVICE static int own_column() { return lane_index() % kTileColumns; }
  UNIFLUID_DEVICE static int own_row() { return lane_index() / kTileColumns; }
  // Likewise, of the token `token_index`.
  UNIFLUID_DEVICE static int channel() { return lane_index() % kMostPairChannels; }

  UNIFLUID_DEVICE void meet() {
    ++round;
    received = handed_out;
    post_slot = post_slot == kPostRounds - 1 ? 0 : post_slot + 1;
    handed_out = p.posts + (static_cast<int64_t>(post_slot) * p.rows + team.row) * p.posts_stride;
  }
  UNIFLUID_DEVICE const bf16* modulation_row(int row) const {
    return modulation + static_cast<int64_t>(row) * p.modulation_width;
  }
  UNIFLUID_DEVICE uint64_t field(int block, StepsField of) const {
    return blocks.load(steps_field(block, of));
  }
  UNIFLUID_DEVICE const float* floats(int block, StepsField of) const {
    return reinterpret_cast<const float*>(field(block, of));
  }

  // ---- products ----

  // A lane's pieces of the columns lane / 4, and 8 further; zeros where there are none.
  struct Weights {
    Piece low[kEach], high[kEach];
  };
  // read(i, high)
  template <class Read>
  UNIFLUID_DEVICE static void read_weights(Weights& w, int count, Read read) {
    const int g = lane_index() / 4;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      w.low[i] = g < count ? read(i, false) : Piece{};
      w.high[i] = g + 8 < count ? read(i, true) : Piece{};
    }
  }
  UNIFLUID_DEVICE static void read_weights(Weights& w, const bf16* weight, int first, int count) {
    const bf16* from = weight + static_cast<int64_t>(first + lane_index() / 4) * kWidth +
                       warp_index() * kEach * kDepth<bf16> + lane_index() % 4 * kSize<bf16>;
    read_weights(w, count, [&](int i, bool high) {
      return piece_of(load_constant(
          reinterpret_cast<const uint4*>(from + (high ? 8 * kWidth : 0) + i * kDepth<bf16>)));
    });
  }
  UNIFLUID_DEVICE void read_weights(Weights& w, int block, StepsField matrix) {
    const int slot = weights.acquire();
    if (slot >= 0)
      read_weights(w, columns, [&](int i, bool high) { return weights.piece(slot, i, high); });
    else
      read_weights(w, reinterpret_cast<const bf16*>(field(block, matrix)), first_column, columns);
  }

  // The warp's part of a product, of what is in `x`, for the finisher.
  UNIFLUID_DEVICE void multiply(const Weights& w, int place) const {
    Piece in[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) in[i] = load_piece(x, input_at + static_cast<uint32_t>(i * 16));
    Accumulator<bf16> sums;
#pragma unroll
    for (int i = 0; i < kEach; ++i) sums.add(w.low[i], w.high[i], in[i]);
    sums.finish(kRows, [&](int column, int row, float sum) {
      const int from_first = place * kPartials + (column - lane_index() / 4) * kRows + row;
      partial.store(partial_at + static_cast<uint32_t>(from_first), sum);
    });
    __syncthreads();
  }
  // Of the finisher's lane.
  UNIFLUID_DEVICE float product(int place) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      sum += partial.load(product_at +
                          static_cast<uint32_t>(place * kPartials + w * kTileColumns * kRows));
    return sum;
  }
  UNIFLUID_DEVICE bool finishes_one(int count) const {
    return finishes() && own_column() < count && own_row() < team.rows;
  }

  // inner = silu(mlp0(norm(hidden)))
  UNIFLUID_DEVICE void expand(int block) {
    Weights w;
    read_weights(w, block, StepsField::mlp0);
    const bool mine = finishes_one(columns);
    const int column = first_column + own_column();
    const float bias = mine ? load_constant(floats(block, StepsField::mlp0_bias) + column) : 0.0f;
    meet();
    Posted* const to = settled(handed_out + inner_place);
    receive_normalized();
    multiply(w, 0);
    if (finishes()) {
      const float v = activate<Activation::silu>(product(0) + bias);
      const float next = __shfl_down_sync(kAllLanes, v, kTileColumns);
      if (mine && own_row() == 0)
        post(to, __uint_as_float(pack_bf16(v, team.rows > 1 ? next : 0.0f)), round + 1);
    }
    weights.release();
    read_norm(block + 1);
  }
  // hidden += gate * mlp2(inner)
  UNIFLUID_DEVICE void contract(int block) {
    Weights w;
    read_weights(w, block, StepsField::mlp2);
    const bool mine = finishes_one(columns);
    const int column = first_column + own_column();
    float bias = 0, gate = 0;
    if (mine) {
      bias = load_constant(floats(block, StepsField::mlp2_bias) + column);
      gate = to_float(modulation_row(own_row())[(block * 3 + 2) * kWidth + column]);
    }
    meet();
    Posted* const to = settled(handed_out + hidden_place);
    receive_inner();
    multiply(w, 1);
    if (finishes()) {
      const float v = fmaf(gate, product(1) + bias, own);
      own = v;
      if (mine) post(to, v, round + 1);
    }
    weights.release();
  }
  // outputs = final_linear(norm(hidden))
  UNIFLUID_DEVICE void finish() {
    const int each = (p.outputs + p.members - 1) / p.members, first = member * each;
    const int count = min(each, p.outputs - first), column = first + own_column();
    if (count <= 0) {  // the inputs are for others
      meet();
      return;
    }
    Weights w;
    read_weights(w, static_cast<const bf16*>(p.final_linear), first, count);
    const bool mine = finishes_one(count);
    const float bias = mine ? load_constant(p.final_linear_bias + column) : 0.0f;
    meet();
    Posted* const to = settled(handed_out + own_row() * p.posts_stride + column);
    receive_normalized();
    multiply(w, 0);
    if (!mine) return;
    const float sum = product(0) + bias;
    if (p.network_out)
      static_cast<bf16*>(p.network_out)[(team.row + own_row()) * p.network_stride + column] =
          from_float<bf16>(sum);
    else
      post(to, sum, round + 1);
  }

  // ---- the exchange of rows ----

  // Where the lane's piece i begins in its part of a row; kEach may leave the last to some parts.
  UNIFLUID_DEVICE static int part() { return warp_index() % kParts; }
  UNIFLUID_DEVICE static int norm_row() { return warp_index() / kParts; }
  UNIFLUID_DEVICE static bool has_piece(int i) { return i * kParts + part() < kEach; }
  UNIFLUID_DEVICE static int element_of(int i) {
    return run_of<bf16>(part(), i) + lane_index() * kSize<bf16>;
  }

  // Waits for those pairs of words `at(i)` that the lane has. What has come is not looked at again:
  // all blocks read the same words at the same time, and posts have to get past that.
  template <int kCount, class At, class Has>
  UNIFLUID_DEVICE void receive_all(Posted (&now)[kCount][2], At at, Has has) const {
    bool missing[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) missing[i] = has(i);
    for (Watch watch;; watch.look_again()) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (missing[i]) look(at(i), now[i]);
      uint32_t any = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const uint32_t other = has(i) ? (now[i][0].round ^ round) | (now[i][1].round ^ round) : 0;
        missing[i] = other != 0;
        any |= other;
      }
      if (any == 0) break;
    }
  }

  // Asks for what the norm before block `block`, or the final layer, multiplies by.
  UNIFLUID_DEVICE void read_norm(int block) {
    const bf16* shifts = modulation_row(min(norm_row(), team.rows - 1)) + block * 3 * kWidth;
    learned = block < p.depth && field(block, StepsField::norm_weight) != 0;
    const float *weight = nullptr, *bias = nullptr;
    if (learned) {
      weight = floats(block, StepsField::norm_weight);
      bias = floats(block, StepsField::norm_bias);
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (!has_piece(i)) continue;
      const auto read = [&](const auto* row) {
        return piece_of(load_constant(reinterpret_cast<const uint4*>(row)));
      };
      const int k = element_of(i);
      norm[i].shift = read(shifts + k);
      norm[i].scale = read(shifts + kWidth + k);
      if (!learned) continue;
      for (int quad = 0; quad < 2; ++quad) {
        norm[i].weights[quad] = read(weight + k + 4 * quad);
        norm[i].biases[quad] = read(bias + k + 4 * quad);
      }
    }
  }

  // x = norm(hidden) * (1 + scale) + shift
  UNIFLUID_DEVICE void receive_normalized() {
    Affine<bf16> affines[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      affines[i] = modulated<bf16>(norm[i]);
      if (!learned) continue;
      for (int quad = 0; quad < 2; ++quad) learn<bf16>(affines[i], norm[i], quad);
    }
    const int row = norm_row();
    const bool mine = row < team.rows;
    float held[kPieces][kSize<bf16>];
    if (mine) {
      const Posted* from = received + row * p.posts_stride + post_place<bf16>(element_of(0));
      Posted now[kPieces * 4][2];
      receive_all(
          now, [&](int i) { return from + run_of<bf16>(0, i / 4) + i % 4 * 2 * kWarp; },
          [&](int i) { return has_piece(i / 4); });
#pragma unroll
      for (int i = 0; i < kPieces * kSize<bf16>; ++i)
        held[i / kSize<bf16>][i % kSize<bf16>] = now[i / 2][i % 2].value;
      float sum = 0, squares = 0;
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        if (has_piece(i))
          for (int e = 0; e < kSize<bf16>; ++e) sum += held[i][e];
      sum = warp_sum(sum);
      const float mean = sum * __uint_as_float(inverse_size);
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        if (has_piece(i))
          for (int e = 0; e < kSize<bf16>; ++e) {
            const float d = held[i][e] - mean;
            squares = fmaf(d, d, squares);
          }
      squares = warp_sum(squares);
      if (lane_index() == 0) {
        moments.store(moments_at + static_cast<uint32_t>(part() * 2), sum);
        moments.store(moments_at + static_cast<uint32_t>(part() * 2 + 1), squares);
      }
    }
    __syncthreads();
    if (mine) {
      const Norm of_row = norm_of(p.parts, moments, moments_at);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        if (!has_piece(i)) continue;
        float normalized[kSize<bf16>];
        for (int e = 0; e < kSize<bf16>; ++e)
          normalized[e] = fmaf((held[i][e] - of_row.mean) * of_row.inverse, affines[i].scale[e],
                               affines[i].shift[e]);
        store_piece(x, static_cast<uint32_t>(row * kInputStride + element_of(i) / 2),
                    piece_of<bf16>(normalized));
      }
    }
    __syncthreads();
  }

  // x = inner, just what the warp multiplies. A word has an element of both rows.
  UNIFLUID_DEVICE void receive_inner() {
    const int first = warp_index() * kPairs + lane_index();
    const Posted* from = received + 2 * first;
    Posted now[kLooks][2];
    const auto has = [](int i) {
      return (i + 1) * kWarp <= kPairs || i * kWarp + lane_index() < kPairs;
    };
    receive_all(
        now, [&](int i) { return from + i * 2 * kWarp; }, has);
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      if (!has(i)) continue;
      const uint32_t even = __float_as_uint(now[i][0].value),
                     odd = __float_as_uint(now[i][1].value);
      const uint32_t at = static_cast<uint32_t>(first + i * kWarp);
      x.store(at, (even & 0xffffu) | odd << 16);
      x.store(kInputStride + at, even >> 16 | (odd & 0xffff0000u));
    }
    __syncwarp();
  }

  // The next step's modulations come from far: they are wanted in the second-level cache by then.
  UNIFLUID_DEVICE void prefetch(const bf16* next) const {
    prefetch_l2(next, team.rows * p.modulation_width,
                member * kThreads + static_cast<int>(threadIdx.x), p.members * kThreads);
  }

  // ---- the sampler: the finisher's ----

  UNIFLUID_DEVICE void begin_latents() {
    token_index = lane_index() / kMostPairChannels;
    has_latent = token_index < team.tokens && channel() < p.channels;
    latent = has_latent ? p.state[(team.token + token_index) * p.channels + channel()] : 0.0f;
    if (has_latent) token = p.token_table[team.token + token_index];
    if (own_row() < team.rows)
      first_of_token = (p.row_token[team.row + own_row()] - team.token) * kMostPairChannels;
    const bool mine = finishes_one(columns);
    const int column = first_column + own_column();
    const bf16* weight =
        static_cast<const bf16*>(p.input_proj) + static_cast<int64_t>(column) * p.channels;
#pragma unroll
    for (int c = 0; c < kMostPairChannels; c += 2) {
      const float low = mine && c < p.channels ? to_float(weight[c]) : 0.0f;
      const float high = mine && c + 1 < p.channels ? to_float(weight[c + 1]) : 0.0f;
      first_layer[c / 2] = pack_bf16(low, high);
    }
    first_bias = mine ? p.input_proj_bias[column] : 0.0f;
  }

  // hidden = input_proj(latents). A channel that is none adds 0 to what is not -0.
  UNIFLUID_DEVICE void project_input() {
    const float in = rounded<bf16>(latent);
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kMostPairChannels; ++c)
      sum = fmaf(c % 2 ? __uint_as_float(first_layer[c / 2] & 0xffff0000u)
                       : __uint_as_float(first_layer[c / 2] << 16),
                 __shfl_sync(kAllLanes, in, first_of_token + c), sum);
    own = sum + first_bias;
    if (finishes_one(columns)) post(handed_out + hidden_place, own, round + 1);
  }

  // What the update after a step needs beside the outputs.
  UNIFLUID_DEVICE void read_step(int index) {
    if (p.network_out || !has_latent) return;
    step = p.step_table[index];
    noisy = !p.flow && step.noise;
    const int64_t draw = static_cast<int64_t>(index) * p.tokens + team.token + token_index;
    noise = noisy ? p.noise[draw * p.channels + channel()] : 0.0f;
  }

  UNIFLUID_DEVICE void update() {
    if (has_latent) {
      // What there is not is the first once more.
      const Posted* row = received + (token.row - team.row) * p.posts_stride + channel();
      const Posted* const at[3] = {row, token.rows > 1 ? row + p.posts_stride : row,
                                   noisy ? row + p.channels : row};
      float outputs[3];
      receive(at, round, outputs);
      latent = updated(p, step, token, noisy, noise, latent, outputs);
    }
    __syncwarp();
  }

  const StepsParams& p;
  const StepsTeam team;
  const int member, first_column, columns;
  const Shared<uint32_t> x;       // [rows, kInputStride] the inputs of a product
  const Shared<float> partial;    // [2, warps, columns, rows]
  const Shared<float> moments;    // of parts of rows, [rows, kParts, 2]
  const Shared<uint64_t> blocks;  // [depth] StepsBlock
  // Of this lane: its first inputs in `x`; partial sums that it stores, and that the finisher adds;
  // the row's moments; the finisher's posts, of inner and of hidden.
  const uint32_t input_at, partial_at, product_at, moments_at;
  const uint32_t inverse_size;  // 1 / the size of its part of a row
  const int inner_place, hidden_place;
  WeightStream<bf16, kEach> weights;
  uint32_t round = 0;
  // The team's posts of this round and of the next, and where that is among kPostRounds.
  const Posted* received = nullptr;
  Posted* handed_out = nullptr;
  int post_slot = 0;
  const bf16* modulation = nullptr;  // of this step and the team's first row
  AffineParts<bf16> norm[kPieces];   // of the next norm
  bool learned = false;              // it has a weight and a bias
  // The finisher's lane: hidden, of its row and column; what the first layer multiplies by; which
  // lane has the first latent of the row's token.
  float own = 0, first_bias = 0;
  uint32_t first_layer[kMostPairChannels / 2];  // pairs of them
  int first_of_token = 0;
  // Its latent, of the token `token_index` of the team; what is known of that, and of this step.
  bool has_latent = false, noisy = false;
  int token_index = 0;
  float latent = 0, noise = 0;
  StepsToken token{};
  DiffusionStep step{};
};

template <int kEach>
__global__ void __launch_bounds__(kThreads, 1) sampling_steps_of_pair(StepsParams params) {
  SharedArena arena;
  Pair<kEach>(params, arena).run();
}

template <int... kEach>
auto kernel_of(int each, std::integer_sequence<int, kEach...>) {
  void (*kernel)(StepsParams) = nullptr;
  ((each == kEach + 1 ? void(kernel = sampling_steps_of_pair<kEach + 1>) : void()), ...);
  return kernel;
}

}  // namespace

bool pair_fits(const DiffusionHeadWeights& head, DType type, const StepsPass& pass) {
  return type == DType::bf16 && pass.most_rows <= kRows && head.width % kWidthUnit == 0 &&
         head.width <= kMostPairWidth && head.channels <= kMostPairChannels &&
         pass.columns <= kTileColumns;
}

size_t pair_bytes(const DiffusionHeadWeights& head) {
  SharedBytes bytes;
  bytes.take<uint32_t>(static_cast<size_t>(kRows * input_stride(static_cast<int>(head.width) / 2)))
      .take<float>(2 * kPartials)
      .take<float>(kRows * kParts * 2)
      .take<uint64_t>(static_cast<size_t>(head.depth) * sizeof(StepsBlock) / sizeof(uint64_t));
  return bytes.used;
}

void launch_pair_steps(Queue& queue, const StepsPass& pass, const StepsParams& params) {
  const unsigned blocks =
      static_cast<unsigned>(pass.teams.size()) * static_cast<unsigned>(pass.members);
  const auto kernel = kernel_of(params.width / kWidthUnit,
                                std::make_integer_sequence<int, kMostPairWidth / kWidthUnit>());
  queue.launch_cooperative(kernel, dim3(blocks), dim3(kThreads), pass.shared, params);
}

}  // namespace unifluid::cuda
