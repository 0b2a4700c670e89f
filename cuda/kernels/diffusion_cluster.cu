// All sampling steps of the diffusion head for many rows at once, on clusters of blocks (sm_90).
//
// What diffusion_steps.cu says of steps, products and rows holds here too, and so do its bits. With
// many rows its blocks wait mostly for each other, by barriers in global memory, and for rows that
// each of them normalizes again. Here a team is a cluster of 16 blocks, which share a part of the
// chip: their barrier is the hardware's. A block has a sixteenth of the columns of every matrix, 80
// of a head of UniFluid's width, so that all of a matrix streams through the shared memory of a
// team in each product, slots ahead of its use; up to 32 rows share what it costs. Teams do not
// wait for each other.
//
// Rows go through the second-level cache. A block normalizes its own rows, two at most, and hands
// them out as operands; of those each warp reads just the depths that it multiplies by, straight
// into the registers of its fragments, where they stay for all columns of the block.
#include <type_traits>

#include "cuda/device/cp_async.h"
#include "cuda/device/grid.h"
#include "cuda/device/math.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "cuda/kernels/diffusion_cluster.h"
#include "cuda/kernels/diffusion_elements.h"
#include "cuda/kernels/diffusion_tile.h"

namespace unifluid::cuda {
namespace {

using namespace steps;
using cluster::kMembers;

// A head of kRuns * 256 columns; up to kTiles * 8 rows. One block at work.
template <int kRuns, int kTiles>
class ClusterWorker {
 public:
  static constexpr int kWidth = kRuns * kWarps * kDepth<bf16>;
  // Of a block: kRuns tiles of columns.
  static constexpr int kColumns = kWidth / kMembers;
  static constexpr int kColumnTiles = kRuns;
  static_assert(kColumns == kColumnTiles * kTileColumns);
  static constexpr int kRows = kTiles * kTileRows;
  static constexpr int kOwnRows = (kRows + kMembers - 1) / kMembers;

  UNIFLUID_DEVICE ClusterWorker(const StepsParams& params, SharedArena& arena)
      : p(params),
        team(params.team_table[blockIdx.x / kMembers]),
        member(static_cast<int>(blockIdx.x) % kMembers),
        first_column(member * kColumns),
        slots(arena.take<uint32_t>(kSlots * kSlotWords)),
        partial(arena.take<float>(kColumnTiles * kPartial)),
        own(arena.take<float>(kRows * kColumns)),
        moments(arena.take<float>(kWarps * 2)),
        biases(arena.take<float>(static_cast<uint32_t>(2 * params.depth * kColumns))),
        input(arena.take<float>(static_cast<uint32_t>(kColumns * (params.channels + 1)))),
        state(arena.take<float>(static_cast<uint32_t>(kRows * params.channels))),
        blocks(arena.take<uint64_t>(steps_field(params.depth, StepsField{}))) {}

  static size_t shared_bytes(int64_t channels, int64_t depth) {
    return SharedBytes{}
        .take<uint32_t>(kSlots * kSlotWords)
        .template take<float>(kColumnTiles * kPartial)
        .template take<float>(kRows * kColumns)
        .template take<float>(kWarps * 2)
        .template take<float>(static_cast<size_t>(2 * depth * kColumns))
        .template take<float>(static_cast<size_t>(kColumns * (channels + 1)))
        .template take<float>(static_cast<size_t>(kRows * channels))
        .template take<uint64_t>(static_cast<size_t>(depth) * sizeof(StepsBlock) / 8)
        .used;
  }

