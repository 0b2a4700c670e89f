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
#include "cuda/kernels/diffusion_cluster.h"
#include "cuda/kernels/diffusion_tile.h"
#include "cuda/kernels/diffusion_update.h"

namespace unifluid::cuda {
namespace {

using namespace steps;
using cluster::kMembers;

constexpr float kNormEps = 1e-6f;

// A head of kRuns * 256 columns; up to kTiles * 8 rows. One block at work.
template <int kRuns, int kTiles>
class ClusterWorker {
 public:
  static constexpr int kWidth = kRuns * kWarps * kDepth<bf16>;
  // Of a block: kRuns tiles of columns.
  static constexpr int kColumns = kWidth / kMembers;
  static_assert(kColumns == kRuns * kTileColumns);
  static constexpr int kRows = kTiles * kTileRows;
  static constexpr int kOwnRows = (kRows + kMembers - 1) / kMembers;

  UNIFLUID_DEVICE ClusterWorker(const StepsParams& params, SharedArena& arena)
      : p(params),
        team(params.team_table[blockIdx.x / kMembers]),
        member(static_cast<int>(blockIdx.x) % kMembers),
        first_column(member * kColumns),
        slots(arena.take<uint32_t>(kSlots * kSlotWords)),
        partial(arena.take<float>(2 * kPartial)),
        own(arena.take<float>(kRows * kColumns)),
        moments(arena.take<float>(kWarps * 2)),
        input(arena.take<float>(static_cast<uint32_t>(kColumns * (params.channels + 1)))),
        state(arena.take<float>(static_cast<uint32_t>(kRows * params.channels))),
        blocks(arena.take<uint64_t>(steps_field(params.depth, StepsField{}))) {}

  static size_t shared_bytes(int64_t channels, int64_t depth) {
    return SharedBytes{}
        .take<uint32_t>(kSlots * kSlotWords)
        .template take<float>(2 * kPartial)
        .template take<float>(kRows * kColumns)
        .template take<float>(kWarps * 2)
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
      if (p.network_out) break;
      update(p.first_step + step);
    }
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
  static constexpr int kSlots = kRuns > 5 ? 3 : 4;
  static constexpr uint32_t kWarpWords = kTileColumns * kRuns * 16,
                            kSlotWords = kWarps * kWarpWords;
  static constexpr uint32_t kPartial = kWarps * kRows * kPartialStride;
  // Results of a tile of columns that a thread finishes: of one column, kRowsApart rows apart.
  static constexpr int kRowsApart = kThreads / kTileColumns;
  static constexpr int kResults = (kRows + kRowsApart - 1) / kRowsApart;
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
    tiles_left = p.steps * 2 * p.depth * kRuns;
    for (int slot = 0; slot < kSlots; ++slot) copy_next(slot);
  }
  UNIFLUID_DEVICE uint32_t piece_at(int slot, int i, bool high) const {
    return static_cast<uint32_t>(slot) * kSlotWords +
           static_cast<uint32_t>(warp_index()) * kWarpWords +
           static_cast<uint32_t>(i * 2 + (high ? 1 : 0)) * (kWarp * 4) +
           static_cast<uint32_t>(lane_index()) * 4;
  }
  UNIFLUID_DEVICE void copy_next(int slot) {
    if (tiles_left > 0) {
      --tiles_left;
      const bf16* matrix = reinterpret_cast<const bf16*>(
          field(next_product / 2, next_product % 2 ? StepsField::mlp2 : StepsField::mlp0));
      const int column = first_column + next_tile * kTileColumns + lane_index() / 4;
      const bf16* from = matrix + static_cast<int64_t>(column) * kWidth +
                         warp_index() * kRuns * kDepth<bf16> + lane_index() % 4 * kSize<bf16>;
#pragma unroll
      for (int i = 0; i < kRuns; ++i)
#pragma unroll
        for (int high = 0; high < 2; ++high)
          cp_async16(slots, piece_at(slot, i, high),
                     reinterpret_cast<const uint32_t*>(from + i * kDepth<bf16> + high * 8 * kWidth),
                     true);
      if (++next_tile == kRuns) {
        next_tile = 0;
        if (++next_product == 2 * p.depth) next_product = 0;
      }
    }
    cp_async_commit();  // an empty group too counts for the waits
  }

  // ---- products ----

  // What is added to a result before it is used, and what multiplies it then.
  struct Operands {
    float bias[kResults], gate[kResults];
  };
  template <Kind kKind>
  UNIFLUID_DEVICE Operands operands_of(const float* bias, int gate, int first) const {
    Operands o{};
    const int column = first + thread() % kTileColumns;
#pragma unroll
    for (int i = 0; i < kResults; ++i) {
      const int row = thread() / kTileColumns + i * kRowsApart;
      if (row >= team.rows || (kKind == Kind::finish && column >= p.outputs)) continue;
      o.bias[i] = load_constant(bias + column);
      if constexpr (kKind == Kind::contract)
        o.gate[i] = to_float(modulation_row(row)[gate + column]);
    }
    return o;
  }

