// All sampling steps of the diffusion head in one persistent launch.
//
// A step is a chain of 2 depth + 1 products, each of which needs all of the one before. For one
// image that is two rows, and a launch for each product would cost more than its work: a head of
// UniFluid's size (W 1280, depth 8, 100 steps) has 1700 of them. So blocks stay, one to a
// multiprocessor, divide the columns of every matrix among them, and meet at a barrier of the grid
// where rows go from one to the others through the second-level cache. Weights do not depend on
// what is computed: each block has the next ones on their way before it waits.
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

#include <algorithm>
#include <string>

#include "core/error.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/grid.h"
#include "cuda/device/math.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"
#include "cuda/dispatch.h"

namespace unifluid::cuda {
namespace {

// Two warps to each scheduler of a multiprocessor: enough to keep its tensor cores busy, few enough
// that partial sums of eight are quickly added.
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
// Of mma: columns are its m, rows its n.
constexpr int kTileColumns = 16, kTileRows = 8;
// A team's most rows: the accumulators of four tiles, and room for their inputs.
constexpr int kRowTiles = 4, kMostRows = kRowTiles * kTileRows;
// Results of a unit that a thread finishes.
constexpr int kResults = kMostRows * kTileColumns / kThreads;
// A row of partial sums: four words more than columns, so that the four row pairs of a fragment
// lie in different banks.
constexpr int kPartialStride = kTileColumns + 4;
// Slots that units stream through: one is used while the other is filled.
constexpr int kRing = 2;
// Elements of a row that a lane keeps in registers while it is normalized; wider rows (over 1536)
// are read again.
constexpr int kHeldElements = 48;
constexpr float kNormEps = 1e-6f;

// 16 bytes of a row, in words. Four lanes side by side take a run of kDepth elements.
struct Piece {
  uint32_t word[4];
};
template <class T>
inline constexpr int kSize = Vector<T>::kSize;
template <class T>
inline constexpr int kDepth = 4 * kSize<T>;

template <class T>
UNIFLUID_DEVICE float element(const Piece& piece, int i) {
  if constexpr (sizeof(T) == 4) return __uint_as_float(piece.word[i]);
  return __uint_as_float(i % 2 ? piece.word[i / 2] & 0xffff0000u : piece.word[i / 2] << 16);
}

template <class T>
UNIFLUID_DEVICE Piece piece_of(const float (&values)[kSize<T>]) {
  Piece piece;
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4)
      piece.word[i] = __float_as_uint(values[i]);
    else
      piece.word[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
  }
  return piece;
}

UNIFLUID_DEVICE Piece piece_of(uint4 raw) { return {{raw.x, raw.y, raw.z, raw.w}}; }

UNIFLUID_DEVICE Piece load_piece(const Shared<uint32_t>& from, uint32_t index) {
  const Vector<uint32_t> v = from.load_vector(index);
  Piece piece;
  for (int i = 0; i < 4; ++i) piece.word[i] = __float_as_uint(v.value[i]);
  return piece;
}
UNIFLUID_DEVICE void store_piece(const Shared<uint32_t>& to, uint32_t index, const Piece& piece) {
  Vector<uint32_t> v;
  for (int i = 0; i < 4; ++i) v.value[i] = __uint_as_float(piece.word[i]);
  to.store_vector(index, v);
}

// Elements k .. of a row of `width` that nobody writes; zeros behind its end.
template <class T>
UNIFLUID_DEVICE Piece read_piece(const T* row, int k, int width, bool aligned) {
  if (k >= width) return {};
  if (aligned) return piece_of(*reinterpret_cast<const uint4*>(row + k));
  float values[kSize<T>];
  for (int i = 0; i < kSize<T>; ++i) values[i] = k + i < width ? to_float(row[k + i]) : 0.0f;
  return piece_of<T>(values);
}

// What a lane adds up: 16 columns by 8 rows of a product, over the depths of its warp. Of the rows
// only the first `rows` count; a piece of inputs lies at `row(r)`, r below 8.
template <class T>
class Accumulator;

template <>
class Accumulator<bf16> {
 public:
  // low, high: the lane's pieces of columns g and g + 8
  template <class Row>
  UNIFLUID_DEVICE void add(const Piece& low, const Piece& high, const Shared<uint32_t>& x, int rows,
                           Row row) {
    // Behind the last row the last once more: its results are nobody's.
    const Piece in = load_piece(x, row(min(lane_index() / 4, rows - 1)));
    mma(sums_, {{low.word[0], high.word[0], low.word[1], high.word[1]}},
        {{in.word[0], in.word[1]}});
    mma(sums_, {{low.word[2], high.word[2], low.word[3], high.word[3]}},
        {{in.word[2], in.word[3]}});
  }
  // store(column, row, sum), each by one lane
  template <class Store>
  UNIFLUID_DEVICE void finish(int rows, Store store) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    for (int i = 0; i < 4; ++i)
      if (2 * t + i % 2 < rows) store(g + i / 2 * 8, 2 * t + i % 2, sums_.x[i]);
  }