  UNIFLUID_DEVICE void run() {
    for (int i = thread(); i < team.tokens * p.channels; i += kThreads)
      state.store(static_cast<uint32_t>(i), p.state[team.token * p.channels + i]);
    const uint64_t* fields = reinterpret_cast<const uint64_t*>(p.blocks);
    for (uint32_t i = threadIdx.x; i < steps_field(p.depth, StepsField{}); i += kThreads)
      blocks.store(i, fields[i]);
    const int each = p.channels + 1;
    for (int at = thread(); at < kColumns * each; at += kThreads) {
      const int column = first_column + at / each, c = at % each;
      input.store(
          static_cast<uint32_t>(at),
          c < p.channels
              ? to_float(static_cast<const bf16*>(p.input_proj)[int64_t{column} * p.channels + c])
              : p.input_proj_bias[column]);
    }
    __syncthreads();
    for (int at = thread(); at < 2 * p.depth * kColumns; at += kThreads) {
      const int index = at / kColumns;
      const float* bias =
          floats(index / 2, index % 2 ? StepsField::mlp2_bias : StepsField::mlp0_bias);
      biases.store(static_cast<uint32_t>(at), bias[first_column + at % kColumns]);
    }
    begin_stream();
    for (int step = 0; step < p.steps; ++step) {
      modulation = static_cast<const bf16*>(p.modulation) +
                   (static_cast<int64_t>(step) * p.rows + team.row) * p.modulation_width;
      project_input();
      if (step + 1 < p.steps) prefetch_modulation();
      for (int block = 0; block < p.depth; ++block) {
        normalize(block);
        product<Kind::expand>(block);
        product<Kind::contract>(block);
      }
      normalize(p.depth);
      product<Kind::finish>(p.depth);
      if (!p.network_out) update(p.first_step + step);
    }
    cp_async_wait<0>();
    if (p.network_out || member > 0) return;
    for (int i = thread(); i < team.tokens * p.channels; i += kThreads) {
      const float v = state.load(static_cast<uint32_t>(i));
      p.state[team.token * p.channels + i] = v;
      if (p.last) p.token_table[team.token + i / p.channels].out[i % p.channels] = v;
    }
  }

 private:
  enum class Kind { expand, contract, finish };
  // Tiles of columns on their way or at work; each warp has its depths of them, as its lanes' own
  // pieces: 16 columns by kRuns pieces of 64 bytes.
  static constexpr int kSlots = 3;
  static constexpr uint32_t kWarpWords = kTileColumns * kRuns * 16,
                            kSlotWords = kWarps * kWarpWords;
  // Of mma: here rows are its m, columns its n, so that a piece of weights in shared memory is a
  // fragment as it lies; products and sums are those of the other way round.
  static constexpr int kRowTile = 16, kRowTiles = (kRows + kRowTile - 1) / kRowTile;
  // Partial sums of a tile of columns.
  static constexpr uint32_t kPartial = kWarps * kRowTiles * kRowTile * kTileColumns;
  // A thread finishes two columns of a row.
  static constexpr int kPairs = kTileColumns / 2;
  static_assert(kRows * kPairs <= kThreads);
  // Runs of a part of a row that is normalized (run_of), at most.
  static constexpr int kHeld = (kRuns + kParts - 1) / kParts;

  UNIFLUID_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }
  UNIFLUID_DEVICE void meet() {
    cluster_barrier<kMembers>(p.arrivals + blockIdx.x / kMembers, round);
  }

  UNIFLUID_DEVICE const bf16* modulation_row(int row) const {
    return modulation + static_cast<int64_t>(row) * p.modulation_width;
  }
  UNIFLUID_DEVICE float* hidden_row(int row) const {
    return p.hidden + static_cast<int64_t>(team.row + row) * p.stride;
  }
  UNIFLUID_DEVICE bf16* inner_row(int row) const {
    return static_cast<bf16*>(p.inner) + static_cast<int64_t>(team.row + row) * p.stride;
  }
  UNIFLUID_DEVICE bf16* normalized_row(int row) const {
    return static_cast<bf16*>(p.normalized) + static_cast<int64_t>(team.row + row) * p.stride;
  }
  UNIFLUID_DEVICE uint64_t field(int block, StepsField of) const {
    return blocks.load(steps_field(block, of));
  }
  UNIFLUID_DEVICE const float* floats(int block, StepsField of) const {
    return reinterpret_cast<const float*>(field(block, of));
  }