  // Waits for the others, then multiplies what they handed out.
  template <Kind kKind>
  UNIFLUID_DEVICE void product(int block) {
    constexpr bool kFinish = kKind == Kind::finish;
    const float* bias = kFinish ? p.final_linear_bias
                                : floats(block, kKind == Kind::expand ? StepsField::mlp0_bias
                                                                      : StepsField::mlp2_bias);
    const int gate = (block * 3 + 2) * kWidth;
    const int outputs = (p.outputs + kMembers - 1) / kMembers;
    const int first = kFinish ? member * outputs : first_column;
    const int last = kFinish ? min(first + outputs, p.outputs) : first + kColumns;
    Piece finals[2][kRuns];
    if constexpr (kFinish) {
      const int g = lane_index() / 4;
#pragma unroll
      for (int i = 0; i < kRuns; ++i)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const int column = first + g + 8 * high;
          finals[high][i] = {};
          if (column < last)
            finals[high][i] = piece_of(load_constant(reinterpret_cast<const uint4*>(
                static_cast<const bf16*>(p.final_linear) + static_cast<int64_t>(column) * kWidth +
                depth_of(i))));
        }
    }
    Operands next = operands_of<kKind>(bias, gate, first);
    meet();
    Piece rows[kRuns][kTiles];
    const bf16* from = kKind == Kind::contract ? inner_row(0) : normalized_row(0);
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
        // Behind the last row the last once more: its results are nobody's.
        const int row = min(r * kTileRows + lane_index() / 4, team.rows - 1);
        rows[i][r] = piece_of(load_fresh(reinterpret_cast<const uint4*>(
            from + static_cast<int64_t>(row) * p.stride + depth_of(i))));
      }
    constexpr int kCount = kFinish ? 1 : kRuns;
#pragma unroll 1
    for (int tile = 0; tile < kCount; ++tile) {
      const Operands operands = next;
      if (!kFinish) cp_async_wait<kSlots - 1>();
      FragmentC sums[kTiles] = {};
#pragma unroll
      for (int i = 0; i < kRuns; ++i) {
        const Piece low = kFinish ? finals[0][i] : load_piece(slots, piece_at(slot, i, false));
        const Piece high = kFinish ? finals[1][i] : load_piece(slots, piece_at(slot, i, true));
        const FragmentA one{{low.word[0], high.word[0], low.word[1], high.word[1]}};
        const FragmentA two{{low.word[2], high.word[2], low.word[3], high.word[3]}};
#pragma unroll
        for (int r = 0; r < kTiles; ++r)
          mma(sums[r], one, FragmentB{{rows[i][r].word[0], rows[i][r].word[1]}});
#pragma unroll
        for (int r = 0; r < kTiles; ++r)
          mma(sums[r], two, FragmentB{{rows[i][r].word[2], rows[i][r].word[3]}});
      }
      if constexpr (!kFinish) {
        copy_next(slot);
        slot = slot == kSlots - 1 ? 0 : slot + 1;
        if (tile + 1 < kCount)
          next = operands_of<kKind>(bias, gate, first + (tile + 1) * kTileColumns);
      }
      const uint32_t buffer = static_cast<uint32_t>(parity) * kPartial;
      parity ^= 1;  // those of the tile before may still be read
#pragma unroll
      for (int r = 0; r < kTiles; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int g = lane_index() / 4, t = lane_index() % 4;
          const int row = warp_index() * kRows + r * kTileRows + 2 * t + i % 2;
          partial.store(buffer + static_cast<uint32_t>(row * kPartialStride + g + i / 2 * 8),
                        sums[r].x[i]);
        }
      __syncthreads();
      const int column = first + tile * kTileColumns + thread() % kTileColumns;
#pragma unroll
      for (int i = 0; i < kResults; ++i) {
        const int row = thread() / kTileColumns + i * kRowsApart;
        if (row >= team.rows || (kFinish && column >= last)) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w)
          sum += partial.load(buffer + static_cast<uint32_t>((w * kRows + row) * kPartialStride +
                                                             thread() % kTileColumns));
        use<kKind>(row, column, sum + operands.bias[i], operands.gate[i]);
      }
    }
  }

  template <Kind kKind>
  UNIFLUID_DEVICE void use(int row, int column, float sum, float gate) {
    if constexpr (kKind == Kind::expand) {
      inner_row(row)[column] = from_float<bf16>(activate<Activation::silu>(sum));
    } else if constexpr (kKind == Kind::contract) {
      const uint32_t at = static_cast<uint32_t>(row * kColumns + column - first_column);
      const float v = fmaf(gate, sum, own.load(at));
      own.store(at, v);
      hidden_row(row)[column] = v;
    } else if (p.network_out) {
      static_cast<bf16*>(p.network_out)[(team.row + row) * p.network_stride + column] =
          from_float<bf16>(sum);
    } else {
      p.out[static_cast<int64_t>(team.row + row) * p.outputs + column] = sum;
    }
  }

  // Of the lane's piece i of a warp's depths.
  UNIFLUID_DEVICE static int depth_of(int i) {
    return (warp_index() * kRuns + i) * kDepth<bf16> + lane_index() % 4 * kSize<bf16>;
  }

  // ---- rows ----

  // hidden = input_proj(latents) for the block's columns.
  UNIFLUID_DEVICE void project_input() {
    const int each = p.channels + 1;
    for (int at = thread(); at < team.rows * kColumns; at += kThreads) {
      const int row = at / kColumns, column = at % kColumns;
      const int token = p.row_token[team.row + row] - team.token;
      const auto weight = [&](int c) {
        return input.load(static_cast<uint32_t>(column * each + c));
      };
      float sum = 0;
#pragma unroll 4
      for (int c = 0; c < p.channels; ++c)
        sum = fmaf(weight(c),
                   rounded<bf16>(state.load(static_cast<uint32_t>(token * p.channels + c))), sum);
      sum += weight(p.channels);
      own.store(static_cast<uint32_t>(at), sum);
      hidden_row(row)[first_column + column] = sum;
    }
  }

  // The next step's modulations come from far: they are wanted in the second-level cache by then.
  UNIFLUID_DEVICE void prefetch_modulation() const {
    constexpr int64_t kLine = 128 / sizeof(bf16);
    const bf16* next = modulation + static_cast<int64_t>(p.rows) * p.modulation_width;
    const int64_t count = static_cast<int64_t>(team.rows) * p.modulation_width;
    for (int64_t i = (static_cast<int64_t>(member) * kThreads + thread()) * kLine; i < count;
         i += static_cast<int64_t>(kMembers) * kThreads * kLine)
      prefetch_l2(next + i);
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
    float scales[kHeld][kSize<bf16>], shifts[kHeld][kSize<bf16>];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!mine || !has(i)) continue;
      const int k = element_of(i);
      const auto piece = [](const auto* at) {
        return piece_of(load_constant(reinterpret_cast<const uint4*>(at)));
      };
      const Piece of_shift = piece(modulation_row(row) + shift + k);
      const Piece of_scale = piece(modulation_row(row) + shift + kWidth + k);
