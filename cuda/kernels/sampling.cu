// soft_cap and sample_text: from logits to a token.
//
// A vocabulary is a quarter of a million logits and a step has few rows, so each row is cut into
// chunks that blocks take: the largest of every chunk; then, for rows that are drawn, the float64
// sum of every chunk's weights exp(logit / temperature - top); then one block a row finds the chunk
// and in it the id. Chunks depend on the vocabulary alone and all sums have one order. The last
// kernel sums its chunk as the one before did, with the same function: what made a chunk the chosen
// one makes one of its ids the chosen one.
//
// Float64 is slow on most GPUs; shared by all multiprocessors it is microseconds even there.
#include <cfloat>

#include "cuda/device/dependence.h"
#include "cuda/device/math.h"
#include "cuda/device/warp.h"
#include "cuda/kernels.h"
#include "cuda/kernels/rows.h"

namespace unifluid::cuda {
namespace {

// ---- soft cap ----

struct CapParams {
  void* x;
  int64_t stride;
  PieceGrid grid;
  float cap;
};

template <class T, bool kAligned>
__global__ void __launch_bounds__(kPieceThreads) soft_cap_pieces(CapParams p) {
  let_dependents_start();
  wait_for_inputs();
  const PiecePlace at = piece_place(p.grid);
  if (!at.inside) return;
  T* x = static_cast<T*>(p.x) + at.row * p.stride;
  Piece v = load_piece<kAligned>(x, at.column, p.grid.cols);
  for (int i = 0; i < kPiece; ++i) v.value[i] = soft_capped(v.value[i], p.cap);
  store_piece<kAligned>(x, at.column, p.grid.cols, v);
}

// ---- sampling ----

// One piece a thread: 125 chunks for a vocabulary of 256 000.
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kChunk = kThreads * kPiece;

struct TextDraw {
  double uniform;
  float temperature;
};

// The largest logit of a chunk, the first of equals.
struct Largest {
  float value;
  int32_t id;
  bool finite;  // all logits of the chunk are
};

struct Params {
  const void* logits;
  const TextDraw* draws;
  Largest* largest;  // [m, chunks]
  double* sums;      // [m, chunks]
  int32_t* ids;      // [m]
  int64_t stride;
  int32_t vocab, chunks;
};

UNIFLUID_DEVICE Largest larger(const Largest& a, const Largest& b) {
  const bool first = a.value > b.value || (a.value == b.value && a.id < b.id);
  return {first ? a.value : b.value, first ? a.id : b.id, a.finite && b.finite};
}

struct LargestScratch {
  Shared<float> values;
  Shared<int32_t> ids;
  Shared<int32_t> finite;
};

// Of all threads of the block; all get it. Ends with a barrier.
UNIFLUID_DEVICE Largest block_largest(Largest mine, const LargestScratch& scratch) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    mine = larger(mine, {__shfl_xor_sync(kAllLanes, mine.value, offset),
                         __shfl_xor_sync(kAllLanes, mine.id, offset),
                         __shfl_xor_sync(kAllLanes, static_cast<int>(mine.finite), offset) != 0});
  if (lane_index() == 0) {
    const uint32_t warp = static_cast<uint32_t>(warp_index());
    scratch.values.store(warp, mine.value);
    scratch.ids.store(warp, mine.id);
    scratch.finite.store(warp, mine.finite);
  }
  __syncthreads();
  Largest most{scratch.values.load(0), scratch.ids.load(0), scratch.finite.load(0) != 0};
  for (uint32_t w = 1; w < kWarps; ++w)
    most = larger(most, {scratch.values.load(w), scratch.ids.load(w), scratch.finite.load(w) != 0});
  __syncthreads();
  return most;
}

constexpr Largest kNone{-FLT_MAX, INT32_MAX, true};

// Of a whole row, from its chunks'.
UNIFLUID_DEVICE Largest row_largest(const Params& p, int64_t row, const LargestScratch& scratch) {
  Largest mine = kNone;
  for (int c = static_cast<int>(threadIdx.x); c < p.chunks; c += kThreads)
    mine = larger(mine, p.largest[row * p.chunks + c]);
  return block_largest(mine, scratch);
}

// Running sums over the block: `before` is the sum of `mine` over the threads before this one, and
// `all` that of the whole block, with the bits of before + mine of the last thread. Ends with a
// barrier.
struct Running {
  double before, all;
};
UNIFLUID_DEVICE Running block_running(double mine, const Shared<double>& scratch) {
  double through = mine;  // of the warp's lanes up to this one
  for (int by = 1; by < kWarp; by *= 2) {
    const double other = __shfl_up_sync(kAllLanes, through, static_cast<unsigned>(by));
    if (lane_index() >= by) through += other;
  }
  double before = __shfl_up_sync(kAllLanes, through, 1u);
  if (lane_index() == 0) before = 0;
  const uint32_t warp = static_cast<uint32_t>(warp_index());
  if (lane_index() == kWarp - 1) scratch.store(warp, through);
  __syncthreads();
  double warps_before = 0;
  for (uint32_t w = 0; w < warp; ++w) warps_before += scratch.load(w);
  before += warps_before;
  if (threadIdx.x == kThreads - 1) scratch.store(kWarps, before + mine);
  __syncthreads();
  const double all = scratch.load(kWarps);
  __syncthreads();
  return {before, all};
}

// The smallest id of the block's threads. Ends with a barrier.
UNIFLUID_DEVICE int32_t block_least(int32_t mine, const Shared<int32_t>& scratch) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    mine = min(mine, __shfl_xor_sync(kAllLanes, mine, offset));
  if (lane_index() == 0) scratch.store(static_cast<uint32_t>(warp_index()), mine);
  __syncthreads();
  int32_t least = scratch.load(0);
  for (uint32_t w = 1; w < kWarps; ++w) least = min(least, scratch.load(w));
  __syncthreads();
  return least;
}