  // ---- the stream of weights: all tiles of all matrices in the order of use, in every step ----

  UNIFLUID_DEVICE void begin_stream() {
    source = source_of(0);
    for (int i = 0; i < kSlots; ++i) copy_next(i);
    take_weights();
  }
  // This lane's first piece of the matrix of a product.
  UNIFLUID_DEVICE const bf16* source_of(int product) const {
    const bf16* matrix = reinterpret_cast<const bf16*>(
        field(product / 2, product % 2 ? StepsField::mlp2 : StepsField::mlp0));
    return matrix + static_cast<int64_t>(first_column + lane_index() / 4) * kWidth + depth_of(0);
  }
  UNIFLUID_DEVICE static uint32_t piece_at(int slot, int i, bool high) {
    return static_cast<uint32_t>(slot) * kSlotWords +
           static_cast<uint32_t>(warp_index()) * kWarpWords +
           static_cast<uint32_t>(i * 2 + (high ? 1 : 0)) * (kWarp * 4) +
           static_cast<uint32_t>(lane_index()) * 4;
  }
  // Behind the last step too, so that nobody has to count; `run` waits for those. Where the next
  // matrix lies is known one tile before it is used.
  UNIFLUID_DEVICE void copy_next(int to_slot) {
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
#pragma unroll
      for (int high = 0; high < 2; ++high)
        cp_async16(slots, piece_at(to_slot, i, high),
                   reinterpret_cast<const uint32_t*>(source + i * kDepth<bf16> + high * 8 * kWidth),
                   true);
    cp_async_commit();
    source += static_cast<int64_t>(kTileColumns) * kWidth;
    if (++next_tile < kRuns) return;
    next_tile = 0;
    if (++next_product == 2 * p.depth) next_product = 0;
    source = source_of(next_product);
  }

  // ---- products ----

  // The results that a thread finishes: in each tile of columns two neighbours of one row.
  UNIFLUID_DEVICE static int own_row() { return thread() / kPairs; }
  UNIFLUID_DEVICE static int own_column() { return thread() % kPairs * 2; }

  // Where a column of a row lies among a warp's partial sums of a tile: pairs of columns of four
  // rows, which are stored at once, in different banks.
  UNIFLUID_DEVICE static uint32_t partial_at(int tile, int warp, int row, int column) {
    return static_cast<uint32_t>(tile) * kPartial +
           static_cast<uint32_t>((warp * kRowTiles * kRowTile + row) * kTileColumns +
                                 (column ^ (row & 2) * 4));
  }

  // The next tile of the stream comes to this lane's registers.
  UNIFLUID_DEVICE void take_weights() {
    cp_async_wait<kSlots - 1>();
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
#pragma unroll
      for (int high = 0; high < 2; ++high)
        weights[high][i] = load_piece(slots, piece_at(slot, i, high));
  }

  // Of this warp's depths of a tile of columns: to its place among the partial sums.
  UNIFLUID_DEVICE void multiply(const FragmentA (&rows)[kRuns][kRowTiles][2],
                                const Piece (&columns)[2][kRuns], int tile) const {
    FragmentC sums[kRowTiles][2] = {};
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
          for (int high = 0; high < 2; ++high)
            mma(sums[r][high], rows[i][r][half],
                FragmentB{{columns[high][i].word[2 * half], columns[high][i].word[2 * half + 1]}});
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int high = 0; high < 2; ++high)
#pragma unroll
        for (int below = 0; below < 2; ++below) {
          if (r * kRowTile + 8 * below >= kRows) continue;
          partial.store_pair(
              partial_at(tile, warp_index(), r * kRowTile + 8 * below + g, 8 * high + 2 * t),
              sums[r][high].x[2 * below], sums[r][high].x[2 * below + 1]);
        }
  }

