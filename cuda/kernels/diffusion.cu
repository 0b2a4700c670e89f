// The diffusion head (spec section 6, MAR's SimpleMLPAdaLN) and its sampler.
//
// The modulations depend on condition and timestep, not on x, so those of many steps are one matrix
// product a block, taken ahead; so is the noise, which float64 makes slow on most GPUs. What is
// left is a chain of small products, one launch for all of its steps (diffusion_steps.cu):
//
//   timesteps, conditions -> per pass of tokens: noise -> per chunk of steps: [ y -> modulations ->
//   sampling steps ]
//
// Steps on clusters of blocks take as many processors as their rows need; on an H200 128 rows take
// 64 of 132. Where enough are idle, they compute the next chunk's y and modulations meanwhile.
//
// "Row": an input of the network. A guided token has two, with the prompt's condition and with the
// empty prompt's; another token one.
#include <algorithm>
#include <vector>

#include "core/backend.h"
#include "cuda/device/math.h"
#include "cuda/device/philox.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "cuda/kernels/diffusion_cluster.h"
#include "cuda/kernels/diffusion_steps.h"

namespace unifluid::cuda {
namespace {

constexpr int kThreads = 256;
// Rows of modulations held at a time, those of a chunk of steps or of two that are half as long:
// enough for their product to run at its full speed; at most 136 MB for a head of UniFluid's size
// in bf16.
int64_t modulation_rows(const DeviceLimits& limits) {
  return std::min<int64_t>(2048, int64_t{16} * limits.processors);
}

// ---- what goes before the steps ----

struct TimeParams {
  const float* time;  // [count]
  int64_t count;
  void* out;  // T [count, kTimeFeatures]
};

template <class T>
__global__ void time_features(TimeParams p) {
  constexpr int kHalf = kTimeFeatures / 2;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= p.count * kHalf) return;
  const int64_t row = at / kHalf;
  const int c = static_cast<int>(at % kHalf);
  const float angle = p.time[row] * time_frequency(c);
  T* out = static_cast<T*>(p.out) + row * kTimeFeatures;
  out[c] = from_float<T>(cosf(angle));
  out[kHalf + c] = from_float<T>(sinf(angle));
}

struct NoiseParams {
  const StepsToken* tokens;    // [token_count]
  const DiffusionStep* steps;  // [step_count]
  int32_t token_count, step_count, channels;
  bool flow;
  float* start;  // [token_count, C]
  float* noise;  // [step_count, token_count, C]; written where a step has noise
};

// A thread has four channels of a token: block row 0 its starting latents, block row s + 1 the
// noise of step s.
__global__ void draw_noise(NoiseParams p) {
  const int quads = (p.channels + 3) / 4;
  const int at = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (at >= p.token_count * quads) return;
  const int token_index = at / quads, quad = at % quads;
  const StepsToken token = p.tokens[token_index];
  const bool start = blockIdx.y == 0;
  const uint32_t step = start ? 0 : blockIdx.y - 1;
  if (!start && (p.flow || !p.steps[step].noise)) return;
  float drawn[4];
  normals(token.seed, static_cast<uint32_t>(quad), static_cast<uint32_t>(token.cell), step,
          start ? Draw::start_noise : Draw::step_noise, drawn);
  float* out = start ? p.start : p.noise + static_cast<int64_t>(step) * p.token_count * p.channels;
  out += static_cast<int64_t>(token_index) * p.channels;
  const float scale = start && p.flow ? token.temperature : 1.0f;
  for (int i = 0; i < 4 && quad * 4 + i < p.channels; ++i) out[quad * 4 + i] = scale * drawn[i];
}

struct LatentsParams {
  const void* x;  // T [rows, stride]
  int64_t rows, stride;
  int32_t channels;
  float* out;  // [rows, C]
};

template <class T>
__global__ void read_latents(LatentsParams p) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= p.rows * p.channels) return;
  const int64_t row = at / p.channels;
  p.out[at] = to_float(static_cast<const T*>(p.x)[row * p.stride + at % p.channels]);
}

