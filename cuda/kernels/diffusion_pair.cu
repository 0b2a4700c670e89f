// The sampling steps of the diffusion head for the two rows of one guided token, or for one row or
// two that are not: the case that someone waits for, a single image. It is diffusion_steps.cu's
// work with posts, bit for bit, by the same plan; that file says how. What differs is that nothing
// but the exchange itself should take time, so that all sizes but the columns of a block are known
// to the compiler, and between the last post that comes and the posts that leave there is as little
// as can be:
//
//  - Weights and what a norm multiplies by are in registers before the wait. What a norm needs from
//    global memory is asked for one product ahead.
//  - A row's parts are normalized where they come, for all warps to multiply: two barriers. Inputs
//    of mlp2 come to the warp that multiplies them, without one.
//  - A ninth warp, the finisher, adds the partial sums and posts, while the others already make
//    themselves ready for the next wait: on an H200 they came to it later than the posts did, and
//    the one that finished too by another 300 cycles. It has all else that is not a product: biases
//    and gates, the latents, with a step's update and the first layer, and copies of weights that
//    stream.
//  - Those copies begin when the inputs of a product have come, so that they are not in the way of
//    posts and looks.
//
// Barriers are of all nine warps. Partial sums of mlp0 and the final layer, and those of mlp2, are
// in places of their own: a warp may be through with the wait for mlp2's inputs before the finisher
// has read the former. All other shared memory is written after a barrier that its readers have
// passed.
#include "cuda/device/exchange.h"
#include "cuda/device/grid.h"
#include "cuda/device/math.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/diffusion_norm.h"
#include "cuda/kernels/diffusion_steps.h"
#include "cuda/kernels/diffusion_tile.h"
#include "cuda/kernels/diffusion_weights.h"

namespace unifluid::cuda {
namespace {

using namespace steps;

constexpr int kRows = kMostPairRows;
// Behind the warps that multiply.
constexpr int kFinisher = kWarps, kPairThreads = kThreads + kWarp;
// Partial sums of a product.
constexpr int kPartials = kWarps * kTileColumns * kRows;
// Elements of a row that all warps multiply in a piece of each of their lanes that has one.
constexpr int kWidthUnit = kWarps * kDepth<bf16>;
static_assert(kWidthUnit == kRun<bf16>);

// The parts of the square matrices that the block multiplies by, as WeightStream has them: a unit
// is the block's columns of one matrix. The finisher copies all of it. A unit that streams is
// copied in the place of the one before the last, which is the same that is being multiplied.
// kEach: the runs of depth of every warp.
template <int kEach>
class PairWeights {
 public:
  static constexpr int kRuns = kWarps * kEach;

  // The block's columns [first_column, first_column + columns) of every matrix; `blocks` as
  // Pair::blocks, there before `begin`.
  UNIFLUID_DEVICE PairWeights(const StepsParams& params, SharedArena& arena,
                              const Shared<uint64_t>& blocks, int first_column, int columns)
      : p(params),
        blocks(blocks),
        first_column(first_column),
        columns(columns),
        memory(arena.take<uint32_t>(static_cast<uint32_t>(p.slots) * slot_words())),
        own_words(place(warp_index() * kEach, lane_index() / 4)) {
    const int units = 2 * p.depth;
    int staying = units;
    if (p.slots < units) {
      ring = p.slots >= kRing ? kRing : 0;
      staying = p.slots - ring;
    }
    reading = streamed = {units, staying};
    streamed_left = ring ? p.steps * (units - staying) : 0;
  }

  // Units 0, 1, 2, ..: mlp0 and mlp2 of the first block, the second, ..; again in every step.

  // The slot of the next unit, or -1: it is to be read from global memory.
  UNIFLUID_DEVICE int acquire() {
    const bool stays = reading.stays();
    const int slot = stays ? reading.slot : ring ? reading.staying + ring_at : -1;
    advance();
    return slot;
  }
  // This lane's piece i of column lane / 4 or lane / 4 + 8 (`high`) of the unit in `slot`.
  UNIFLUID_DEVICE Piece piece(int slot, int i, bool high) const {
    return load_piece(memory, static_cast<uint32_t>(slot) * slot_words() + own_words +
                                  static_cast<uint32_t>(i * p.columns * 16 + (high ? 128 : 0)));
  }

  // ---- the finisher's ----