 private:
  FragmentC sums_{};
};

template <>
class Accumulator<float> {
 public:
  template <class Row>
  UNIFLUID_DEVICE void add(const Piece& low, const Piece& high, const Shared<uint32_t>& x, int rows,
                           Row row) {
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      if (r >= rows) break;
      const Piece in = load_piece(x, row(r));
      for (int i = 0; i < 4; ++i) {
        low_[r] = fmaf(element<float>(low, i), element<float>(in, i), low_[r]);
        high_[r] = fmaf(element<float>(high, i), element<float>(in, i), high_[r]);
      }
    }
  }
  template <class Store>
  UNIFLUID_DEVICE void finish(int rows, Store store) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      if (r >= rows) break;
      float low = low_[r], high = high_[r];
      for (int other = 1; other < 4; other *= 2) {
        low += __shfl_xor_sync(kAllLanes, low, other);
        high += __shfl_xor_sync(kAllLanes, high, other);
      }
      if (r / 2 != t) continue;
      store(g, r, low);
      store(g + 8, r, high);
    }
  }

 private:
  float low_[kTileRows] = {}, high_[kTileRows] = {};
};

// Words of a row of inputs in shared memory: the rows g and g + 1, of which eight lanes read 64
// bytes each at once, lie in different banks.
__host__ __device__ constexpr int input_stride(int words) {
  return words % 32 ? words : words + 16;
}

// One block at work.
template <class T>
class Worker {
 public:
  UNIFLUID_DEVICE Worker(const StepsParams& params)
      : p(params),
        team(params.team_table[blockIdx.x / params.members]),
        member(static_cast<int>(blockIdx.x) % params.members),
        first_column(member * params.columns),
        columns(min(params.columns, params.width - first_column)),
        pieces((params.width + kDepth<T> - 1) / kDepth<T>),
        warp_pieces((pieces + kWarps - 1) / kWarps),
        first_piece(warp_index() * warp_pieces),
        own_pieces(max(0, min(warp_pieces, pieces - first_piece))),
        x_stride(input_stride(pieces * kDepth<T> / kSize<T> * 4)),
        slot_columns(min(params.columns, kTileColumns)),
        tiles((params.columns + kTileColumns - 1) / kTileColumns),
        units(2 * params.depth * tiles) {
    SharedArena arena;
    const uint32_t rows = static_cast<uint32_t>(p.most_rows);
    x = arena.take<uint32_t>(rows * x_stride);
    partial = arena.take<float>(kWarps * rows * kPartialStride);
    own = arena.take<float>(rows * p.columns);
    state = arena.take<float>(static_cast<uint32_t>(p.most_tokens * p.channels));
    weights = arena.take<uint32_t>(static_cast<uint32_t>(p.slots) * slot_words());
    if (p.slots >= units) {
      staying = units;
    } else {
      ring = p.slots >= kRing ? kRing : 0;
      staying = p.slots - ring;
    }
    streamed_left = ring ? p.steps * (units - staying) : 0;
  }