struct ConditionParams {
  const float* time;       // [times, W] embedded timesteps
  const float* condition;  // [.., W] embedded rows of z
  const int32_t* z_row;    // [rows]
  int64_t first_time;      // of the chunk
  bool time_of_row;        // every row has its own; else every step
  int64_t steps, rows, width;
  void* out;  // T [steps * rows, W]
  // Of the launch that follows, zeroed for it.
  uint32_t* arrivals;
  Posted* posts;
  int64_t arrival_count, post_count;
};

// y = silu(time + condition)
template <class T>
__global__ void join_conditions(ConditionParams p) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < p.arrival_count) p.arrivals[at] = 0;
  if (at < p.post_count) p.posts[at] = {};
  if (at >= p.steps * p.rows * p.width) return;
  const int64_t line = at / p.width, c = at % p.width, row = line % p.rows;
  const int64_t time = p.first_time + (p.time_of_row ? row : line / p.rows);
  const float v =
      p.time[time * p.width + c] + p.condition[static_cast<int64_t>(p.z_row[row]) * p.width + c];
  static_cast<T*>(p.out)[at] = from_float<T>(activate<Activation::silu>(v));
}

// ---- both operations ----

// What is to be computed, tokens in the order of their rows.
struct Job {
  const DiffusionHeadWeights* head;
  DType type;
  Tensor z;
  std::vector<StepsToken> tokens;
  std::vector<int32_t> token_rows;  // of each token
  std::vector<int32_t> z_rows;      // of each row
  std::vector<float> times;         // of each step; of each row for the network alone

  const DiffusionSampleArgs* sample = nullptr;
  const DiffusionHeadArgs* network = nullptr;
};

struct Scratch {
  Tensor features, time_hidden, time_embed, condition, y, modulation;
  float *state, *noise, *hidden, *out;
  void *inner, *normalized;
  uint32_t* arrivals;
  Posted* posts;
};

// Names pieces of scratch memory twice: to count their bytes, and to have them.
class Pieces {
 public:
  explicit Pieces(Queue* queue) : queue_(queue) {}
  void* take(size_t bytes) {
    total_ += Queue::piece_bytes(bytes);
    return queue_ ? queue_->scratch<unsigned char>(bytes) : nullptr;
  }
  float* floats(int64_t count) {
    return static_cast<float*>(take(static_cast<size_t>(count) * sizeof(float)));
  }
  Tensor tensor(DType type, int64_t rows, int64_t cols) {
    Tensor t(nullptr, type, rows, cols);
    t.data = take(t.bytes());
    return t;
  }
  size_t total() const { return total_; }

 private:
  Queue* queue_;
  size_t total_ = 0;
};

int64_t outputs_of(const DiffusionHeadWeights& head) {
  return head.flow ? head.channels : 2 * head.channels;
}
int64_t modulation_width(const DiffusionHeadWeights& head) {
  return (3 * head.depth + 2) * head.width;
}
int64_t step_count(const Job& job) { return job.sample ? job.sample->step_count : 1; }

// The steps of a pass, some at a time.
struct Chunks {
  int64_t steps;  // of each, but for the last
  bool ahead;     // the next one's modulations are held, too, and computed beside the steps
};

Chunks chunks_of(const StepsPass& pass, int64_t steps, const DeviceLimits& limits) {
  const int64_t rows = modulation_rows(limits);
  const int64_t idle =
      limits.processors - static_cast<int64_t>(pass.teams.size()) * cluster::kMembers;
  // Fewer would get too little done beside the steps to be worth shorter chunks.
  if (pass.cluster_tiles > 0 && 8 * idle >= limits.processors) {
    const int64_t half = std::clamp<int64_t>(rows / 2 / pass.rows, 1, steps);
    if (half < steps) return {half, true};
  }
  return {std::clamp<int64_t>(rows / pass.rows, 1, steps), false};
}

// Rows of modulations.
int64_t lines_of(const StepsPass& pass, const Chunks& chunks, int64_t steps) {
  return pass.rows * std::min(chunks.ahead ? 2 * chunks.steps : chunks.steps, steps);
}