  // Copies the first units, and waits for them; a barrier must follow.
  UNIFLUID_DEVICE void begin() {
    for (UnitCursor all = reading; all.units > 0 && all.staying > 0;) {
      if (all.stays()) copy(all.unit, all.slot, 0, kRuns);
      all.advance();
      if (all.unit == 0) break;
    }
    for (int i = 0; i < kRing && streamed_left > 0; ++i) copy_next(i, 0, kRuns);
    cp_async_commit();
    cp_async_wait<0>();
  }
  // Runs [first, last) of the unit that comes in the place of the present one, which all warps have
  // read. A unit takes all its runs, in order.
  UNIFLUID_DEVICE void refill(int first, int last) {
    if (ring > 0 && !reading.stays() && streamed_left > 0) copy_next(ring_at, first, last);
  }
  // Ends the present unit.
  UNIFLUID_DEVICE void advance() {
    const bool streams = ring > 0 && !reading.stays();
    reading.advance();
    if (streams) ring_at ^= 1;
  }

 private:
  static_assert(kRing == 2);

  UNIFLUID_DEVICE uint32_t slot_words() const {
    return static_cast<uint32_t>(kRuns * p.columns * 16);
  }
  // In a slot: of the lane's piece of a run of a column.
  UNIFLUID_DEVICE uint32_t place(int run, int column) const {
    return static_cast<uint32_t>((run * p.columns + column) * 16 + lane_index() % 4 * 4);
  }

  UNIFLUID_DEVICE void copy_next(int at, int first, int last) {
    while (streamed.stays()) streamed.advance();
    copy(streamed.unit, reading.staying + at, first, last);
    if (last < kRuns) return;
    streamed.advance();
    --streamed_left;
  }
  // Eight pieces of 64 bytes at a time: of eight columns, then of those behind them in as many runs
  // as there is room for.
  UNIFLUID_DEVICE void copy(int unit, int slot, int first, int last) const {
    const bf16* from =
        reinterpret_cast<const bf16*>(
            blocks.load(steps_field(unit / 2, unit % 2 ? StepsField::mlp2 : StepsField::mlp0))) +
        static_cast<int64_t>(first_column) * p.width + lane_index() % 4 * kSize<bf16>;
    const uint32_t to = static_cast<uint32_t>(slot) * slot_words();
    const auto copy_runs = [&](int column, int run, int apart) {
      if (column >= columns) return;
      const bf16* at = from + static_cast<int64_t>(column) * p.width + run * kDepth<bf16>;
      uint32_t into = to + place(run, column);
      const uint32_t step = static_cast<uint32_t>(apart * p.columns * 16);
#pragma unroll 4
      for (; run < last; run += apart) {
        cp_async16(memory, into, reinterpret_cast<const uint32_t*>(at), true);
        at += apart * kDepth<bf16>;
        into += step;
      }
    };
    const int g = lane_index() / 4;
    copy_runs(g, first, 1);
    int bits = 0;  // of a number below the columns behind eight
    while ((1 << bits) < columns - 8) ++bits;
    if (columns > 8) copy_runs(8 + (g & ((1 << bits) - 1)), first + (g >> bits), 8 >> bits);
  }

  const StepsParams& p;
  const Shared<uint64_t> blocks;
  const int first_column, columns;
  const Shared<uint32_t> memory;  // [slots, slot_words]
  const uint32_t own_words;       // of a lane's first piece
  int ring = 0;                   // slots of it; `staying` are before them
  int ring_at = 0, streamed_left = 0;
  UnitCursor reading, streamed;
};

// kEach: the width in units of kWidthUnit.
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
        weights(params, arena, blocks, first_column, columns),
        first_posts(params.posts + static_cast<int64_t>(team.row) * params.posts_stride),
        posts_apart(params.rows * params.posts_stride) {}

  UNIFLUID_DEVICE void run() {
    const uint64_t* fields = reinterpret_cast<const uint64_t*>(p.blocks);
    for (uint32_t i = threadIdx.x; i < steps_field(p.depth, StepsField{}); i += kPairThreads)
      blocks.store(i, fields[i]);
    handed_out = first_posts;
    modulation = static_cast<const bf16*>(p.modulation) +
                 static_cast<int64_t>(team.row) * p.modulation_width;
    if (finishes()) begin_latents();
    meet<kPairThreads>();
    if (finishes()) weights.begin();
    meet<kPairThreads>();
    if (finishes())
      finish_all();
    else
      multiply_all();
  }