  UNIFLUID_DEVICE void run() {
    for (int i = thread(); i < team.tokens * p.channels; i += kThreads)
      state.store(i, p.state[team.token * p.channels + i]);
    __syncthreads();
    begin_weights();
    for (int step = 0; step < p.steps; ++step) {
      modulation = static_cast<const T*>(p.modulation) +
                   (static_cast<int64_t>(step) * p.rows + team.row) * p.modulation_width;
      project_input();
      if (step + 1 < p.steps) prefetch_modulation();
      meet();
      for (int b = 0; b < p.depth; ++b) run_block(b);
      load_normalized(nullptr, nullptr, p.depth * 3 * p.width);
      run_final();
      if (p.network_out) return;
      meet();
      update(p.first_step + step);
      __syncthreads();
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
  UNIFLUID_DEVICE void meet() { grid_barrier(p.arrivals, round); }

  UNIFLUID_DEVICE const T* modulation_row(int row) const {
    return modulation + static_cast<int64_t>(row) * p.modulation_width;
  }
  UNIFLUID_DEVICE float* hidden_row(int row) const {
    return p.hidden + static_cast<int64_t>(team.row + row) * p.stride;
  }
  UNIFLUID_DEVICE T* inner_row(int row) const {
    return static_cast<T*>(p.inner) + static_cast<int64_t>(team.row + row) * p.stride;
  }

  // ---- the stream of weights ----

  UNIFLUID_DEVICE uint32_t slot_words() const {
    return static_cast<uint32_t>(kWarps * warp_pieces * slot_columns * 16);
  }
  // Where this lane's piece i of a column of a unit lies.
  UNIFLUID_DEVICE uint32_t slot_index(int slot, int i, int column) const {
    const int piece = (warp_index() * warp_pieces + i) * slot_columns + column;
    return static_cast<uint32_t>(slot) * slot_words() + piece * 16 + lane_index() % 4 * 4;
  }
  // How many of the units before `unit` stay.
  UNIFLUID_DEVICE int staying_before(int unit) const { return unit * staying / units; }
  UNIFLUID_DEVICE bool stays(int unit) const {
    return staying_before(unit + 1) > staying_before(unit);
  }

  UNIFLUID_DEVICE const T* square(int product) const {
    const StepsBlock& block = p.blocks[product / 2];
    return static_cast<const T*>(product % 2 ? block.mlp2 : block.mlp0);
  }

  UNIFLUID_DEVICE void copy_unit(int unit, int slot) const {
    const T* weight = square(unit / tiles);
    const int first = unit % tiles * kTileColumns;
    for (int i = 0; i < own_pieces; ++i) {
      const int k = (first_piece + i) * kDepth<T> + lane_index() % 4 * kSize<T>;
      for (int column = lane_index() / 4; column < slot_columns; column += 8) {
        const bool valid = first + column < columns && k < p.width;
        const T* from = weight + static_cast<int64_t>(first_column + first + column) * p.width + k;
        cp_async16(weights, slot_index(slot, i, column),
                   reinterpret_cast<const uint32_t*>(valid ? from : weight), valid);
      }
    }
  }
  UNIFLUID_DEVICE void copy_next_streamed(int slot) {
    if (streamed_left > 0) {
      --streamed_left;
      while (stays(next_streamed)) next_streamed = (next_streamed + 1) % units;
      copy_unit(next_streamed, slot);
      next_streamed = (next_streamed + 1) % units;
    }
    cp_async_commit();  // an empty group too counts for the waits
  }
  UNIFLUID_DEVICE void begin_weights() {
    for (int unit = 0; unit < units && staying > 0; ++unit)
      if (stays(unit)) copy_unit(unit, staying_before(unit));
    cp_async_commit();
    for (int i = 0; i < kRing; ++i) copy_next_streamed(staying + i);
    cp_async_wait<kRing>();
  }
  // The slot of a unit whose turn it is, or -1: to be read from global memory.
  UNIFLUID_DEVICE int acquire(int unit) const {
    if (units == 0) return -1;
    if (stays(unit)) return staying_before(unit);
    if (ring == 0) return -1;
    cp_async_wait<kRing - 1>();
    return staying + ring_at;
  }
  UNIFLUID_DEVICE void release(int unit) {
    if (ring == 0 || stays(unit)) return;
    copy_next_streamed(staying + ring_at);
    ring_at = (ring_at + 1) % kRing;
  }

  // ---- products ----

  // For this block's columns [first, first + count) of `weight` and all rows of the team:
  // after(row, column, sum, operands), where `operands` are what before(row, column) loaded ahead
  // of the sums. The inputs lie in `x`. Columns count from `first`; `unit`: the first one of a
  // square matrix; -1: of another.
  template <class Before, class After>
  UNIFLUID_DEVICE void product(const T* weight, int first, int count, int unit, Before before,
                               After after) {
    for (int tile = 0; tile * kTileColumns < count; ++tile) {
      const int begin = tile * kTileColumns, here = min(kTileColumns, count - begin);
      float2 operands[kResults];
      for (int i = 0; i < kResults; ++i) {
        const int at = thread() + i * kThreads;
        if (at < team.rows * here) operands[i] = before(at / here, begin + at % here);
      }
      const int slot = unit < 0 ? -1 : acquire(unit + tile);
      Accumulator<T> sums[kRowTiles];
      if (slot >= 0)
        add_up(sums, here,
               [&](int i, int column) { return load_piece(weights, slot_index(slot, i, column)); });
      else
        add_up(sums, here, [&](int i, int column) {
          return read_piece(weight + static_cast<int64_t>(first + begin + column) * p.width,
                            (first_piece + i) * kDepth<T> + lane_index() % 4 * kSize<T>, p.width,
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
      if (unit >= 0) release(unit + tile);
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
    for (int i = 0; i < own_pieces; ++i) {
      const Piece low = g < here ? weight(i, g) : Piece{};
      const Piece high = g + 8 < here ? weight(i, g + 8) : Piece{};
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if (r * kTileRows >= team.rows) break;
        sums[r].add(low, high, x, team.rows - r * kTileRows, [&](int row) {
          row += r * kTileRows;
          return static_cast<uint32_t>(row * x_stride + ((first_piece + i) * 4 + t) * 4);
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
      hidden_row(row)[column] = sum;
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
    load_normalized(block.norm_weight, block.norm_bias, shift);
    product(
        static_cast<const T*>(block.mlp0), first_column, columns, 2 * b * tiles,
        [&](int, int column) { return make_float2(block.mlp0_bias[first_column + column], 0.0f); },
        [&](int row, int column, float sum, float2 bias) {
          inner_row(row)[first_column + column] =
              from_float<T>(activate<Activation::silu>(sum + bias.x));
        });
    meet();
    load_inner();
    product(
        static_cast<const T*>(block.mlp2), first_column, columns, (2 * b + 1) * tiles,
        [&](int row, int column) {
          return make_float2(block.mlp2_bias[first_column + column],
                             to_float(modulation_row(row)[gate + first_column + column]));
        },
        [&](int row, int column, float sum, float2 bias_gate) {
          const uint32_t at = static_cast<uint32_t>(row * p.columns + column);
          const float v = fmaf(bias_gate.y, sum + bias_gate.x, own.load(at));
          own.store(at, v);
          hidden_row(row)[first_column + column] = v;
        });
    meet();
  }

  UNIFLUID_DEVICE void run_final() {
    const int each = (p.outputs + p.members - 1) / p.members, first = member * each;
    product(
        static_cast<const T*>(p.final_linear), first, min(each, p.outputs - first), -1,
        [&](int, int column) { return make_float2(p.final_linear_bias[first + column], 0.0f); },
        [&](int row, int column, float sum, float2 bias) {
          const int64_t at = team.row + row;
          sum += bias.x;
          if (p.network_out)
            static_cast<T*>(p.network_out)[at * p.network_stride + first + column] =
                from_float<T>(sum);
          else
            p.out[at * p.outputs + first + column] = sum;
        });
  }

  // x = norm(hidden) * (1 + scale) + shift, where norm is layer norm, with weight and bias unless
  // null; a warp a row. `shift`: the column of the modulations; scales follow.
  UNIFLUID_DEVICE void load_normalized(const float* weight, const float* bias, int shift) {
    for (int row = warp_index(); row < team.rows; row += kWarps) {
      const float* from = hidden_row(row);
      constexpr int kHeld = kHeldElements / kSize<T>;
      float held[kHeld][kSize<T>];
      const auto load = [&](int k, float(&values)[kSize<T>]) {
        for (int i = 0; i < kSize<T>; i += 4) {
          const Piece four = piece_of(load_fresh(reinterpret_cast<const uint4*>(from + k + i)));
          for (int e = 0; e < 4; ++e)
            values[i + e] = k + i + e < p.width ? element<float>(four, e) : 0.0f;
        }
      };
      const int step = kWarp * kSize<T>, begin = lane_index() * kSize<T>;
      // visit(k, values) for all pieces of the lane, in ascending order
      const auto each = [&](auto visit) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
          if (begin + i * step < p.stride) visit(begin + i * step, held[i]);
        for (int k = begin + kHeld * step; k < p.stride; k += step) {
          float values[kSize<T>];
          load(k, values);
          visit(k, values);
        }
      };
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
        if (begin + i * step < p.stride) load(begin + i * step, held[i]);
      float total = 0;
      each([&](int, const float(&values)[kSize<T>]) {
        for (int i = 0; i < kSize<T>; ++i) total += values[i];
      });
      const float mean = warp_sum(total) / static_cast<float>(p.width);
      float squares = 0;
      each([&](int k, const float(&values)[kSize<T>]) {
        for (int i = 0; i < kSize<T>; ++i) {
          const float d = k + i < p.width ? values[i] - mean : 0.0f;
          squares = fmaf(d, d, squares);
        }
      });
      const float variance = warp_sum(squares) / static_cast<float>(p.width);
      const float inverse = 1.0f / sqrtf(variance + kNormEps);
      const T* shifts = modulation_row(row) + shift;
      const T* scales = shifts + p.width;
      const bool aligned = p.width % kSize<T> == 0;
      each([&](int k, const float(&values)[kSize<T>]) {
        const Piece add = read_piece(shifts, k, p.width, aligned);
        const Piece scale = read_piece(scales, k, p.width, aligned);
        float normalized[kSize<T>];
        for (int i = 0; i < kSize<T>; ++i) {
          float v = (values[i] - mean) * inverse;
          if (weight && k + i < p.width) v = fmaf(v, weight[k + i], bias[k + i]);
          v = fmaf(v, 1.0f + element<T>(scale, i), element<T>(add, i));
          normalized[i] = k + i < p.width ? v : 0.0f;
        }
        store_piece(x, row * x_stride + k / kSize<T> * 4, piece_of<T>(normalized));
      });
    }
    __syncthreads();
  }

  // x = inner
  UNIFLUID_DEVICE void load_inner() {
    const int row_pieces = pieces * 4;
    for (int at = thread(); at < team.rows * row_pieces; at += kThreads) {
      const int row = at / row_pieces, k = at % row_pieces * kSize<T>;
      Piece piece{};
      if (k < p.width)
        piece = piece_of(load_fresh(reinterpret_cast<const uint4*>(inner_row(row) + k)));
      if (k + kSize < T >> p.width) {  // nobody wrote what lies behind the width
        float values[kSize<T>];
        for (int i = 0; i < kSize<T>; ++i)
          values[i] = k + i < p.width ? element<T>(piece, i) : 0.0f;
        piece = piece_of<T>(values);
      }
      store_piece(x, row * x_stride + at % row_pieces * 4, piece);
    }
    __syncthreads();
  }

  // ---- the sampler ----

  // The latents after a step, from the network's outputs.
  UNIFLUID_DEVICE void update(int step_index) {
    const DiffusionStep step = p.step_table[step_index];
    for (int at = thread(); at < team.tokens * p.channels; at += kThreads) {
      const int token_index = team.token + at / p.channels, c = at % p.channels;
      const StepsToken token = p.token_table[token_index];
      const float* out = p.out + static_cast<int64_t>(token.row) * p.outputs;
      const float limit = token.x0_limit;
      const auto limited = [limit](float v) { return fminf(fmaxf(v, -limit), limit); };
      const float now = state.load(at);
      float predicted = load_fresh(out + c);
      if (token.rows > 1) {
        const float empty = load_fresh(out + p.outputs + c);
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
      if (step.noise) {
        const float f = 0.5f * (load_fresh(out + p.channels + c) + 1.0f);
        const float log_variance = f * step.log_beta + (1.0f - f) * step.log_tilde;
        const float noise =
            p.noise[(static_cast<int64_t>(step_index) * p.tokens + token_index) * p.channels + c];
        next += token.temperature * expf(0.5f * log_variance) * noise;
      }
      state.store(at, next);
    }
  }

  const StepsParams& p;
  const StepsTeam team;
  const int member, first_column, columns;
  // Of the depth, in runs of kDepth: all, a warp's share, this warp's first and how many it has.
  const int pieces, warp_pieces, first_piece, own_pieces;
  const int x_stride, slot_columns, tiles, units;

  Shared<uint32_t> x;        // [rows, x_stride] the inputs of a product
  Shared<float> partial;     // [warps, rows, kPartialStride]
  Shared<float> own;         // [rows, columns] hidden, of the block's columns
  Shared<float> state;       // [tokens, C]
  Shared<uint32_t> weights;  // [slots, slot_words]

  int staying = 0, ring = 0;  // slots of either kind
  int ring_at = 0, next_streamed = 0, streamed_left = 0;
  uint32_t round = 0;
  const T* modulation = nullptr;  // of this step and the team's first row
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) sampling_steps(StepsParams params) {
  Worker<T>(params).run();
}

// ---- the plan ----

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Bytes of shared memory without and with one slot.
size_t fixed_bytes(const DiffusionHeadWeights& head, DType type, int64_t rows, int64_t tokens,
                   int64_t columns) {
  const int64_t words = steps_stride(type, head.width) * static_cast<int64_t>(size_of(type)) / 4;
  SharedBytes bytes;
  bytes.take<uint32_t>(static_cast<size_t>(rows * input_stride(static_cast<int>(words))))
      .take<float>(static_cast<size_t>(kWarps * rows * kPartialStride))
      .take<float>(static_cast<size_t>(rows * columns))
      .take<float>(static_cast<size_t>(tokens * head.channels));
  return bytes.used;
}
size_t slot_bytes(const DiffusionHeadWeights& head, DType type, int64_t columns) {
  const int64_t depth = 64 / static_cast<int64_t>(size_of(type));
  const int64_t warp_pieces = blocks_for(blocks_for(head.width, depth), kWarps);
  return static_cast<size_t>(kWarps * warp_pieces * std::min<int64_t>(columns, kTileColumns) * 64);
}

struct Split {
  int64_t teams = 0, members = 0, columns = 0, quota = 0;
};

// How many teams: the fewest elements read from the second-level cache for each row and product,
// since that is what all blocks wait for.
Split best_split(const DiffusionHeadWeights& head, DType type, const DeviceLimits& limits,
                 int64_t rows, int64_t tokens) {
  Split best;
  double least = 0;
  const bool guided = rows > tokens, mixed = guided && rows < 2 * tokens;
  for (int64_t teams = 1; teams <= std::min<int64_t>(limits.processors, tokens); ++teams) {
    Split split{teams, limits.processors / teams, 0, 0};
    // Pairs of columns, so that results are written in whole words.
    split.columns = round_up(blocks_for(head.width, split.members), 2);
    split.members = blocks_for(head.width, split.columns);
    // A team takes tokens until none fits; one of two rows may leave a place free.
    split.quota = blocks_for(rows, teams);
    if (guided) split.quota = mixed ? split.quota + 1 : round_up(split.quota, 2);
    split.quota = std::min<int64_t>(split.quota, kMostRows);
    while (split.quota > 0 &&
           fixed_bytes(head, type, split.quota, split.quota, split.columns) > limits.shared_bytes)
      --split.quota;
    if (split.quota < (guided ? 2 : 1)) continue;
    const double cost = static_cast<double>(split.quota + split.columns) /
                        static_cast<double>(std::min(rows, teams * split.quota));
    if (best.teams > 0 && cost >= least) continue;
    best = split;
    least = cost;
  }
  if (best.teams == 0)
    throw Error(error_code::kInvalidArgument,
                "expected a diffusion head whose rows fit into the GPU's shared memory of " +
                    std::to_string(limits.shared_bytes) + " bytes but received a width of " +
                    std::to_string(head.width));
  return best;
}

bool readable_in_vectors(const DiffusionHeadWeights& head) {
  bool aligned = aligned16(head.final_linear);
  for (int64_t b = 0; b < head.depth; ++b)
    aligned = aligned && aligned16(head.blocks[b].mlp0) && aligned16(head.blocks[b].mlp2);
  return aligned;
}

}  // namespace

int64_t steps_stride(DType type, int64_t width) {
  return round_up(width, 64 / static_cast<int64_t>(size_of(type)));
}

std::vector<StepsPass> plan_steps(const DiffusionHeadWeights& head, DType type,
                                  const DeviceLimits& limits, const std::vector<int32_t>& rows) {
  std::vector<StepsPass> passes;
  const int64_t count = static_cast<int64_t>(rows.size());
  int64_t rows_left = 0;
  for (int32_t r : rows) rows_left += r;
  for (int64_t next = 0; next < count;) {
    const Split split = best_split(head, type, limits, rows_left, count - next);
    StepsPass pass;
    pass.first_token = next;
    pass.members = static_cast<int>(split.members);
    pass.columns = static_cast<int>(split.columns);
    for (int64_t t = 0; t < split.teams && next < count; ++t) {
      StepsTeam team{static_cast<int32_t>(pass.tokens), 0, static_cast<int32_t>(pass.rows), 0};
      for (; next < count && team.rows + rows[next] <= split.quota; ++next) {
        team.rows += rows[next];
        ++team.tokens;
      }
      pass.tokens += team.tokens;
      pass.rows += team.rows;
      pass.most_rows = std::max(pass.most_rows, team.rows);
      pass.most_tokens = std::max(pass.most_tokens, team.tokens);
      pass.teams.push_back(team);
    }
    rows_left -= pass.rows;
    pass.shared = fixed_bytes(head, type, pass.most_rows, pass.most_tokens, pass.columns);
    if (readable_in_vectors(head)) {
      const size_t slot = slot_bytes(head, type, pass.columns);
      const int64_t units = 2 * head.depth * blocks_for(pass.columns, kTileColumns);
      pass.slots = static_cast<int>(std::min<int64_t>(
          units, static_cast<int64_t>((limits.shared_bytes - pass.shared) / slot)));
      pass.shared += static_cast<size_t>(pass.slots) * slot;
    }
    passes.push_back(std::move(pass));
  }
  return passes;
}

void launch_steps(Queue& queue, const DiffusionHeadWeights& head, DType type, const StepsPass& pass,
                  StepsParams params) {
  params.aligned = readable_in_vectors(head);
  params.members = pass.members;
  params.columns = pass.columns;
  params.most_rows = pass.most_rows;
  params.most_tokens = pass.most_tokens;
  params.slots = pass.slots;
  with_type(type, [&](auto zero) {
    queue.launch_cooperative(
        sampling_steps<decltype(zero)>,
        dim3(static_cast<unsigned>(pass.teams.size()) * static_cast<unsigned>(pass.members)),
        dim3(kThreads), pass.shared, params);
  });
}

}  // namespace unifluid::cuda
