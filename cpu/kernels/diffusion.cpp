// The diffusion head (spec section 6): its network, and all sampling steps for many tokens.
//
// The modulation of every block depends on the condition and the timestep, not on x. So for a group of
// tokens the modulations of all steps are made ahead, as large matrix products; what remains of a step is
// 2 W^2 a block. That part runs as one team: every thread takes some outputs of each layer, and a barrier
// stands between the layers.
#include "core/noise.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/matmul.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

constexpr int64_t kTimeFeatures = 256;
constexpr float kNormEps = 1e-6f;
// Modulations held at a time; more tokens than fit go in groups.
constexpr int64_t kModulationBytes = int64_t{48} << 20;
// Multiply-adds of one layer of a step below which a second thread costs more than it brings.
constexpr int64_t kTeamWork = int64_t{24} << 10;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class F>
UNIFLUID_INLINE void each_vector(int64_t count, F f) {
  for (int64_t c = 0; c < count; c += kLanes) f(c, static_cast<int>(least(kLanes, count - c)));
}

// Memory of the whole call lies in thread 0's scratch, behind what a matrix product there needs; the
// other threads have only the latter.
struct Memory {
  Parallel* parallel;
  char* base;  // thread 0's scratch

  void* product(int thread) const {
    return thread == 0 ? base : parallel->scratch(thread, kMatmulScratch);
  }
};

bool reserve(Parallel& parallel, int64_t floats, Memory& memory) {
  for (int t = 1; t < parallel.threads(); ++t)
    if (!parallel.scratch(t, kMatmulScratch)) return false;
  memory.parallel = &parallel;
  memory.base = static_cast<char*>(parallel.scratch(
      0, kMatmulScratch + static_cast<size_t>(floats) * sizeof(float)));
  return memory.base != nullptr;
}

// Hands out runs of floats, each starting on a cache line.
struct Bump {
  float* next;
  static int64_t rounded(int64_t count) { return divide_up(count, 16) * 16; }
  float* take(int64_t count) {
    float* out = next;
    next += rounded(count);
    return out;
  }
};

// ---- a layer over many rows, shared among the threads ----

struct Layer {
  const Memory* memory;
  const float* x;
  int64_t x_stride, rows;
  const Tensor* weight;
  const float* bias;
  bool silu;
  float* out;
  int64_t out_stride;
  int64_t row_blocks;
};

void layer_task(void* context, int64_t index, int thread) {
  const Layer& l = *static_cast<const Layer*>(context);
  const int64_t row = index % l.row_blocks * kBlockRows;
  const int64_t first = index / l.row_blocks * kBlockOutputs;
  const int64_t rows = least(kBlockRows, l.rows - row);
  const int64_t count = least(kBlockOutputs, l.weight->rows - first);
  float* out = l.out + row * l.out_stride + first;
  matmul(l.x + row * l.x_stride, l.x_stride, rows, *l.weight, first, count, out, l.out_stride,
         l.memory->product(thread));
  for (int64_t i = 0; i < rows; ++i, out += l.out_stride)
    each_vector(count, [&](int64_t c, int n) {
      const Vec v = add(load_n(out + c, n), load_n(l.bias + first + c, n));
      store_n(out + c, l.silu ? silu(v) : v, n);
    });
}

void layer(const Memory& memory, const float* x, int64_t x_stride, int64_t rows,
           const Tensor& weight, const float* bias, bool with_silu, float* out,
           int64_t out_stride) {
  Layer l{&memory, x, x_stride, rows, &weight, bias, with_silu, out, out_stride,
          divide_up(rows, kBlockRows)};
  memory.parallel->run(l.row_blocks * divide_up(weight.rows, kBlockOutputs), layer_task, &l);
}

// The sinusoidal features of a timestep: 128 cosines, then 128 sines, of time * 10000^(-i / 128).
void time_features(float time, float* out) {
  const int64_t half = kTimeFeatures / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float angle =
        time * __builtin_expf(-9.210340371976184f * static_cast<float>(i) / static_cast<float>(half));
    out[i] = __builtin_cosf(angle);
    out[half + i] = __builtin_sinf(angle);
  }
}

// out [count, W] = time_embed(times); features [count, 256] and hidden [count, W] are overwritten.
void embed_times(const Memory& memory, const DiffusionHeadWeights& h, int64_t count,
                 float* features, float* hidden, float* out) {
  layer(memory, features, kTimeFeatures, count, h.time_mlp0, h.time_mlp0_bias, true, hidden,
        h.width);
  layer(memory, hidden, h.width, count, h.time_mlp2, h.time_mlp2_bias, false, out, h.width);
}