#pragma unroll
      for (int e = 0; e < kSize<bf16>; ++e) {
        scales[i][e] = 1.0f + element<bf16>(of_scale, e);
        shifts[i][e] = element<bf16>(of_shift, e);
      }
      if (!learned) continue;
#pragma unroll
      for (int quad = 0; quad < kSize<bf16> / 4; ++quad) {
        const Piece weight = piece(floats(block, StepsField::norm_weight) + k + 4 * quad);
        const Piece bias = piece(floats(block, StepsField::norm_bias) + k + 4 * quad);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float &scale = scales[i][4 * quad + e], &to = shifts[i][4 * quad + e];
          to = fmaf(element<float>(bias, e), scale, to);
          scale *= element<float>(weight, e);
        }
      }
    }
    meet();
    float values[kHeld][kSize<bf16>];
    float sum = 0, squares = 0;
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
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!mine || !has(i)) continue;
#pragma unroll
      for (int e = 0; e < kSize<bf16>; ++e) sum += values[i][e];
    }
    sum = warp_sum(sum);
    const int runs = (kRuns - part + kParts - 1) / kParts;
    const float size = static_cast<float>(runs * kRun<bf16>);
    const float inverse_size = 1.0f / (runs > 0 ? size : 1.0f);
    const float mean_of_part = sum * inverse_size;
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
    if (lane_index() == 0) {
      moments.store(static_cast<uint32_t>(warp_index() * 2), sum);
      moments.store(static_cast<uint32_t>(warp_index() * 2 + 1), squares);
    }
    __syncthreads();
    if (!mine) return;
    const int first_warp = warp_index() / kParts * kParts;
    constexpr float kInverseWidth = 1.0f / kWidth;
    float total = 0, all_squares = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i)
      total += moments.load(static_cast<uint32_t>((first_warp + i) * 2));
    const float mean = total * kInverseWidth;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      constexpr auto kSizeOf = [](int of_part) {
        return static_cast<float>((kRuns - of_part + kParts - 1) / kParts * kRun<bf16>);
      };
      const float of_part = moments.load(static_cast<uint32_t>((first_warp + i) * 2));
      const float away = fmaf(-kSizeOf(i), mean, of_part);
      const float inverse = 1.0f / (kSizeOf(i) > 0 ? kSizeOf(i) : 1.0f);
      all_squares +=
          fmaf(away * away, inverse, moments.load(static_cast<uint32_t>((first_warp + i) * 2 + 1)));
    }
    const float inverse = rsqrtf(fmaf(all_squares, kInverseWidth, kNormEps));
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!has(i)) continue;
      float normalized[kSize<bf16>];