// What scratch is needed for. `lines`: rows of modulations at a time; `teams` have counters for two
// chunks.
struct Sizes {
  int64_t times, z_rows;                      // of the call
  int64_t rows, tokens, lines, posts, teams;  // of its largest pass, at most
  int64_t noises;                             // steps whose noise is drawn ahead
};

Sizes sizes_of(const Job& job, const std::vector<StepsPass>& passes, const DeviceLimits& limits) {
  Sizes s{};
  s.times = static_cast<int64_t>(job.times.size());
  s.z_rows = job.z.rows;
  for (const StepsPass& pass : passes) {
    s.rows = std::max(s.rows, pass.rows);
    s.tokens = std::max(s.tokens, pass.tokens);
    s.lines = std::max(s.lines,
                       lines_of(pass, chunks_of(pass, step_count(job), limits), step_count(job)));
    s.posts = std::max(s.posts, pass.post_count);
    s.teams = std::max(s.teams, static_cast<int64_t>(pass.teams.size()));
  }
  s.noises = job.sample && !job.head->flow ? step_count(job) : 0;
  return s;
}

Scratch take_scratch(const DiffusionHeadWeights& head, DType type, const Sizes& sizes,
                     Pieces pieces, size_t* total) {
  const int64_t stride = steps_stride(type, head.width);
  Scratch s;
  s.features = pieces.tensor(type, sizes.times, kTimeFeatures);
  s.time_hidden = pieces.tensor(type, sizes.times, head.width);
  s.time_embed = pieces.tensor(DType::f32, sizes.times, head.width);
  s.condition = pieces.tensor(DType::f32, sizes.z_rows, head.width);
  s.y = pieces.tensor(type, sizes.lines, head.width);
  s.modulation = pieces.tensor(type, sizes.lines, modulation_width(head));
  s.state = pieces.floats(sizes.tokens * head.channels);
  s.noise = sizes.noises > 0 ? pieces.floats(sizes.noises * sizes.tokens * head.channels) : nullptr;
  s.hidden = pieces.floats(sizes.rows * stride);
  s.out = pieces.floats(sizes.rows * outputs_of(head));
  s.inner = pieces.take(static_cast<size_t>(sizes.rows * stride) * size_of(type));
  s.normalized = pieces.take(static_cast<size_t>(sizes.rows * stride) * size_of(type));
  s.arrivals =
      static_cast<uint32_t*>(pieces.take(static_cast<size_t>(2 * sizes.teams) * sizeof(uint32_t)));
  s.posts = static_cast<Posted*>(pieces.take(static_cast<size_t>(sizes.posts) * sizeof(Posted)));
  *total = pieces.total();
  return s;
}

struct Staged {
  const StepsBlock* blocks;
  const DiffusionStep* steps;
  const float* times;
  const StepsToken* tokens;  // rows count from their pass's first
  const int32_t* z_rows;
  const int32_t* row_token;             // tokens count from their pass's first
  std::vector<const StepsTeam*> teams;  // of each pass
};

Staged stage_job(Queue& queue, Job& job, const std::vector<StepsPass>& passes) {
  const DiffusionHeadWeights& head = *job.head;
  std::vector<StepsBlock> blocks(static_cast<size_t>(head.depth));
  for (size_t b = 0; b < blocks.size(); ++b) {
    const DiffusionHeadWeights::Block& block = head.blocks[b];
    blocks[b] = {block.mlp0.data, block.mlp2.data, block.norm_weight,
                 block.norm_bias, block.mlp0_bias, block.mlp2_bias};
  }
  std::vector<int32_t> row_token;
  for (const StepsPass& pass : passes) {
    int32_t row = 0;
    for (int64_t t = 0; t < pass.tokens; ++t) {
      StepsToken& token = job.tokens[static_cast<size_t>(pass.first_token + t)];
      token.row = row;
      row += token.rows;
      row_token.insert(row_token.end(), static_cast<size_t>(token.rows), static_cast<int32_t>(t));
    }
  }
  Staged s;
  s.blocks = queue.stage(blocks.data(), blocks.size());
  s.steps = job.sample ? queue.stage(job.sample->steps, static_cast<size_t>(job.sample->step_count))
                       : nullptr;
  s.times = queue.stage(job.times.data(), job.times.size());
  s.tokens = queue.stage(job.tokens.data(), job.tokens.size());
  s.z_rows = queue.stage(job.z_rows.data(), job.z_rows.size());
  s.row_token = queue.stage(row_token.data(), row_token.size());
  for (const StepsPass& pass : passes)
    s.teams.push_back(queue.stage(pass.teams.data(), pass.teams.size()));
  return s;
}