  // Waits for the others, then multiplies what they handed out.
  template <Kind kKind>
  UNIFLUID_DEVICE void product(int block) {
    constexpr bool kFinish = kKind == Kind::finish;
    const int outputs = (p.outputs + kMembers - 1) / kMembers;
    const int first = kFinish ? member * outputs : first_column;
    const int last = kFinish ? min(first + outputs, p.outputs) : first + kColumns;
    Piece finals[2][kRuns];
    if constexpr (kFinish) {
#pragma unroll
      for (int i = 0; i < kRuns; ++i)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const int column = first + lane_index() / 4 + 8 * high;
          finals[high][i] = {};
          if (column < last)
            finals[high][i] = piece_of(load_constant(reinterpret_cast<const uint4*>(
                static_cast<const bf16*>(p.final_linear) + static_cast<int64_t>(column) * kWidth +
                depth_of(i))));
        }
    }
    constexpr int kCount = kFinish ? 1 : kColumnTiles;
    // Read ahead of the wait: gates two in a word.
    [[maybe_unused]] uint32_t gates[kCount] = {};
    if (kKind == Kind::contract && own_row() < team.rows) {
      const bf16* gate = modulation_row(own_row()) + (block * 3 + 2) * kWidth + first_column;
#pragma unroll
      for (int tile = 0; tile < kCount; ++tile)
        gates[tile] = load_constant(
            reinterpret_cast<const uint32_t*>(gate + tile * kTileColumns + own_column()));
    }
    float2 bias = {0, 0};
    if constexpr (kFinish) {
      const int column = first + own_column();
      if (column < last) bias.x = load_constant(p.final_linear_bias + column);
      if (column + 1 < last) bias.y = load_constant(p.final_linear_bias + column + 1);
    }
    meet();
    FragmentA rows[kRuns][kRowTiles][2];
    const bf16* from = kKind == Kind::contract ? inner_row(0) : normalized_row(0);
    // Nothing, which the compiler cannot know: words that are put together as they come it would
    // put together again for every tile.
    const uint32_t nothing = threadIdx.y;
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const auto piece = [&](int row) {
          // Behind the last row the last once more: its results are nobody's.
          return piece_of(load_fresh(reinterpret_cast<const uint4*>(
              from + static_cast<int64_t>(min(row, team.rows - 1)) * p.stride + depth_of(i))));
        };
        const Piece upper = piece(r * kRowTile + lane_index() / 4);
        const bool both = r * kRowTile + 8 < kRows;
        const Piece lower = both ? piece(r * kRowTile + 8 + lane_index() / 4) : upper;
#pragma unroll
        for (int half = 0; half < 2; ++half)
          rows[i][r][half] = {{upper.word[2 * half] ^ nothing, lower.word[2 * half] ^ nothing,
                               upper.word[2 * half + 1] ^ nothing,
                               lower.word[2 * half + 1] ^ nothing}};
      }
    if constexpr (kFinish) {
      multiply(rows, finals, 0);
    } else {
#pragma unroll 1
      for (int tile = 0; tile < kCount; ++tile) {
        multiply(rows, weights, tile);
        copy_next(slot);
        slot = slot == kSlots - 1 ? 0 : slot + 1;
        take_weights();
      }
    }
    __syncthreads();
    const int row = own_row();
    if (row >= team.rows) return;