int64_t modulation_width(const DiffusionHeadWeights& h) { return (3 * h.depth + 2) * h.width; }

// All modulations of rows y [rows, W] = SiLU(time + condition): out [rows, (3 depth + 2) W], the blocks'
// shift, scale and gate one after another, then the final layer's shift and scale.
void modulate(const Memory& memory, const DiffusionHeadWeights& h, const float* y, int64_t rows,
              float* out) {
  const int64_t stride = modulation_width(h);
  for (int64_t i = 0; i < h.depth; ++i)
    layer(memory, y, h.width, rows, h.blocks[i].modulation, h.blocks[i].modulation_bias, false,
          out + 3 * i * h.width, stride);
  layer(memory, y, h.width, rows, h.final_modulation, h.final_modulation_bias, false,
        out + 3 * h.depth * h.width, stride);
}

// ---- the network, by a team ----

struct Team {
  Parallel* parallel;
  int size;    // threads in it; 1: no barriers
  int thread;
  void* scratch;

  void wait() const {
    if (size > 1) parallel->barrier();
  }
  // This thread's share of `count` things, in units of `unit`.
  void share(int64_t count, int64_t unit, int64_t& begin, int64_t& end) const {
    const int64_t each = divide_up(divide_up(count, unit), size) * unit;
    begin = least(thread * each, count);
    end = least(begin + each, count);
  }
};

// Outputs of a layer that a thread takes at least.
constexpr int64_t kTeamOutputs = 8;

struct Buffers {
  float *state, *normed, *hidden;  // [rows, W]
};

// out = (x - mean) / sqrt(variance + eps) [* weight + bias] * (1 + scale) + shift, one row
void modulated_norm(const float* x, int64_t n, const float* weight, const float* bias,
                    const float* shift, const float* scale, float* out) {
  Vec total = zero();
  each_vector(n, [&](int64_t c, int k) { total = add(total, load_n(x + c, k)); });
  const Vec center = set1(sum(total) / static_cast<float>(n));
  Vec squares = zero();
  each_vector(n, [&](int64_t c, int k) {
    Vec d = sub(load_n(x + c, k), center);
    if (k < kLanes) {  // the lanes past the end hold -mean
      alignas(64) float t[kLanes] = {};
      store_n(t, d, k);
      d = load(t);
    }
    squares = fma(d, d, squares);
  });
  const Vec factor =
      set1(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + kNormEps));
  each_vector(n, [&](int64_t c, int k) {
    Vec v = mul(sub(load_n(x + c, k), center), factor);
    if (weight) v = fma(v, load_n(weight + c, k), load_n(bias + c, k));
    const Vec gain = add(set1(1.0f), load_n(scale + c, k));
    store_n(out + c, fma(v, gain, load_n(shift + c, k)), k);
  });
}

// `state` holds input_proj(x) for every row; out [rows, outputs] gets the network's outputs. Row i's
// modulations begin at modulation + i * modulation_stride. Ends with a barrier.
void network(const Team& team, const DiffusionHeadWeights& h, int64_t rows,
             const float* modulation, int64_t modulation_stride, const Buffers& b, float* out) {
  const int64_t w = h.width, outputs = h.final_linear.rows;
  int64_t first_row, last_row, begin, end;
  team.share(rows, 1, first_row, last_row);
  team.share(w, kTeamOutputs, begin, end);
  for (int64_t k = 0; k < h.depth; ++k) {
    const DiffusionHeadWeights::Block& block = h.blocks[k];
    const float* at = modulation + 3 * k * w;
    for (int64_t i = first_row; i < last_row; ++i)
      modulated_norm(b.state + i * w, w, block.norm_weight, block.norm_bias,
                     at + i * modulation_stride, at + i * modulation_stride + w, b.normed + i * w);
    team.wait();
    if (end > begin)
      matmul(b.normed, w, rows, block.mlp0, begin, end - begin, b.hidden + begin, w, team.scratch);
    for (int64_t i = 0; i < rows; ++i)
      each_vector(end - begin, [&](int64_t c, int n) {
        float* to = b.hidden + i * w + begin + c;
        store_n(to, silu(add(load_n(to, n), load_n(block.mlp0_bias + begin + c, n))), n);
      });
    team.wait();
    // `normed` is free again, and takes the second layer's outputs.
    if (end > begin)
      matmul(b.hidden, w, rows, block.mlp2, begin, end - begin, b.normed + begin, w, team.scratch);
    for (int64_t i = 0; i < rows; ++i) {
      const float* gate = at + i * modulation_stride + 2 * w;
      each_vector(end - begin, [&](int64_t c, int n) {
        const int64_t column = begin + c;
        const Vec v =
            add(load_n(b.normed + i * w + column, n), load_n(block.mlp2_bias + column, n));
        float* state = b.state + i * w + column;
        store_n(state, fma(load_n(gate + column, n), v, load_n(state, n)), n);
      });
    }
    team.wait();
  }
  const float* at = modulation + 3 * h.depth * w;
  for (int64_t i = first_row; i < last_row; ++i)
    modulated_norm(b.state + i * w, w, nullptr, nullptr, at + i * modulation_stride,
                   at + i * modulation_stride + w, b.normed + i * w);
  team.wait();
  team.share(outputs, kTeamOutputs, begin, end);
  if (end > begin)
    matmul(b.normed, w, rows, h.final_linear, begin, end - begin, out + begin, outputs,
           team.scratch);
  for (int64_t i = 0; i < rows; ++i)
    each_vector(end - begin, [&](int64_t c, int n) {
      float* to = out + i * outputs + begin + c;
      store_n(to, add(load_n(to, n), load_n(h.final_linear_bias + begin + c, n)), n);
    });
  team.wait();
}