void embed_times_and_conditions(Queue& queue, const Job& job, const Staged& staged,
                                const Scratch& scratch) {
  const DiffusionHeadWeights& head = *job.head;
  TimeParams p{};
  p.time = staged.times;
  p.count = static_cast<int64_t>(job.times.size());
  p.out = scratch.features.data;
  with_type(job.type, [&](auto zero) {
    queue.launch(time_features<decltype(zero)>,
                 dim3(blocks_for(p.count * (kTimeFeatures / 2), kThreads)), dim3(kThreads), 0, p);
  });
  linear(queue, {.x = scratch.features,
                 .weight = head.time_mlp0,
                 .bias = head.time_mlp0_bias,
                 .activation = Activation::silu,
                 .residual = {},
                 .out = scratch.time_hidden});
  linear(queue, {.x = scratch.time_hidden,
                 .weight = head.time_mlp2,
                 .bias = head.time_mlp2_bias,
                 .residual = {},
                 .out = scratch.time_embed});
  linear(queue, {.x = job.z,
                 .weight = head.cond_embed,
                 .bias = head.cond_embed_bias,
                 .residual = {},
                 .out = scratch.condition});
}

// The latents that the steps of a pass begin with, and the noise of all of its steps.
void begin_latents(Queue& queue, const Job& job, const StepsPass& pass, const StepsToken* tokens,
                   const Staged& staged, const Scratch& scratch) {
  const DiffusionHeadWeights& head = *job.head;
  if (job.network) {
    const Tensor x = job.network->x.slice(pass.first_token, pass.tokens);
    LatentsParams p{};
    p.x = x.data;
    p.rows = x.rows;
    p.stride = x.stride;
    p.channels = static_cast<int32_t>(head.channels);
    p.out = scratch.state;
    with_type(job.type, [&](auto zero) {
      queue.launch(read_latents<decltype(zero)>, dim3(blocks_for(p.rows * p.channels, kThreads)),
                   dim3(kThreads), 0, p);
    });
    return;
  }
  NoiseParams p{};
  p.tokens = tokens;
  p.steps = staged.steps;
  p.token_count = static_cast<int32_t>(pass.tokens);
  p.step_count = static_cast<int32_t>(step_count(job));
  p.channels = static_cast<int32_t>(head.channels);
  p.flow = head.flow;
  p.start = scratch.state;
  p.noise = scratch.noise;
  const int64_t quads = pass.tokens * blocks_for(head.channels, 4);
  const unsigned draws = head.flow ? 1 : static_cast<unsigned>(p.step_count) + 1;
  queue.launch(draw_noise, dim3(blocks_for(quads, kThreads), draws), dim3(kThreads), 0, p);
}

// A run of steps, and what its modulations have of scratch.
struct Chunk {
  int64_t first, steps;
  Tensor y, modulation;
  uint32_t* arrivals;
};

// Those computed ahead take turns in two halves.
Chunk chunk_at(int64_t first, const Chunks& chunks, int64_t steps, const StepsPass& pass,
               const Scratch& scratch) {
  const int64_t half = chunks.ahead ? first / chunks.steps % 2 : 0;
  Chunk chunk{first, std::min(chunks.steps, steps - first), {}, {}, nullptr};
  const int64_t before = half * chunks.steps * pass.rows, lines = chunk.steps * pass.rows;
  chunk.y = scratch.y.slice(before, lines);
  chunk.modulation = scratch.modulation.slice(before, lines);
  chunk.arrivals = scratch.arrivals + half * static_cast<int64_t>(pass.teams.size());
  return chunk;
}

