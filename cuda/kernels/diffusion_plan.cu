// How the sampling steps of the diffusion head are shared out to blocks (diffusion_steps.cu).
#include <algorithm>
#include <string>

#include "core/error.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/diffusion_cluster.h"
#include "cuda/kernels/diffusion_steps.h"
#include "cuda/kernels/diffusion_tile.h"

namespace unifluid::cuda {
namespace {

using namespace steps;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Bytes of shared memory that a block takes beside slots, and of one slot. The launch has a block
// on every processor, which fits: `kThreads` threads may have all of its registers.
size_t fixed_bytes(const DiffusionHeadWeights& head, DType type, int64_t rows, int64_t tokens,
                   int64_t columns, bool posts) {
  const int64_t words = steps_stride(type, head.width) * static_cast<int64_t>(size_of(type)) / 4;
  SharedBytes bytes;
  bytes.take<uint32_t>(static_cast<size_t>(rows * input_stride(static_cast<int>(words))))
      .take<float>(static_cast<size_t>(kWarps * rows * kPartialStride))
      .take<float>(static_cast<size_t>(rows * columns))
      .take<float>(kMoments)
      .take<float>(static_cast<size_t>(tokens * head.channels))
      .take<uint64_t>(static_cast<size_t>(head.depth) * sizeof(StepsBlock) / sizeof(uint64_t))
      .take<float>(posts ? static_cast<size_t>(columns * (head.channels + 1)) : 0);
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
    while (split.quota > 0 && fixed_bytes(head, type, split.quota, split.quota, split.columns,
                                          false) > limits.shared_bytes)
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

// Words of a row of posts: hidden, inner and outputs take turns in it.
int64_t posts_stride(const DiffusionHeadWeights& head, DType type) {
  const int64_t run = type == DType::f32 ? kRun<float> : kRun<bf16>;
  return std::max(round_up(head.width, run), round_up(2 * head.channels, 2));
}

bool norms_readable_in_vectors(const DiffusionHeadWeights& head) {
  const auto aligned = [](const float* v) { return reinterpret_cast<uintptr_t>(v) % 16 == 0; };
  bool all = head.width % 4 == 0;
  for (int64_t b = 0; b < head.depth; ++b)
    all = all && aligned(head.blocks[b].norm_weight) && aligned(head.blocks[b].norm_bias);
  return all;
}

bool readable_in_vectors(const DiffusionHeadWeights& head) {
  bool aligned = aligned16(head.final_linear);
  for (int64_t b = 0; b < head.depth; ++b)
    aligned = aligned && aligned16(head.blocks[b].mlp0) && aligned16(head.blocks[b].mlp2);
  return aligned;
}

// ---- on clusters ----

// Up to so many rows posts are faster: on an H200 4 rows took 6.7 ms with posts and 9.8 on a
// cluster, 8 rows about 10 either way.
constexpr int64_t kMostRowsAlone = 6;

// How many tiles of rows a team has on a cluster; 0: no clusters. What a product takes is the
// longest of three: matrices come to a processor and, for all teams, out of the second-level cache
// at so many bytes a clock, and the path of a product from barrier to barrier is longer with more
// rows: in clocks, near what an H200 took, that of three tiles between those of two and four. The
// rates are by calculation.
int best_cluster_tiles(const DiffusionHeadWeights& head, DType type, const DeviceLimits& limits,
                       int64_t rows, int64_t tokens) {
  if (limits.clusters == 0 || type != DType::bf16 || rows <= kMostRowsAlone ||
      !readable_in_vectors(head) || !norms_readable_in_vectors(head))
    return 0;
  constexpr double kCacheBytes = 2900, kProcessorBytes = 64;
  struct Tiles {
    int count;
    double path;
  };
  const double matrix = 2.0 * static_cast<double>(head.width) * static_cast<double>(head.width);
  int best = 0;
  double least = 0;
  for (const auto& [count, path] :
       {Tiles{1, 9000}, Tiles{2, 10000}, Tiles{3, 11300}, Tiles{4, 12500}}) {
    const size_t bytes = cluster::shared_bytes(head, count);
    if (bytes == 0 || bytes > limits.shared_bytes) continue;
    // Where tokens of two rows lie among others a team may leave a place free.
    const int64_t places = count * kTileRows - (rows > tokens && rows < 2 * tokens ? 1 : 0);
    const int64_t teams = blocks_for(rows, places);
    const double turns = blocks_for(teams, limits.clusters);
    const double cost =
        turns * std::max({path, matrix / cluster::kMembers / kProcessorBytes,
                          static_cast<double>(teams) / turns * matrix / kCacheBytes});
    if (best > 0 && cost >= least) continue;
    best = count;
    least = cost;
  }
  return best;
}

Split cluster_split(const DiffusionHeadWeights& head, const DeviceLimits& limits, int tiles) {
  return {limits.clusters, cluster::kMembers, head.width / cluster::kMembers,
          int64_t{tiles} * kTileRows};
}

}  // namespace

int64_t steps_stride(DType type, int64_t width) {
  return round_up(width, 64 / static_cast<int64_t>(size_of(type)));
}

int64_t most_posts(const DiffusionHeadWeights& head, DType type, const DeviceLimits& limits,
                   int64_t rows) {
  const int64_t posted = std::min<int64_t>(rows, int64_t{limits.processors} * kMostPostedRows);
  return kPostRounds * posted * posts_stride(head, type);
}

std::vector<StepsPass> plan_steps(const DiffusionHeadWeights& head, DType type,
                                  const DeviceLimits& limits, const std::vector<int32_t>& rows) {
  std::vector<StepsPass> passes;
  const int64_t count = static_cast<int64_t>(rows.size());
  int64_t rows_left = 0;
  for (int32_t r : rows) rows_left += r;
  for (int64_t next = 0; next < count;) {
    StepsPass pass;
    pass.cluster_tiles = best_cluster_tiles(head, type, limits, rows_left, count - next);
    const Split split = pass.cluster_tiles > 0
                            ? cluster_split(head, limits, pass.cluster_tiles)
                            : best_split(head, type, limits, rows_left, count - next);
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
    if (pass.cluster_tiles > 0) {
      pass.shared = cluster::shared_bytes(head, pass.cluster_tiles);
      passes.push_back(std::move(pass));
      continue;
    }
    pass.aligned = readable_in_vectors(head);
    pass.vectors_aligned = norms_readable_in_vectors(head);
    const auto shared = [&](bool posts) {
      return fixed_bytes(head, type, pass.most_rows, pass.most_tokens, pass.columns, posts);
    };
    pass.posts = pass.most_rows <= kMostPostedRows && pass.aligned && pass.vectors_aligned &&
                 shared(true) <= limits.shared_bytes;
    pass.pair = pass.posts && pair_fits(head, type, pass);
    pass.shared = pass.pair ? pair_bytes(head) : shared(pass.posts);
    if (pass.aligned) {
      const size_t slot = slot_bytes(head, type, pass.columns);
      const int64_t units = 2 * head.depth * blocks_for(pass.columns, kTileColumns);
      pass.slots = static_cast<int>(std::min<int64_t>(
          units, static_cast<int64_t>((limits.shared_bytes - pass.shared) / slot)));
      pass.shared += static_cast<size_t>(pass.slots) * slot;
    }
    pass.posts_stride = posts_stride(head, type);
    pass.post_count = pass.posts ? kPostRounds * pass.rows * pass.posts_stride : 0;
    passes.push_back(std::move(pass));
  }
  return passes;
}

}  // namespace unifluid::cuda