int team_size(const DiffusionHeadWeights& h, int64_t rows, Parallel& parallel) {
  return rows * h.width * h.width < kTeamWork ? 1 : parallel.threads();
}

// ---- diffusion_head ----

struct HeadRun {
  const DiffusionHeadArgs* args;
  const Memory* memory;
  int team;
  Buffers buffers;
  const float* modulation;
  float* out;  // [m, outputs]
};

void head_task(void* context, int64_t, int thread) {
  const HeadRun& run = *static_cast<const HeadRun*>(context);
  const Team team{run.memory->parallel, run.team, thread, run.memory->product(thread)};
  network(team, *run.args->head, run.args->x.rows, run.modulation,
          modulation_width(*run.args->head), run.buffers, run.out);
}

// ---- diffusion_sample ----

// A group of tokens whose modulations are made together. The rows of the network are the conditioned ones
// of all tokens, then the empty prompt's of those that are guided.
struct SampleRun {
  const DiffusionSampleArgs* args;
  const Memory* memory;
  const DiffusionToken* tokens;
  int64_t count, rows;
  int team;
  Buffers buffers;
  const float* modulation;   // [steps, rows, (3 depth + 2) W]
  const int64_t* empty_row;  // [count]: the token's second row, or -1
  float *x, *noise;          // [count, C]
  float* out;                // [rows, outputs]
};

// x after one step, for one token (spec section 6).
void advance(const SampleRun& run, int64_t step, int64_t i) {
  const DiffusionHeadWeights& h = *run.args->head;
  const DiffusionToken& token = run.tokens[i];
  const DiffusionStep& s = run.args->steps[step];
  const int64_t c = h.channels, outputs = h.final_linear.rows;
  const float* conditioned = run.out + i * outputs;
  const float* empty = run.empty_row[i] < 0 ? nullptr : run.out + run.empty_row[i] * outputs;
  float* x = run.x + i * c;
  float* noise = run.noise + i * c;
  const bool noisy = !h.flow && s.noise;
  if (noisy) step_noise(token.seed, token.cell, step, c, noise);
  const bool bounded = token.x0_limit < __builtin_inff();
  const Vec low = set1(-token.x0_limit), high = set1(token.x0_limit);
  each_vector(c, [&](int64_t at, int n) {
    Vec predicted = load_n(conditioned + at, n);
    if (empty) {
      const Vec base = load_n(empty + at, n);
      predicted = fma(set1(token.guidance), sub(predicted, base), base);
    }
    const Vec now = load_n(x + at, n);
    if (h.flow) {
      if (bounded) {
        const Vec tau = set1(s.tau);
        const Vec clean = min(max(fnma(tau, predicted, now), low), high);
        predicted = div(sub(now, clean), tau);
      }
      const Vec steps = set1(static_cast<float>(run.args->step_count));
      store_n(x + at, sub(now, div(predicted, steps)), n);
      return;
    }
    Vec clean = fnma(set1(s.recipm1), predicted, mul(set1(s.recip), now));
    if (bounded) clean = min(max(clean, low), high);
    Vec next = fma(set1(s.coef_x0), clean, mul(set1(s.coef_x), now));
    if (noisy) {
      const Vec share = mul(set1(0.5f), add(load_n(conditioned + c + at, n), set1(1.0f)));
      const Vec log_variance =
          fma(share, set1(s.log_beta), mul(sub(set1(1.0f), share), set1(s.log_tilde)));
      const Vec spread = mul(set1(token.temperature), exp(mul(set1(0.5f), log_variance)));
      next = fma(spread, load_n(noise + at, n), next);
    }
    store_n(x + at, next, n);
  });
}