// Modulations of a chunk for the rows of a pass.
void modulate(Queue& queue, const Job& job, const StepsPass& pass, const int32_t* z_rows,
              const Chunk& chunk, const Scratch& scratch) {
  const DiffusionHeadWeights& head = *job.head;
  const int64_t lines = chunk.steps * pass.rows;
  ConditionParams p{};
  p.time = static_cast<const float*>(scratch.time_embed.data);
  p.condition = static_cast<const float*>(scratch.condition.data);
  p.z_row = z_rows;
  p.first_time = job.network ? pass.first_token : chunk.first;
  p.time_of_row = job.network != nullptr;
  p.steps = chunk.steps;
  p.rows = pass.rows;
  p.width = head.width;
  p.out = chunk.y.data;
  p.arrivals = chunk.arrivals;
  p.posts = scratch.posts;
  p.arrival_count = static_cast<int64_t>(pass.teams.size());
  p.post_count = pass.post_count;
  const int64_t threads = std::max({lines * head.width, p.arrival_count, p.post_count});
  with_type(job.type, [&](auto zero) {
    queue.launch(join_conditions<decltype(zero)>, dim3(blocks_for(threads, kThreads)),
                 dim3(kThreads), 0, p);
  });
  for (int64_t b = 0; b <= head.depth; ++b) {
    const bool last = b == head.depth;
    linear(queue,
           {.x = chunk.y,
            .weight = last ? head.final_modulation : head.blocks[b].modulation,
            .bias = last ? head.final_modulation_bias : head.blocks[b].modulation_bias,
            .residual = {},
            .out = chunk.modulation.columns(b * 3 * head.width, (last ? 2 : 3) * head.width)});
  }
}

void run(Queue& queue, Job& job) {
  const DiffusionHeadWeights& head = *job.head;
  const std::vector<StepsPass> passes = plan_steps(head, job.type, queue.limits(), job.token_rows);
  size_t bytes = 0;
  const Sizes sizes = sizes_of(job, passes, queue.limits());
  take_scratch(head, job.type, sizes, Pieces(nullptr), &bytes);
  queue.reserve_scratch(bytes);
  const Staged staged = stage_job(queue, job, passes);
  const Scratch scratch = take_scratch(head, job.type, sizes, Pieces(&queue), &bytes);
  embed_times_and_conditions(queue, job, staged, scratch);
  int64_t first_row = 0;
  for (size_t i = 0; i < passes.size(); ++i) {
    const StepsPass& pass = passes[i];
    const StepsToken* tokens = staged.tokens + pass.first_token;
    begin_latents(queue, job, pass, tokens, staged, scratch);
    StepsParams p{};
    p.input_proj = head.input_proj.data;
    p.input_proj_bias = head.input_proj_bias;
    p.blocks = staged.blocks;
    p.final_linear = head.final_linear.data;
    p.final_linear_bias = head.final_linear_bias;
    p.channels = static_cast<int32_t>(head.channels);
    p.width = static_cast<int32_t>(head.width);
    p.depth = static_cast<int32_t>(head.depth);
    p.outputs = static_cast<int32_t>(outputs_of(head));
    p.flow = head.flow;
    p.modulation_width = static_cast<int32_t>(modulation_width(head));
    p.rows = static_cast<int32_t>(pass.rows);
    p.tokens = static_cast<int32_t>(pass.tokens);
    p.step_count = static_cast<int32_t>(step_count(job));
    p.step_table = staged.steps;
    p.noise = scratch.noise;
    p.token_table = tokens;
    p.row_token = staged.row_token + first_row;
    p.team_table = staged.teams[i];
    p.state = scratch.state;
    p.hidden = scratch.hidden;
    p.inner = scratch.inner;
    p.normalized = scratch.normalized;
    p.stride = static_cast<int32_t>(steps_stride(job.type, head.width));
    p.out = scratch.out;
    p.posts = scratch.posts;
    if (job.network) {
      p.network_out = job.network->out.row(pass.first_token);
      p.network_stride = job.network->out.stride;
    }
    const int64_t count = step_count(job);
    const Chunks chunks = chunks_of(pass, count, queue.limits());
    const auto modulate_from = [&](int64_t first) {
      modulate(queue, job, pass, staged.z_rows + first_row,
               chunk_at(first, chunks, count, pass, scratch), scratch);
    };
    const auto sample_from = [&](int64_t first) {
      const Chunk chunk = chunk_at(first, chunks, count, pass, scratch);
      p.first_step = static_cast<int32_t>(first);
      p.steps = static_cast<int32_t>(chunk.steps);
      p.last = first + chunk.steps >= count;
      p.modulation = chunk.modulation.data;
      p.arrivals = chunk.arrivals;
      if (pass.cluster_tiles > 0)
        launch_cluster_steps(queue, pass, p);
      else
        launch_steps(queue, job.type, pass, p);
    };
    for (int64_t first = 0, next; first < count; first = next) {
      next = first + chunks.steps;
      if (first == 0 || !chunks.ahead) modulate_from(first);
      if (chunks.ahead && next < count)
        queue.together([&] { sample_from(first); }, [&] { modulate_from(next); });
      else
        sample_from(first);
    }
    first_row += pass.rows;
  }
}

}  // namespace