 private:
  static constexpr int kWidth = kEach * kWidthUnit;
  static constexpr int kInputStride = input_stride(kWidth / 2);
  static constexpr int kRuns = PairWeights<kEach>::kRuns;
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

  // Goes on to the next exchange.
  UNIFLUID_DEVICE void turn() {
    ++round;
    received = handed_out;
    const bool last = post_slot == kPostRounds - 1;
    post_slot = last ? 0 : post_slot + 1;
    handed_out = last ? first_posts : handed_out + posts_apart;
  }
  UNIFLUID_DEVICE const bf16* next_modulation() const {
    return modulation + static_cast<int64_t>(p.rows) * p.modulation_width;
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

  // Outputs of the final layer for each block, of which the last may have fewer or none.
  UNIFLUID_DEVICE int outputs_each() const { return (p.outputs + p.members - 1) / p.members; }
  UNIFLUID_DEVICE int first_output() const { return member * outputs_each(); }
  UNIFLUID_DEVICE int output_count() const {
    return min(outputs_each(), p.outputs - first_output());
  }

  // ---- products ----

  UNIFLUID_DEVICE void multiply_all() {
    read_norm(0);
    for (int step = 0;;) {
      // Who looks before that gets in the way of the outputs that the finisher waits for.
      meet<kPairThreads>();
      if (step + 1 < p.steps) prefetch(next_modulation());
      for (int block = 0; block < p.depth; ++block) {
        // inner = silu(mlp0(norm(hidden)))
        Affine<bf16> affines[kPieces];
        settle_norm(affines, learned);
        Weights w;
        read_weights(w, block, StepsField::mlp0);
        turn();
        receive_normalized(affines);
        multiply(w, 0);
        read_norm(block + 1);
        // hidden += gate * mlp2(inner)
        read_weights(w, block, StepsField::mlp2);
        turn();
        receive_inner();
        multiply(w, 1);
      }
      // outputs = final_linear(norm(hidden))
      const int count = output_count();
      if (count > 0) {
        Weights w;
        read_weights(w, static_cast<const bf16*>(p.final_linear), first_output(), count);
        Affine<bf16> affines[kPieces];
        settle_norm(affines, false);
        turn();
        receive_normalized(affines);
        multiply(w, 0);
      } else {  // the inputs are for others
        turn();
      }
      if (++step == p.steps) return;
      modulation = next_modulation();
      read_norm(0);
      turn();
    }
  }

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
    const bf16* const from =
        settled(weight + static_cast<int64_t>(first + lane_index() / 4) * kWidth +
                warp_index() * kEach * kDepth<bf16> + lane_index() % 4 * kSize<bf16>);
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
    meet<kPairThreads>();
  }

  // ---- what comes after products: the finisher's ----

  UNIFLUID_DEVICE void finish_all() {
    for (int step = 0; step < p.steps; ++step) {
      project_input();
      meet<kPairThreads>();
      read_step(p.first_step + step);
      for (int block = 0; block < p.depth; ++block) {
        expand(block);
        contract(block);
      }
      put_out();
      if (p.network_out) return;
      modulation = next_modulation();
      turn();
      update();
    }
    if (member > 0 || !has_latent) return;
    p.state[(team.token + token_index) * p.channels + channel()] = latent;
    if (p.last) p.token_table[team.token + token_index].out[channel()] = latent;
  }

  // The lane's, once the warps have multiplied.
  UNIFLUID_DEVICE float product(int place) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      sum += partial.load(product_at +
                          static_cast<uint32_t>(place * kPartials + w * kTileColumns * kRows));
    return sum;
  }
  UNIFLUID_DEVICE bool finishes_one(int count) const {
    return own_column() < count && own_row() < team.rows;
  }

  // The inputs of mlp2 of the block before are used up; when those of the present product have
  // come, the next weights may come in the place of its own.
  UNIFLUID_DEVICE void refill_contracted(int block) {
    if (block == 0) return;
    const int row = min(own_row(), team.rows - 1), apart = kWidth / kTileColumns;
    receive(received + row * p.posts_stride + post_place<bf16>(own_column() * apart), round);
    weights.refill(0, kRuns);
    weights.advance();
    cp_async_commit();
  }