#pragma unroll
      for (int e = 0; e < kSize<bf16>; ++e)
        normalized[e] = fmaf((values[i][e] - mean) * inverse, scales[i][e], shifts[i][e]);
      const Piece piece = piece_of<bf16>(normalized);
      *reinterpret_cast<uint4*>(normalized_row(row) + element_of(i)) =
          make_uint4(piece.word[0], piece.word[1], piece.word[2], piece.word[3]);
    }
  }

  // ---- the sampler ----

  // The latents after a step, from the network's outputs.
  UNIFLUID_DEVICE void update(int step_index) {
    const DiffusionStep step = p.step_table[step_index];
    meet();
    for (int at = thread(); at < team.tokens * p.channels; at += kThreads) {
      const StepsToken token = p.token_table[team.token + at / p.channels];
      const int c = at % p.channels;
      const bool noisy = !p.flow && step.noise;
      const int64_t draw =
          static_cast<int64_t>(step_index) * p.tokens + team.token + at / p.channels;
      const float noise = noisy ? p.noise[draw * p.channels + c] : 0.0f;
      const float* outputs = p.out + static_cast<int64_t>(token.row) * p.outputs;
      const float prompted = load_fresh(outputs + c);
      const float other = token.rows > 1 ? load_fresh(outputs + p.outputs + c) : prompted;
      const float fraction = noisy ? load_fresh(outputs + p.channels + c) : 0.0f;
      const uint32_t to = static_cast<uint32_t>(at);
      state.store(to,
                  next_latent(p, step, token, state.load(to), prompted, other, fraction, noise));
    }
    __syncthreads();
  }

  const StepsParams& p;
  const StepsTeam team;
  const int member, first_column;
  const Shared<uint32_t> slots;   // [kSlots, warps, kRuns, 2, lanes, 4]
  const Shared<float> partial;    // [2, warps, kRows, kPartialStride]
  const Shared<float> own;        // [kRows, kColumns] hidden, of the block's columns
  const Shared<float> moments;    // [warps, 2]
  const Shared<float> input;      // [kColumns, C + 1] the first layer's weights and biases
  const Shared<float> state;      // [tokens, C]
  const Shared<uint64_t> blocks;  // [depth] StepsBlock
  uint32_t round = 0;
  int tiles_left = 0, next_product = 0, next_tile = 0;  // of the stream
  int slot = 0, parity = 0;
  const bf16* modulation = nullptr;  // of this step and the team's first row
};

template <int kRuns, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    cluster_steps(const __grid_constant__ StepsParams params) {
  SharedArena arena;
  ClusterWorker<kRuns, kTiles>(params, arena).run();
}

// body(runs, tiles) with both as constants.
template <int kRuns, class Body>
void with_tiles(int tiles, Body body) {
  constexpr std::integral_constant<int, kRuns> runs;
  if (tiles == 1)
    body(runs, std::integral_constant<int, 1>());
  else if (tiles == 2)
    body(runs, std::integral_constant<int, 2>());
  else
    body(runs, std::integral_constant<int, 4>());
}
template <class Body>
void with_sizes(int64_t width, int tiles, Body body) {
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

bool suits(const DiffusionHeadWeights& head) {
  const int64_t runs = head.width / 256;
  const int64_t outputs = head.flow ? head.channels : 2 * head.channels;
  return head.width % 256 == 0 && (runs == 1 || (runs >= 4 && runs <= 6)) &&
         outputs <= kMembers * kTileColumns;
}

size_t shared_bytes(const DiffusionHeadWeights& head, int tiles) {
  size_t bytes = 0;
  with_sizes(head.width, tiles, [&](auto runs, auto row_tiles) {
    bytes = ClusterWorker<runs.value, row_tiles.value>::shared_bytes(head.channels, head.depth);
  });
  return bytes;
}

}  // namespace cluster

void launch_cluster_steps(Queue& queue, const StepsPass& pass, const StepsParams& params) {
  with_sizes(params.width, pass.cluster_tiles, [&](auto runs, auto tiles) {
    queue.launch_clusters(cluster_steps<runs.value, tiles.value>, cluster::kMembers,
                          dim3(static_cast<unsigned>(pass.teams.size()) * cluster::kMembers),
                          dim3(kThreads), pass.shared, params);
  });
}

}  // namespace unifluid::cuda