// Of fewer rows than those of one pass there may be more lines, with more steps in a chunk; passes
// hold all rows at most.
size_t diffusion_scratch(const StepSize& size, DType type, const DeviceLimits& limits) {
  if (!size.head || size.tokens == 0) return 0;
  const DiffusionHeadWeights& head = *size.head;
  Sizes s{};
  s.times = size.sampling_steps;
  s.z_rows = s.rows = size.token_rows;
  s.tokens = size.tokens;
  s.lines = std::max(s.rows, std::min(modulation_rows(limits), s.rows * size.sampling_steps));
  s.posts = most_posts(head, type, limits, s.rows);
  s.teams = limits.processors;
  s.noises = head.flow ? 0 : size.sampling_steps;
  size_t bytes = 0;
  take_scratch(head, type, s, Pieces(nullptr), &bytes);
  return bytes;
}

void diffusion_sample(Queue& queue, const DiffusionSampleArgs& args) {
  if (args.token_count == 0) return;
  Job job{};
  job.head = args.head;
  job.type = args.z.type;
  job.z = args.z;
  job.sample = &args;
  for (int64_t i = 0; i < args.token_count; ++i) {
    const DiffusionToken& token = args.tokens[i];
    StepsToken t{};
    t.rows = token.z_empty >= 0 ? 2 : 1;
    t.guidance = token.guidance;
    t.temperature = token.temperature;
    t.x0_limit = token.x0_limit;
    t.cell = token.cell;
    t.seed = token.seed;
    t.out = token.out;
    job.tokens.push_back(t);
    job.token_rows.push_back(t.rows);
    job.z_rows.push_back(static_cast<int32_t>(token.z));
    if (t.rows > 1) job.z_rows.push_back(static_cast<int32_t>(token.z_empty));
  }
  for (int64_t s = 0; s < args.step_count; ++s) job.times.push_back(args.steps[s].time);
  run(queue, job);
}

void diffusion_head(Queue& queue, const DiffusionHeadArgs& args) {
  if (args.x.rows == 0) return;
  Job job{};
  job.head = args.head;
  job.type = args.x.type;
  job.z = args.z;
  job.network = &args;
  for (int64_t i = 0; i < args.x.rows; ++i) {
    StepsToken t{};
    t.rows = 1;
    job.tokens.push_back(t);
    job.token_rows.push_back(1);
    job.z_rows.push_back(static_cast<int32_t>(i));
  }
  job.times.assign(args.time, args.time + args.x.rows);
  run(queue, job);
}

}  // namespace unifluid::cuda