void sample_task(void* context, int64_t, int thread) {
  const SampleRun& run = *static_cast<const SampleRun*>(context);
  const DiffusionHeadWeights& h = *run.args->head;
  const Team team{run.memory->parallel, run.team, thread, run.memory->product(thread)};
  const int64_t c = h.channels, w = h.width, stride = modulation_width(h);
  int64_t first, last, begin, end;
  team.share(run.count, 1, first, last);
  for (int64_t i = first; i < last; ++i) {
    const DiffusionToken& token = run.tokens[i];
    float* x = run.x + i * c;
    start_noise(token.seed, token.cell, c, x);
    if (h.flow)
      each_vector(c, [&](int64_t at, int n) {
        store_n(x + at, mul(set1(token.temperature), load_n(x + at, n)), n);
      });
  }
  team.wait();
  for (int64_t s = 0; s < run.args->step_count; ++s) {
    // Both rows of a token begin with the same x.
    team.share(w, kTeamOutputs, begin, end);
    if (end > begin)
      matmul(run.x, c, run.count, h.input_proj, begin, end - begin, run.buffers.state + begin, w,
             team.scratch);
    for (int64_t i = 0; i < run.count; ++i)
      each_vector(end - begin, [&](int64_t at, int n) {
        float* to = run.buffers.state + i * w + begin + at;
        const Vec v = add(load_n(to, n), load_n(h.input_proj_bias + begin + at, n));
        store_n(to, v, n);
        if (run.empty_row[i] >= 0)
          store_n(run.buffers.state + run.empty_row[i] * w + begin + at, v, n);
      });
    team.wait();
    network(team, h, run.rows, run.modulation + s * run.rows * stride, stride, run.buffers,
            run.out);
    for (int64_t i = first; i < last; ++i) advance(run, s, i);
    team.wait();
  }
  for (int64_t i = first; i < last; ++i)
    __builtin_memcpy(run.tokens[i].out, run.x + i * c, static_cast<size_t>(c) * sizeof(float));
}

const float* condition_row(const Tensor& z, int64_t row) {
  return static_cast<const float*>(z.data) + row * z.stride;
}

// y [steps, rows, W] = SiLU(time[step] + condition[row])
struct Combine {
  const float *time, *condition;
  int64_t rows, width;
  float* y;
};

void combine_task(void* context, int64_t step, int) {
  const Combine& c = *static_cast<const Combine*>(context);
  for (int64_t i = 0; i < c.rows; ++i)
    each_vector(c.width, [&](int64_t at, int n) {
      const Vec v = add(load_n(c.time + step * c.width + at, n),
                        load_n(c.condition + i * c.width + at, n));
      store_n(c.y + (step * c.rows + i) * c.width + at, silu(v), n);
    });
}

}  // namespace