#pragma unroll
    for (int tile = 0; tile < kCount; ++tile) {
      const int column = first + tile * kTileColumns + own_column();
      float2 sum = {0, 0};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float2 part = partial.load_pair(partial_at(tile, w, row, own_column()));
        sum.x += part.x;
        sum.y += part.y;
      }
      if constexpr (!kFinish)
        bias = biases.load_pair(static_cast<uint32_t>(
            (block * 2 + (kKind == Kind::contract)) * kColumns + column - first_column));
      sum.x += bias.x;
      sum.y += bias.y;
      if constexpr (kKind == Kind::expand) {
        *reinterpret_cast<uint32_t*>(inner_row(row) + column) =
            pack_bf16(activate<Activation::silu>(sum.x), activate<Activation::silu>(sum.y));
      } else if constexpr (kKind == Kind::contract) {
        const uint32_t at = static_cast<uint32_t>(row * kColumns + column - first_column);
        const float2 before = own.load_pair(at);
        const float2 now = {fmaf(__uint_as_float(gates[tile] << 16), sum.x, before.x),
                            fmaf(__uint_as_float(gates[tile] & 0xffff0000u), sum.y, before.y)};
        own.store_pair(at, now.x, now.y);
        *reinterpret_cast<float2*>(hidden_row(row) + column) = now;
      } else {
        if (column < last) hand_out_output(row, column, sum.x);
        if (column + 1 < last) hand_out_output(row, column + 1, sum.y);
      }
    }
  }

  UNIFLUID_DEVICE void hand_out_output(int row, int column, float v) const {
    if (p.network_out)
      static_cast<bf16*>(p.network_out)[(team.row + row) * p.network_stride + column] =
          from_float<bf16>(v);
    else
      p.out[static_cast<int64_t>(team.row + row) * p.outputs + column] = v;
  }

  // Of the lane's piece i of a warp's depths.
  UNIFLUID_DEVICE static int depth_of(int i) {
    return (warp_index() * kRuns + i) * kDepth<bf16> + lane_index() % 4 * kSize<bf16>;
  }

  // ---- rows ----

  // hidden = input_proj(latents) for the block's columns, which both rows of a guided token share.
  // Side by side, kTileColumns threads take a token, each a column of every tile.
  UNIFLUID_DEVICE void project_input() {
    const int each = p.channels + 1, first = thread() % kTileColumns;
    for (int token = thread() / kTileColumns; token < team.tokens;
         token += kThreads / kTileColumns) {
      const StepsToken& of = p.token_table[team.token + token];
      const int row = of.row - team.row, rows = of.rows;
      const auto weight = [&](int tile, int c) {
        return input.load(static_cast<uint32_t>((tile * kTileColumns + first) * each + c));
      };
      float sums[kColumnTiles] = {};
#pragma unroll 4
      for (int c = 0; c < p.channels; ++c) {
        const float in = rounded<bf16>(state.load(static_cast<uint32_t>(token * p.channels + c)));
#pragma unroll
        for (int tile = 0; tile < kColumnTiles; ++tile)
          sums[tile] = fmaf(weight(tile, c), in, sums[tile]);
      }
#pragma unroll
      for (int tile = 0; tile < kColumnTiles; ++tile) {
        const float sum = sums[tile] + weight(tile, p.channels);
        const int column = tile * kTileColumns + first;
        for (int i = row; i < row + rows; ++i) {
          own.store(static_cast<uint32_t>(i * kColumns + column), sum);
          hidden_row(i)[first_column + column] = sum;
        }
      }
    }
  }

  // The next step's modulations come from far: they are wanted in the second-level cache by then.
  UNIFLUID_DEVICE void prefetch_modulation() const {
    prefetch_l2(modulation + static_cast<int64_t>(p.rows) * p.modulation_width,
                team.rows * p.modulation_width, member * kThreads + thread(), kMembers * kThreads);
  }

  // Normalizes the block's own rows, `member` and every 16th after it, when all have handed out
  // their columns of them. Sums in the order of Worker::load_normalized; four warps a row.
  UNIFLUID_DEVICE void normalize(int block) {
    const int part = warp_index() % kParts, row = member + warp_index() / kParts * kMembers;
    const bool mine = row < team.rows && warp_index() / kParts < kOwnRows;
    const bool learned = block < p.depth;
    const int shift = block * 3 * kWidth;
    const auto element_of = [&](int i) {
      return run_of<bf16>(part, i) + lane_index() * kSize<bf16>;
    };
    const auto has = [&](int i) { return i * kParts + part < kRuns; };
    AffineParts<bf16> parts[kHeld] = {};
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!mine || !has(i)) continue;
      const auto piece = [](const auto* at) {
        return piece_of(load_constant(reinterpret_cast<const uint4*>(at)));
      };
      const int k = element_of(i);
      parts[i].shift = piece(modulation_row(row) + shift + k);
      parts[i].scale = piece(modulation_row(row) + shift + kWidth + k);
      if (!learned) continue;
