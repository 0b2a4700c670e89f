// The sampling steps of the diffusion head: one launch for all steps whose modulations are at hand
// (diffusion_steps.cu says how). diffusion.cu makes what they need and calls this.
#pragma once

#include <cstdint>
#include <vector>

#include "core/backend.h"
#include "cuda/device/exchange.h"
#include "cuda/kernels/diffusion_tile.h"
#include "cuda/queue.h"

namespace unifluid::cuda {

// ---- what is staged for the kernel ----

// One block of the head; matrices in the compute type.
struct StepsBlock {
  const void *mlp0, *mlp2;
  const float *norm_weight, *norm_bias, *mlp0_bias, *mlp2_bias;
};

// The same as words of 8 bytes.
enum class StepsField { mlp0, mlp2, norm_weight, norm_bias, mlp0_bias, mlp2_bias, count };
static_assert(sizeof(StepsBlock) == 8 * static_cast<int>(StepsField::count));
UNIFLUID_DEVICE uint32_t steps_field(int block, StepsField field) {
  return static_cast<uint32_t>(block * static_cast<int>(StepsField::count) +
                               static_cast<int>(field));
}

// A token of a pass. Its rows lie side by side, that of the prompt's condition first.
struct StepsToken {
  int32_t row;
  int32_t rows;  // 2: guided
  float guidance, temperature, x0_limit;
  int32_t cell;
  uint64_t seed;
  float* out;
};

// Blocks that work on the same tokens, which are theirs alone.
struct StepsTeam {
  int32_t token, tokens;
  int32_t row, rows;
};

// What a norm knows of the parts of a row before they come.
struct StepsParts {
  float size[steps::kParts],
      inverse[steps::kParts];  // elements, and 1 / them, 1 where there are none
  float inverse_width;
};

// ---- the plan: how tokens are shared out ----

struct StepsPass {
  int64_t first_token = 0, tokens = 0, rows = 0;
  std::vector<StepsTeam> teams;        // tokens and rows counted from the pass's first
  int members = 0;                     // blocks of a team
  int columns = 0;                     // of the square matrices, for each member
  int most_rows = 0, most_tokens = 0;  // of a team
  int slots = 0;                       // parts of matrices that a block holds in shared memory
  size_t shared = 0;                   // bytes
  bool aligned = false;                // matrices can be read in vectors,
  bool vectors_aligned = false;        // and the weights and biases of norms
  bool posts = false;                  // rows go from block to block by posts, not barriers;
                                       // all can be read in vectors then
  bool pair = false;                   // all that, and by the kernel of one row or two
  int64_t posts_stride = 0, post_count = 0;
  int cluster_tiles = 0;  // tiles of rows of a team on a cluster of blocks; 0: no clusters
};

// Cuts tokens, `rows[i]` rows each (1 or 2), into passes, each of one launch for a run of steps.
// Throws INVALID_ARGUMENT where a row does not fit into shared memory.
std::vector<StepsPass> plan_steps(const DiffusionHeadWeights& head, DType type,
                                  const DeviceLimits& limits, const std::vector<int32_t>& rows);

// Entries of `StepsPass::post_count` at most, of a pass of up to so many rows.
int64_t most_posts(const DiffusionHeadWeights& head, DType type, const DeviceLimits& limits,
                   int64_t rows);

// Elements of a row of StepsParams::inner and hidden: the width in whole pieces.
int64_t steps_stride(DType type, int64_t width);

// ---- the launch ----

// `T`: the compute type. Rows and tokens are those of one pass.
struct StepsParams {
  const void* input_proj;  // [W, C]
  const float* input_proj_bias;
  const StepsBlock* blocks;  // [depth]
  const void* final_linear;  // [outputs, W]
  const float* final_linear_bias;
  int32_t channels, width, depth, outputs;
  bool flow;
  bool aligned, vectors_aligned;
  StepsParts parts;

  const void* modulation;  // T [steps * rows, modulation_width]
  int32_t modulation_width;
  int32_t rows, tokens;
  int32_t first_step, steps;        // of this launch
  int32_t step_count;               // of the whole
  const DiffusionStep* step_table;  // [step_count]
  const float* noise;               // [step_count, tokens, C]
  const StepsToken* token_table;    // [tokens]
  const int32_t* row_token;         // [rows], the token of each row
  const StepsTeam* team_table;
  int32_t members, columns, most_rows, most_tokens, slots;

  float* state;      // [tokens, C]: latents before this launch's first step, then after its last
  float* hidden;     // [rows, stride]
  void* inner;       // T [rows, stride]
  void* normalized;  // bf16 [rows, stride], on clusters
  int32_t stride;
  float* out;  // [rows, outputs]
  // Zeroed before the launch; one of the two serves.
  uint32_t* arrivals;  // [teams]
  Posted* posts;       // [post_count]
  int32_t posts_stride;
  bool last;  // results go to the tokens

  // The network alone: one step, and what it says is all that is asked.
  void* network_out;  // T [rows, network_stride], or null
  int64_t network_stride;
};

// The kernel of one row or two, where the plan says so (diffusion_pair.cu): whether it can serve,
// and the shared memory that it takes beside slots.
bool pair_fits(const DiffusionHeadWeights& head, DType type, const StepsPass& pass);
size_t pair_bytes(const DiffusionHeadWeights& head);
void launch_pair_steps(Queue& queue, const StepsPass& pass, const StepsParams& params);

// Fills in what the plan says of `params`, and launches.
void launch_steps(Queue& queue, DType type, const StepsPass& pass, StepsParams params);

}  // namespace unifluid::cuda