bool diffusion_head(const DiffusionHeadArgs& args, Parallel& parallel) {
  const DiffusionHeadWeights& h = *args.head;
  const int64_t m = args.x.rows, w = h.width, outputs = h.final_linear.rows;
  const int64_t sizes[] = {m * kTimeFeatures, m * w, m * w, m * w, m * w, m * w, m * w, m * w,
                           m * modulation_width(h), m * outputs, m * h.condition, m * h.channels};
  int64_t floats = 0;
  for (int64_t size : sizes) floats += Bump::rounded(size);
  Memory memory{};
  if (!reserve(parallel, floats, memory)) return false;
  Bump bump{reinterpret_cast<float*>(memory.base + kMatmulScratch)};
  float* features = bump.take(m * kTimeFeatures);
  float* hidden = bump.take(m * w);
  float* time = bump.take(m * w);
  float* condition = bump.take(m * w);
  float* y = bump.take(m * w);
  const Buffers buffers{bump.take(m * w), bump.take(m * w), bump.take(m * w)};
  float* modulation = bump.take(m * modulation_width(h));
  float* out = bump.take(m * outputs);

  for (int64_t i = 0; i < m; ++i) time_features(args.time[i], features + i * kTimeFeatures);
  embed_times(memory, h, m, features, hidden, time);
  layer(memory, condition_row(args.z, 0), args.z.stride, m, h.cond_embed, h.cond_embed_bias, false,
        condition, w);
  for (int64_t i = 0; i < m * w; i += w)
    each_vector(w, [&](int64_t c, int n) {
      store_n(y + i + c, silu(add(load_n(time + i + c, n), load_n(condition + i + c, n))), n);
    });
  modulate(memory, h, y, m, modulation);
  layer(memory, static_cast<const float*>(args.x.data), args.x.stride, m, h.input_proj,
        h.input_proj_bias, false, buffers.state, w);
  HeadRun run{&args, &memory, team_size(h, m, parallel), buffers, modulation, out};
  parallel.run(run.team, head_task, &run);
  for (int64_t i = 0; i < m; ++i)
    __builtin_memcpy(static_cast<float*>(args.out.data) + i * args.out.stride, out + i * outputs,
                     static_cast<size_t>(outputs) * sizeof(float));
  return true;
}

bool diffusion_sample(const DiffusionSampleArgs& args, Parallel& parallel) {
  const DiffusionHeadWeights& h = *args.head;
  const int64_t w = h.width, c = h.channels, outputs = h.final_linear.rows;
  const int64_t steps = args.step_count, stride = modulation_width(h);
  if (args.token_count == 0 || steps == 0) return true;

  const int64_t token_bytes = 2 * steps * stride * static_cast<int64_t>(sizeof(float));
  const int64_t group = least(args.token_count,
                              kModulationBytes > token_bytes ? kModulationBytes / token_bytes : 1);
  const int64_t most = 2 * group;  // rows
  const int64_t sizes[] = {steps * kTimeFeatures, steps * w, steps * w, most * h.condition,
                           most * w, steps * most * w, steps * most * stride, most * w, most * w,
                           most * w, most * outputs, group * c, group * c,
                           2 * group};  // the last holds int64
  int64_t floats = 0;
  for (int64_t size : sizes) floats += Bump::rounded(size);
  Memory memory{};
  if (!reserve(parallel, floats, memory)) return false;
  Bump bump{reinterpret_cast<float*>(memory.base + kMatmulScratch)};
  float* features = bump.take(steps * kTimeFeatures);
  float* hidden = bump.take(steps * w);
  float* time = bump.take(steps * w);
  float* z = bump.take(most * h.condition);
  float* condition = bump.take(most * w);
  float* y = bump.take(steps * most * w);
  float* modulation = bump.take(steps * most * stride);
  const Buffers buffers{bump.take(most * w), bump.take(most * w), bump.take(most * w)};
  float* out = bump.take(most * outputs);
  float* x = bump.take(group * c);
  float* noise = bump.take(group * c);
  int64_t* empty_row = reinterpret_cast<int64_t*>(bump.take(2 * group));

  for (int64_t s = 0; s < steps; ++s)
    time_features(args.steps[s].time, features + s * kTimeFeatures);
  embed_times(memory, h, steps, features, hidden, time);

  for (int64_t first = 0; first < args.token_count; first += group) {
    const DiffusionToken* tokens = args.tokens + first;
    const int64_t count = least(group, args.token_count - first);
    int64_t rows = count;
    const auto take_row = [&](int64_t row, int64_t of_z) {
      __builtin_memcpy(z + row * h.condition, condition_row(args.z, of_z),
                       static_cast<size_t>(h.condition) * sizeof(float));
    };
    for (int64_t i = 0; i < count; ++i) {
      take_row(i, tokens[i].z);
      empty_row[i] = -1;
      if (tokens[i].z_empty < 0) continue;
      empty_row[i] = rows;
      take_row(rows++, tokens[i].z_empty);
    }
    layer(memory, z, h.condition, rows, h.cond_embed, h.cond_embed_bias, false, condition, w);
    Combine combine{time, condition, rows, w, y};
    parallel.run(steps, combine_task, &combine);
    modulate(memory, h, y, steps * rows, modulation);
    SampleRun run{&args, &memory, tokens, count, rows, team_size(h, rows, parallel), buffers,
                  modulation, empty_row, x, noise, out};
    parallel.run(run.team, sample_task, &run);
  }
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