#pragma unroll
      for (int quad = 0; quad < kSize<bf16> / 4; ++quad) {
        parts[i].weights[quad] = piece(floats(block, StepsField::norm_weight) + k + 4 * quad);
        parts[i].biases[quad] = piece(floats(block, StepsField::norm_bias) + k + 4 * quad);
      }
    }
    meet();
    float values[kHeld][kSize<bf16>];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!mine || !has(i)) continue;
#pragma unroll
      for (int quad = 0; quad < kSize<bf16> / 4; ++quad) {
        const Piece four = piece_of(
            load_fresh(reinterpret_cast<const uint4*>(hidden_row(row) + element_of(i) + 4 * quad)));
#pragma unroll
        for (int e = 0; e < 4; ++e) values[i][4 * quad + e] = element<float>(four, e);
      }
    }
    Affine<bf16> affines[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      affines[i] = modulated(parts[i]);
      if (learned)
        for (int quad = 0; quad < kSize<bf16> / 4; ++quad) learn(affines[i], parts[i], quad);
    }
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!mine || !has(i)) continue;
#pragma unroll
      for (int e = 0; e < kSize<bf16>; ++e) sum += values[i][e];
    }
    sum = warp_sum(sum);
    const float mean_of_part = sum * p.parts.inverse[part];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!mine || !has(i)) continue;
#pragma unroll
      for (int e = 0; e < kSize<bf16>; ++e) {
        const float d = values[i][e] - mean_of_part;
        squares = fmaf(d, d, squares);
      }
    }
    squares = warp_sum(squares);
    if (lane_index() == 0)
      moments.store_pair(static_cast<uint32_t>(warp_index() * 2), sum, squares);
    __syncthreads();
    if (!mine) return;
    const Norm norm =
        norm_of(p.parts, moments, static_cast<uint32_t>(warp_index() / kParts * kParts * 2));
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!has(i)) continue;
      float normalized[kSize<bf16>];
#pragma unroll
      for (int e = 0; e < kSize<bf16>; ++e)
        normalized[e] = fmaf((values[i][e] - norm.mean) * norm.inverse, affines[i].scale[e],
                             affines[i].shift[e]);
      const Piece piece = piece_of<bf16>(normalized);
      *reinterpret_cast<uint4*>(normalized_row(row) + element_of(i)) =
          make_uint4(piece.word[0], piece.word[1], piece.word[2], piece.word[3]);
    }
  }

  // ---- the sampler ----

  // The latents after a step, from the network's outputs.
  UNIFLUID_DEVICE void update(int step_index) {
    const DiffusionStep step = p.step_table[step_index];
    const bool noisy = !p.flow && step.noise;
    meet();
    for (int at = thread(); at < team.tokens * p.channels; at += kThreads) {
      const int index = team.token + at / p.channels, c = at % p.channels;
      const StepsToken token = p.token_table[index];
      const int64_t draw = static_cast<int64_t>(step_index) * p.tokens + index;
      const float noise = noisy ? p.noise[draw * p.channels + c] : 0.0f;
      const float* from = p.out + static_cast<int64_t>(token.row) * p.outputs + c;
      // What there is not is the first once more.
      const float outputs[3] = {load_fresh(from),
                                load_fresh(from + (token.rows > 1 ? p.outputs : 0)),
                                load_fresh(from + (noisy ? p.channels : 0))};
      const uint32_t to = static_cast<uint32_t>(at);
      state.store(to, updated(p, step, token, noisy, noise, state.load(to), outputs));
    }
    __syncthreads();
  }

  const StepsParams& p;
  const StepsTeam team;
  const int member, first_column;
  const Shared<uint32_t> slots;   // [kSlots, warps, kRuns, 2, lanes, 4]
  const Shared<float> partial;    // [kColumnTiles, warps, rows, kTileColumns], partial_at
  const Shared<float> own;        // [kRows, kColumns] hidden, of the block's columns
  const Shared<float> moments;    // [warps, 2]
  const Shared<float> biases;     // [2 depth, kColumns] of the products in their order
  const Shared<float> input;      // [kColumns, C + 1] the first layer's weights and biases
  const Shared<float> state;      // [tokens, C]
  const Shared<uint64_t> blocks;  // [depth] StepsBlock
  uint32_t round = 0;
  int next_product = 0, next_tile = 0;  // of the stream,
  const bf16* source = nullptr;         // and where this lane's pieces of the tile lie
  Piece weights[2][kRuns];              // its next tile: columns lane / 4 and 8 further
  int slot = 0;
  const bf16* modulation = nullptr;  // of this step and the team's first row
};