  // inner = silu(mlp0(norm(hidden)))
  UNIFLUID_DEVICE void expand(int block) {
    const bool mine = finishes_one(columns);
    const int column = first_column + own_column();
    const float bias = mine ? load_constant(floats(block, StepsField::mlp0_bias) + column) : 0.0f;
    turn();
    Posted* const to = settled(handed_out + inner_place);
    refill_contracted(block);
    // From here on all warps have read the weights of this product. Half of the next between two
    // barriers keeps nobody waiting.
    meet<kPairThreads>();
    weights.refill(0, kRuns / 2);
    meet<kPairThreads>();
    weights.refill(kRuns / 2, kRuns);
    weights.advance();
    cp_async_commit();
    cp_async_wait<1>();  // all but those
    meet<kPairThreads>();
    const float v = activate<Activation::silu>(product(0) + bias);
    const float next = __shfl_down_sync(kAllLanes, v, kTileColumns);
    if (mine && own_row() == 0)
      post(to, __uint_as_float(pack_bf16(v, team.rows > 1 ? next : 0.0f)), round + 1);
  }
  // hidden += gate * mlp2(inner)
  UNIFLUID_DEVICE void contract(int block) {
    const bool mine = finishes_one(columns);
    const int column = first_column + own_column();
    float bias = 0, gate = 0;
    if (mine) {
      bias = load_constant(floats(block, StepsField::mlp2_bias) + column);
      gate = to_float(modulation_row(own_row())[(block * 3 + 2) * kWidth + column]);
    }
    turn();
    Posted* const to = settled(handed_out + hidden_place);
    cp_async_wait<0>();
    meet<kPairThreads>();
    own = fmaf(gate, product(1) + bias, own);
    if (mine) post(to, own, round + 1);
  }
  // outputs = final_linear(norm(hidden))
  UNIFLUID_DEVICE void put_out() {
    const int count = output_count(), column = first_output() + own_column();
    const bool mine = finishes_one(count);
    const float bias = mine ? load_constant(p.final_linear_bias + column) : 0.0f;
    turn();
    Posted* const to = settled(handed_out + own_row() * p.posts_stride + column);
    refill_contracted(p.depth);
    if (count <= 0) return;
    for (int i = 0; i < 3; ++i) meet<kPairThreads>();
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
    // What there is not is set too, so that no register holds on to what there was.
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const auto read = [&](const auto* row) {
        return piece_of(load_constant(reinterpret_cast<const uint4*>(row)));
      };
      const int k = element_of(i);
      const bool has = has_piece(i);
      norm[i].shift = has ? read(shifts + k) : Piece{};
      norm[i].scale = has ? read(shifts + kWidth + k) : Piece{};
#pragma unroll
      for (int quad = 0; quad < 2; ++quad) {
        norm[i].weights[quad] = has && learned ? read(weight + k + 4 * quad) : Piece{};
        norm[i].biases[quad] = has && learned ? read(bias + k + 4 * quad) : Piece{};
      }
    }
  }

  // What that makes of normalized values; `has_weights` is `learned`, or known to be false.
  UNIFLUID_DEVICE void settle_norm(Affine<bf16> (&affines)[kPieces], bool has_weights) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      affines[i] = modulated<bf16>(norm[i]);
      if (has_weights)
        for (int quad = 0; quad < 2; ++quad) learn<bf16>(affines[i], norm[i], quad);
      for (int e = 0; e < kSize<bf16>; ++e) {
        for (float* v : {&affines[i].scale[e], &affines[i].shift[e]})
          *v = __uint_as_float(settled(__float_as_uint(*v)));
      }
    }
  }

  // x = norm(hidden) * (1 + scale) + shift
  UNIFLUID_DEVICE void receive_normalized(const Affine<bf16> (&affines)[kPieces]) {
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
    meet<kPairThreads>();
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
    meet<kPairThreads>();
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
    constexpr int kLine = 128 / sizeof(bf16);
    const int count = team.rows * p.modulation_width;
    for (int i = (member * kThreads + static_cast<int>(threadIdx.x)) * kLine; i < count;
         i += p.members * kThreads * kLine)
      prefetch_l2(next + i);
  }

  // ---- the sampler: the finisher's too ----

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
  PairWeights<kEach> weights;
  Posted* const first_posts;  // the team's, of the first of kPostRounds
  const int posts_apart;
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
__global__ void __launch_bounds__(kPairThreads, 1) sampling_steps_of_pair(StepsParams params) {
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
  queue.launch_cooperative(kernel, dim3(blocks), dim3(kPairThreads), pass.shared, params);
}

}  // namespace unifluid::cuda