// Running sums within this thread's piece of a chunk: through[i] is the sum of the weights of its
// elements up to i. Nothing is added for elements past the end of the row.
struct Weights {
  double through[kPiece];
};
template <class T, bool kAligned>
UNIFLUID_DEVICE Weights piece_weights(const Params& p, const T* row, int column, float most,
                                      double temperature) {
  Weights weights{};
  if (column >= p.vocab) return weights;
  const Piece x = load_piece<kAligned>(row, column, p.vocab);
  const double top = most / temperature;
  double running = 0;
  for (int i = 0; i < kPiece; ++i) {
    if (column + i < p.vocab) running += exp(x.value[i] / temperature - top);
    weights.through[i] = running;
  }
  return weights;
}

template <class T>
UNIFLUID_DEVICE const T* row_of(const Params& p, int64_t row) {
  return static_cast<const T*>(p.logits) + row * p.stride;
}

UNIFLUID_DEVICE LargestScratch take_largest_scratch(SharedArena& arena) {
  return {arena.take<float>(kWarps), arena.take<int32_t>(kWarps), arena.take<int32_t>(kWarps)};
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) chunk_largest(Params p) {
  let_dependents_start();
  wait_for_inputs();
  SharedArena arena;
  const LargestScratch scratch = take_largest_scratch(arena);
  const int64_t row = blockIdx.y;
  const int column = static_cast<int>(blockIdx.x) * kChunk + static_cast<int>(threadIdx.x) * kPiece;
  Largest mine = kNone;
  if (column < p.vocab) {
    const Piece x = load_piece<kAligned>(row_of<T>(p, row), column, p.vocab);
    for (int i = 0; i < kPiece; ++i) {
      if (column + i >= p.vocab) continue;
      const bool finite = fabsf(x.value[i]) <= FLT_MAX;  // false for what is not a number, too
      mine = larger(mine, {finite ? x.value[i] : -FLT_MAX, column + i, finite});
    }
  }
  mine = block_largest(mine, scratch);
  if (threadIdx.x == 0) p.largest[row * p.chunks + blockIdx.x] = mine;
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) chunk_sums(Params p) {
  let_dependents_start();
  wait_for_inputs();
  SharedArena arena;
  const LargestScratch scratch = take_largest_scratch(arena);
  const auto running = arena.take<double>(kWarps + 1);
  const int64_t row = blockIdx.y;
  const double temperature = p.draws[row].temperature;
  if (temperature == 0) return;
  const Largest most = row_largest(p, row, scratch);
  if (!most.finite) return;
  const int column = static_cast<int>(blockIdx.x) * kChunk + static_cast<int>(threadIdx.x) * kPiece;
  const Weights weights =
      piece_weights<T, kAligned>(p, row_of<T>(p, row), column, most.value, temperature);
  const Running sums = block_running(weights.through[kPiece - 1], running);
  if (threadIdx.x == 0) p.sums[row * p.chunks + blockIdx.x] = sums.all;
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) choose(Params p) {
  let_dependents_start();
  wait_for_inputs();
  SharedArena arena;
  const LargestScratch scratch = take_largest_scratch(arena);
  const auto running = arena.take<double>(kWarps + 1);
  const auto before_chunk = arena.take<double>(1);
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const Largest most = row_largest(p, row, scratch);
  const double temperature = p.draws[row].temperature;
  if (!most.finite || temperature == 0) {
    if (thread == 0) p.ids[row] = most.finite ? most.id : -1;
    return;
  }

  // Each thread takes the sums of a run of chunks: one, unless the vocabulary is enormous.
  const double* sums = p.sums + row * p.chunks;
  const int run = (p.chunks + kThreads - 1) / kThreads;
  const int first = min(thread * run, p.chunks), end = min(first + run, p.chunks);
  double mine = 0;
  for (int c = first; c < end; ++c) mine += sums[c];
  const Running chunks = block_running(mine, running);
  const double wanted = p.draws[row].uniform * chunks.all;

  int32_t chosen = INT32_MAX;
  double within = 0, before = 0;
  for (int c = first; c < end; ++c) {
    const double start = chunks.before + within;
    if (start + sums[c] > wanted) {
      chosen = c;
      before = start;
      break;
    }
    within += sums[c];
  }
  const int32_t chunk = block_least(chosen, scratch.ids);
  if (chunk == INT32_MAX) {  // rounding leaves the whole sum at or below the draw
    if (thread == 0) p.ids[row] = p.vocab - 1;
    return;
  }
  if (chosen == chunk) before_chunk.store(0, before);
  __syncthreads();
  before = before_chunk.load(0);

  const int column = chunk * kChunk + thread * kPiece;
  const Weights weights =
      piece_weights<T, kAligned>(p, row_of<T>(p, row), column, most.value, temperature);
  const Running pieces = block_running(weights.through[kPiece - 1], running);
  int32_t id = INT32_MAX;
  for (int i = kPiece - 1; i >= 0; --i)
    if (before + (pieces.before + weights.through[i]) > wanted) id = column + i;
  id = block_least(id, scratch.ids);
  if (thread == 0) p.ids[row] = min(id, p.vocab - 1);
}

}  // namespace