template <int kRuns, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    cluster_steps(const __grid_constant__ StepsParams params) {
  SharedArena arena;
  ClusterWorker<kRuns, kTiles>(params, arena).run();
}

// body(runs, tiles) with both as constants, if there is such a kernel: of more its registers could
// not hold the rows.
template <int kRuns, class Body>
void with_tiles(int tiles, Body body) {
  constexpr std::integral_constant<int, kRuns> runs;
  if (tiles == 1) body(runs, std::integral_constant<int, 1>());
  if (tiles == 2) body(runs, std::integral_constant<int, 2>());
  if constexpr (kRuns <= 5) {
    if (tiles == 3) body(runs, std::integral_constant<int, 3>());
    if (tiles == 4) body(runs, std::integral_constant<int, 4>());
  }
}
template <class Body>
void with_sizes(int64_t width, int tiles, Body body) {
  if (width % 256 != 0) return;
  switch (width / 256) {
    case 1:
      return with_tiles<1>(tiles, body);
    case 4:
      return with_tiles<4>(tiles, body);
    case 5:
      return with_tiles<5>(tiles, body);
    case 6:
      return with_tiles<6>(tiles, body);
    default:
      return;
  }
}

}  // namespace

namespace cluster {

size_t shared_bytes(const DiffusionHeadWeights& head, int tiles) {
  const int64_t outputs = head.flow ? head.channels : 2 * head.channels;
  size_t bytes = 0;
  if (head.depth == 0 || outputs > kMembers * kTileColumns) return bytes;
  with_sizes(head.width, tiles, [&](auto runs, auto row_tiles) {
    bytes = ClusterWorker<runs.value, row_tiles.value>::shared_bytes(head.channels, head.depth);
  });
  return bytes;
}

}  // namespace cluster

int diffusion_clusters(Queue& queue) {
  if (!queue.limits().warpgroups) return 0;
  using Largest = ClusterWorker<5, 4>;
  constexpr int64_t kChannels = 16, kDepth = 8;
  const size_t shared = Largest::shared_bytes(kChannels, kDepth);
  if (shared > queue.limits().shared_bytes) return 0;
  return queue.resident_clusters(cluster_steps<5, 4>, cluster::kMembers, kThreads, shared);
}

void launch_cluster_steps(Queue& queue, const StepsPass& pass, StepsParams params) {
  params.parts = parts_of<bf16>(params.width);
  with_sizes(params.width, pass.cluster_tiles, [&](auto runs, auto tiles) {
    queue.launch_clusters(cluster_steps<runs.value, tiles.value>, cluster::kMembers,
                          dim3(static_cast<unsigned>(pass.teams.size()) * cluster::kMembers),
                          dim3(kThreads), pass.shared, params);
  });
}

}  // namespace unifluid::cuda