void soft_cap(Queue& queue, const SoftCapArgs& args) {
  if (args.x.rows == 0) return;
  CapParams p{};
  p.x = args.x.data;
  p.stride = args.x.stride;
  p.grid = PieceGrid(args.x.rows, args.x.cols);
  p.cap = args.cap;
  const bool aligned = whole_pieces(args.x);
  with_type(args.x.type, [&](auto t) {
    using T = decltype(t);
    queue.launch_dependent(aligned ? soft_cap_pieces<T, true> : soft_cap_pieces<T, false>,
                           p.grid.blocks(), dim3(kPieceThreads), 0, p);
  });
}

size_t sample_text_scratch(int64_t rows, int64_t vocab) {
  const size_t chunks = static_cast<size_t>(rows) * blocks_for(vocab, kChunk);
  return Queue::piece_bytes(chunks * sizeof(Largest)) + Queue::piece_bytes(chunks * sizeof(double));
}

void sample_text(Queue& queue, const SampleTextArgs& args) {
  if (args.logits.rows == 0) return;
  const size_t rows = static_cast<size_t>(args.logits.rows);
  Params p{};
  p.chunks = static_cast<int32_t>(blocks_for(args.logits.cols, kChunk));
  const size_t chunks = rows * static_cast<size_t>(p.chunks);
  queue.reserve_scratch(sample_text_scratch(args.logits.rows, args.logits.cols));
  p.largest = queue.scratch<Largest>(chunks);
  p.sums = queue.scratch<double>(chunks);
  p.ids = args.ids;
  std::vector<TextDraw> draws(rows);
  for (size_t i = 0; i < rows; ++i) draws[i] = {args.uniform[i], args.temperature[i]};
  p.draws = queue.stage(draws.data(), rows);
  p.logits = args.logits.data;
  p.stride = args.logits.stride;
  p.vocab = static_cast<int32_t>(args.logits.cols);
  const dim3 grid(static_cast<unsigned>(p.chunks), static_cast<unsigned>(rows));
  const size_t largest =
      SharedBytes{}.take<float>(kWarps).take<int32_t>(kWarps).take<int32_t>(kWarps).used;
  const size_t sums = SharedBytes{largest}.take<double>(kWarps + 1).used;
  const size_t chosen = SharedBytes{sums}.take<double>(1).used;
  with_type(args.logits.type, [&](auto t) {
    using T = decltype(t);
    const auto run = [&](auto aligned) {
      constexpr bool kAligned = decltype(aligned)::value;
      queue.launch_dependent(chunk_largest<T, kAligned>, grid, dim3(kThreads), largest, p);
      queue.launch_dependent(chunk_sums<T, kAligned>, grid, dim3(kThreads), sums, p);
      queue.launch_dependent(choose<T, kAligned>, dim3(static_cast<unsigned>(rows)), dim3(kThreads),
                             chosen, p);
    };
    if (whole_pieces(args.logits))
      run(std::true_type{});
    else
      run(std::false_type{});
  });
}

}  // namespace unifluid::cuda
