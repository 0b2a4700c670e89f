// The diffusion head (spec section 6, MAR's SimpleMLPAdaLN) and its sampler.
//
// The modulations depend on condition and timestep, not on x, so those of many steps are one matrix
// product, taken ahead; what remains sequential is 2 W^2 multiplications per block and row. A call
// is one run of the pool in which all threads keep step by barriers:
//
//   conditions and timesteps -> [ y and noise -> modulations -> sampling steps ] per chunk of steps
//
// In the sampling steps threads form teams. A team has its own tokens; its members divide the
// outputs of the square linears, so that each keeps its part of the weights in its own cache, and
// do the rest, which is small, each for themselves. No team's result depends on what other teams
// have.
//
// "Row": an input of the network. A guided token has two, with the prompt's condition and with the
// empty prompt's; another token one.
#include "core/noise.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/matmul.h"
#include "cpu/kernels/trigonometry.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

constexpr float kNormEps = 1e-6f;
// Modulations held at a time, those of a chunk of steps (32 MiB): for a head of UniFluid's size (W
// 1280, depth 8) still 250 rows, so that reading the weights once for them is cheap.
constexpr int64_t kModulationFloats = int64_t{8} << 20;

// Elements of the square linears, above which they come from memory at every step.
constexpr int64_t kCachedWeights = int64_t{2} << 20;

// ---- memory ----

// Hands out pieces of one block; with a null base it only counts.
struct Arena {
  char* base;
  size_t used = 0;

  template <class T>
  T* take(int64_t count) {
    char* piece = base ? base + used : nullptr;
    used += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
};

// What a thread works in, for the rows of its team.
struct Own {
  float* state;   // [tokens, C]
  float* input;   // [rows, C]
  float* hidden;  // [rows, W]
  float* normed;  // [rows, W]
  float* out;     // [rows, outputs]
  void* matmul;
};

struct Range {
  int64_t first, count;
};

// What the threads of a run share.
struct Job {
  const DiffusionHeadWeights* head;
  Products products;
  Parallel* parallel;
  int threads, teams, members;

  // diffusion_sample: the tokens of this run, and its arguments
  const DiffusionSampleArgs* sample;
  const DiffusionToken* tokens;
  // diffusion_head: its arguments
  const DiffusionHeadArgs* network;

  int64_t units;  // tokens; rows for diffusion_head
  int64_t rows;
  int64_t times;             // timesteps: steps, or rows for diffusion_head
  int64_t chunk;             // steps of a chunk
  int64_t outputs;           // of the network
  int64_t modulation_width;  // (3 depth + 2) W

  int64_t* unit_rows;  // [units + 1], the first row of each unit
  float* features;     // [times, 256]
  float* time_hidden;  // [times, W]
  float* time_embed;   // [times, W]
  float* z;            // [rows, d]
  float* condition;    // [rows, W]
  float* y;            // [chunk * rows, W], silu of condition + timestep
  float* modulation;   // [chunk * rows, modulation_width]
  float* noise;        // [chunk * units, C]
  float* inner;        // [rows, W], a block's first linear
  float* delta;        // [rows, W], what a block adds
  char* own_base;      // thread 0's own memory lies behind what is shared
  size_t own_bytes;
};

void carve_shared(Job& job, Arena& arena) {
  const DiffusionHeadWeights& head = *job.head;
  const int64_t width = head.width;
  job.unit_rows = arena.take<int64_t>(job.units + 1);
  job.features = arena.take<float>(job.times * kTimeFeatures);
  job.time_hidden = arena.take<float>(job.times * width);
  job.time_embed = arena.take<float>(job.times * width);
  job.z = arena.take<float>(job.rows * head.condition);
  job.condition = arena.take<float>(job.rows * width);
  job.y = arena.take<float>(job.chunk * job.rows * width);
  job.modulation = arena.take<float>(job.chunk * job.rows * job.modulation_width);
  job.noise = arena.take<float>(job.chunk * job.units * head.channels);
  job.inner = arena.take<float>(job.rows * width);
  job.delta = arena.take<float>(job.rows * width);
}

Own carve_own(const Job& job, Arena& arena) {
  const DiffusionHeadWeights& head = *job.head;
  Own own;
  own.state = arena.take<float>(job.units * head.channels);
  own.input = arena.take<float>(job.rows * head.channels);
  own.hidden = arena.take<float>(job.rows * head.width);
  own.normed = arena.take<float>(job.rows * head.width);
  own.out = arena.take<float>(job.rows * job.outputs);
  own.matmul = arena.take<char>(static_cast<int64_t>(kMatmulScratch));
  return own;
}

// Part `index` of `parts` of n things, cut at multiples of `grain`.
Range part_of(int64_t n, int64_t index, int64_t parts, int64_t grain) {
  const int64_t grains = divide_up(n, grain);
  const int64_t first = smaller(n, grains * index / parts * grain);
  return {first, smaller(n, grains * (index + 1) / parts * grain) - first};
}

// Outputs of a linear are cut between whole tiles of the product.
constexpr int64_t kOutputGrain = 16;

// ---- element-wise passes ----

// out[c] = f(c, lanes) for c < n in steps of a vector; f loads with `lanes` elements.
template <class F>
UNIFLUID_INLINE void each(float* out, int64_t n, F f) {
  for (int64_t c = 0; c < n; c += kLanes) {
    const int lanes = static_cast<int>(smaller(n - c, kLanes));
    if (lanes == kLanes)
      store(out + c, f(c, kLanes));
    else
      store_n(out + c, f(c, lanes), lanes);
  }
}
UNIFLUID_INLINE Vec get(const float* p, int lanes) {
  return lanes == kLanes ? load(p) : load_n(p, lanes);
}

enum class After : uint8_t { nothing, silu };

// out[:, first..] = after(x weight^T + bias) for some of the outputs
void linear_part(const float* x, int64_t x_stride, int64_t rows, const Tensor& weight,
                 const float* bias, Products products, Range outputs, After after, float* out,
                 int64_t out_stride, void* scratch) {
  if (rows == 0 || outputs.count == 0) return;
  matmul(x, x_stride, rows, weight, products, outputs.first, outputs.count, out + outputs.first,
         out_stride, scratch);
  const float* b = bias + outputs.first;
  for (int64_t i = 0; i < rows; ++i) {
    float* row = out + i * out_stride + outputs.first;
    if (after == After::silu)
      each(row, outputs.count,
           [=](int64_t c, int n) { return silu(add(get(row + c, n), get(b + c, n))); });
    else
      each(row, outputs.count,
           [=](int64_t c, int n) { return add(get(row + c, n), get(b + c, n)); });
  }
}

// out = norm(x) * (1 + scale) + shift, where norm is layer norm, with weight and bias unless null.
void normalize_row(const float* x, const float* weight, const float* bias, const float* shift,
                   const float* scale, int64_t width, float* out) {
  Vec total = zero();
  for (int64_t c = 0; c < width; c += kLanes)
    total = add(total, get(x + c, static_cast<int>(smaller(width - c, kLanes))));
  const Vec mean = set1(sum(total) / static_cast<float>(width));
  Vec squares = zero();
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    const Vec d = sub(load(x + c), mean);
    squares = fma(d, d, squares);
  }
  if (c < width) {
    // The lanes behind the end must count as 0, not as the mean.
    const int rest = static_cast<int>(width - c);
    float edge[kLanes] = {};
    store_n(edge, sub(load_n(x + c, rest), mean), rest);
    const Vec d = load(edge);
    squares = fma(d, d, squares);
  }
  const float variance = sum(squares) / static_cast<float>(width);
  const Vec inverse = div(set1(1.0f), sqrt(set1(variance + kNormEps)));
  const Vec one = set1(1.0f);
  each(out, width, [=](int64_t at, int n) {
    Vec v = mul(sub(get(x + at, n), mean), inverse);
    if (weight) v = fma(v, get(weight + at, n), get(bias + at, n));
    return fma(v, add(one, get(scale + at, n)), get(shift + at, n));
  });
}

// ---- ahead of the steps ----

void barrier(const Job& job) {
  if (job.threads > 1) job.parallel->barrier();
}

float time_of(const Job& job, int64_t index) {
  return job.network ? job.network->time[index] : job.sample->steps[index].time;
}

// The row of z that conditions a row of the network.
const float* z_of(const Job& job, int64_t unit, bool empty) {
  const Tensor& z = job.network ? job.network->z : job.sample->z;
  const int64_t index = job.network ? unit : empty ? job.tokens[unit].z_empty : job.tokens[unit].z;
  return static_cast<const float*>(z.data) + index * z.stride;
}

// time_embed and condition
void embed_conditions(const Job& job, int thread, const Own& own) {
  const DiffusionHeadWeights& head = *job.head;
  const int64_t width = head.width;
  const Range times = part_of(job.times, thread, job.threads, 1);
  for (int64_t i = times.first; i < times.first + times.count; ++i)
    time_sinusoid(time_of(job, i), job.features + i * kTimeFeatures);
  const Range units = part_of(job.units, thread, job.threads, 1);
  for (int64_t u = units.first; u < units.first + units.count; ++u)
    for (int64_t r = job.unit_rows[u]; r < job.unit_rows[u + 1]; ++r)
      __builtin_memcpy(job.z + r * head.condition, z_of(job, u, r > job.unit_rows[u]),
                       static_cast<size_t>(head.condition) * sizeof(float));
  barrier(job);
  const Range outputs = part_of(width, thread, job.threads, kOutputGrain);
  linear_part(job.features, kTimeFeatures, job.times, head.time_mlp0, head.time_mlp0_bias,
              job.products, outputs, After::silu, job.time_hidden, width, own.matmul);
  linear_part(job.z, head.condition, job.rows, head.cond_embed, head.cond_embed_bias, job.products,
              outputs, After::nothing, job.condition, width, own.matmul);
  barrier(job);
  linear_part(job.time_hidden, width, job.times, head.time_mlp2, head.time_mlp2_bias, job.products,
              outputs, After::nothing, job.time_embed, width, own.matmul);
  barrier(job);
}

// y, noise and modulations of steps first_step .. first_step + steps - 1
void prepare_steps(const Job& job, int thread, const Own& own, int64_t first_step, int64_t steps) {
  const DiffusionHeadWeights& head = *job.head;
  const int64_t width = head.width;
  const Range rows = part_of(steps * job.rows, thread, job.threads, 1);
  for (int64_t i = rows.first; i < rows.first + rows.count; ++i) {
    const int64_t row = i % job.rows;
    const int64_t time = job.network ? row : first_step + i / job.rows;
    const float *a = job.time_embed + time * width, *b = job.condition + row * width;
    each(job.y + i * width, width,
         [=](int64_t c, int n) { return silu(add(get(a + c, n), get(b + c, n))); });
  }
  // From here on all threads have left the steps before these, and what those read may be
  // overwritten.
  barrier(job);
  if (job.sample && !head.flow) {
    const Range draws = part_of(steps * job.units, thread, job.threads, 1);
    for (int64_t i = draws.first; i < draws.first + draws.count; ++i) {
      const int64_t step = first_step + i / job.units;
      const DiffusionToken& token = job.tokens[i % job.units];
      if (job.sample->steps[step].noise)
        step_noise(token.seed, token.cell, step, head.channels, job.noise + i * head.channels);
    }
  }
  // A thread has a run of the columns of all modulations side by side.
  const Range columns = part_of(job.modulation_width, thread, job.threads, kOutputGrain);
  for (int64_t b = 0; b <= head.depth; ++b) {
    const bool last = b == head.depth;
    const int64_t begin = b * 3 * width, count = last ? 2 * width : 3 * width;
    const int64_t first = larger(columns.first - begin, 0);
    const int64_t end = smaller(columns.first + columns.count - begin, count);
    if (first >= end) continue;
    linear_part(job.y, width, steps * job.rows,
                last ? head.final_modulation : head.blocks[b].modulation,
                last ? head.final_modulation_bias : head.blocks[b].modulation_bias, job.products,
                {first, end - first}, After::nothing, job.modulation + begin, job.modulation_width,
                own.matmul);
  }
  barrier(job);
}

// ---- the network ----

// A thread's place in its team.
struct Place {
  Range units;  // of the team
  int64_t row;  // the team's first row
  int64_t rows;
  Range outputs;  // of the square linears
  bool speaks;    // the one member that writes results
};

Place place_of(const Job& job, int thread) {
  const int team = thread / job.members, member = thread % job.members;
  if (team >= job.teams) return {{0, 0}, 0, 0, {0, 0}, false};
  Place place;
  place.units = part_of(job.units, team, job.teams, 1);
  place.row = job.unit_rows[place.units.first];
  place.rows = job.unit_rows[place.units.first + place.units.count] - place.row;
  place.outputs = part_of(job.head->width, member, job.members, kOutputGrain);
  place.speaks = member == 0;
  return place;
}

// own.out = f(own.input) for the rows of a team; `modulation` is that of its first row.
void run_network(const Job& job, const Place& place, const Own& own, const float* modulation) {
  const DiffusionHeadWeights& head = *job.head;
  const int64_t width = head.width, rows = place.rows;
  const Range mine = place.outputs;
  float* const inner = job.inner + place.row * width;
  float* const delta = job.delta + place.row * width;
  linear_part(own.input, head.channels, rows, head.input_proj, head.input_proj_bias, job.products,
              {0, width}, After::nothing, own.hidden, width, own.matmul);
  for (int64_t b = 0; b < head.depth; ++b) {
    const DiffusionHeadWeights::Block& block = head.blocks[b];
    const float* shift = modulation + b * 3 * width;
    for (int64_t i = 0; i < rows; ++i) {
      const float* m = shift + i * job.modulation_width;
      normalize_row(own.hidden + i * width, block.norm_weight, block.norm_bias, m, m + width, width,
                    own.normed + i * width);
    }
    linear_part(own.normed, width, rows, block.mlp0, block.mlp0_bias, job.products, mine,
                After::silu, inner, width, own.matmul);
    if (job.members > 1) barrier(job);
    linear_part(inner, width, rows, block.mlp2, block.mlp2_bias, job.products, mine, After::nothing,
                delta, width, own.matmul);
    if (job.members > 1) barrier(job);
    // The next writes to `delta` come after the next barrier, when all have read it.
    for (int64_t i = 0; i < rows; ++i) {
      float* x = own.hidden + i * width;
      const float *d = delta + i * width, *gate = shift + i * job.modulation_width + 2 * width;
      each(x, width,
           [=](int64_t c, int n) { return fma(get(gate + c, n), get(d + c, n), get(x + c, n)); });
    }
  }
  const float* shift = modulation + head.depth * 3 * width;
  for (int64_t i = 0; i < rows; ++i) {
    const float* m = shift + i * job.modulation_width;
    normalize_row(own.hidden + i * width, nullptr, nullptr, m, m + width, width,
                  own.normed + i * width);
  }
  linear_part(own.normed, width, rows, head.final_linear, head.final_linear_bias, job.products,
              {0, job.outputs}, After::nothing, own.out, job.outputs, own.matmul);
}

// ---- the sampler ----

// x between -limit and limit. What is not finite becomes NaN: it was not predicted but comes from a
// broken weight, and must not end as a pixel. The last term is 0 for all others.
UNIFLUID_INLINE Vec clamp(Vec x, Vec limit) {
  return fma(x, zero(), min(limit, max(sub(zero(), limit), x)));
}

// x after one step. out [1 or 2 rows, outputs]: the network's, of the prompt and of the empty
// prompt.
void update(const DiffusionHeadWeights& head, const DiffusionToken& token,
            const DiffusionStep& step, int64_t step_count, const float* out, int64_t outputs,
            const float* noise, float* x) {
  const int64_t channels = head.channels;
  const bool guided = token.z_empty >= 0;
  const bool limited = token.x0_limit < __builtin_inff();
  const float* empty = out + outputs;
  const Vec guidance = set1(token.guidance), limit = set1(token.x0_limit);
  const auto predicted = [=](int64_t c, int n) {
    const Vec p = get(out + c, n);
    if (!guided) return p;
    const Vec u = get(empty + c, n);
    return add(u, mul(guidance, sub(p, u)));
  };
  if (head.flow) {
    const Vec tau = set1(step.tau), steps = set1(static_cast<float>(step_count));
    each(x, channels, [=](int64_t c, int n) {
      const Vec at = get(x + c, n);
      Vec v = predicted(c, n);
      if (limited) v = div(sub(at, clamp(sub(at, mul(tau, v)), limit)), tau);
      return sub(at, div(v, steps));
    });
    return;
  }
  const Vec recip = set1(step.recip), recipm1 = set1(step.recipm1);
  const Vec coef_x0 = set1(step.coef_x0), coef_x = set1(step.coef_x);
  const Vec log_beta = set1(step.log_beta), log_tilde = set1(step.log_tilde);
  const Vec half = set1(0.5f), one = set1(1.0f), temperature = set1(token.temperature);
  each(x, channels, [=](int64_t c, int n) {
    const Vec at = get(x + c, n);
    Vec x0 = sub(mul(recip, at), mul(recipm1, predicted(c, n)));
    if (limited) x0 = clamp(x0, limit);
    const Vec mean = add(mul(coef_x0, x0), mul(coef_x, at));
    if (!step.noise) return mean;
    const Vec f = mul(half, add(get(out + channels + c, n), one));
    const Vec log_variance = add(mul(f, log_beta), mul(sub(one, f), log_tilde));
    const Vec deviation = mul(temperature, exp(mul(half, log_variance)));
    return add(mean, mul(deviation, get(noise + c, n)));
  });
}

void sample_steps(const Job& job, const Place& place, const Own& own, int64_t first_step,
                  int64_t steps) {
  const DiffusionHeadWeights& head = *job.head;
  const int64_t channels = head.channels;
  const size_t token_bytes = static_cast<size_t>(channels) * sizeof(float);
  for (int64_t s = 0; s < steps; ++s) {
    for (int64_t u = 0; u < place.units.count; ++u) {
      const int64_t unit = place.units.first + u;
      for (int64_t r = job.unit_rows[unit]; r < job.unit_rows[unit + 1]; ++r)
        __builtin_memcpy(own.input + (r - place.row) * channels, own.state + u * channels,
                         token_bytes);
    }
    run_network(job, place, own,
                job.modulation + (s * job.rows + place.row) * job.modulation_width);
    for (int64_t u = 0; u < place.units.count; ++u) {
      const int64_t unit = place.units.first + u;
      update(head, job.tokens[unit], job.sample->steps[first_step + s], job.sample->step_count,
             own.out + (job.unit_rows[unit] - place.row) * job.outputs, job.outputs,
             job.noise + (s * job.units + unit) * channels, own.state + u * channels);
    }
  }
}

Own own_of(const Job& job, int thread) {
  char* memory =
      thread == 0 ? job.own_base : static_cast<char*>(job.parallel->scratch(thread, job.own_bytes));
  Arena arena{memory};
  return carve_own(job, arena);
}

void sample_task(void* context, int64_t, int thread) {
  const Job& job = *static_cast<const Job*>(context);
  const Own own = own_of(job, thread);
  const Place place = place_of(job, thread);
  const int64_t channels = job.head->channels;
  embed_conditions(job, thread, own);
  for (int64_t u = 0; u < place.units.count; ++u) {
    const DiffusionToken& token = job.tokens[place.units.first + u];
    float* x = own.state + u * channels;
    start_noise(token.seed, token.cell, channels, x);
    if (job.head->flow)
      for (int64_t c = 0; c < channels; ++c) x[c] *= token.temperature;
  }
  const int64_t count = job.sample->step_count;
  for (int64_t first = 0; first < count; first += job.chunk) {
    const int64_t steps = smaller(job.chunk, count - first);
    prepare_steps(job, thread, own, first, steps);
    sample_steps(job, place, own, first, steps);
  }
  if (!place.speaks) return;
  for (int64_t u = 0; u < place.units.count; ++u)
    __builtin_memcpy(job.tokens[place.units.first + u].out, own.state + u * channels,
                     static_cast<size_t>(channels) * sizeof(float));
}

void network_task(void* context, int64_t, int thread) {
  const Job& job = *static_cast<const Job*>(context);
  const DiffusionHeadArgs& args = *job.network;
  const Own own = own_of(job, thread);
  const Place place = place_of(job, thread);
  const int64_t channels = job.head->channels;
  embed_conditions(job, thread, own);
  prepare_steps(job, thread, own, 0, 1);
  for (int64_t i = 0; i < place.rows; ++i)
    __builtin_memcpy(own.input + i * channels,
                     static_cast<const float*>(args.x.data) + (place.row + i) * args.x.stride,
                     static_cast<size_t>(channels) * sizeof(float));
  run_network(job, place, own, job.modulation + place.row * job.modulation_width);
  if (!place.speaks) return;
  for (int64_t i = 0; i < place.rows; ++i)
    __builtin_memcpy(static_cast<float*>(args.out.data) + (place.row + i) * args.out.stride,
                     own.out + i * job.outputs, static_cast<size_t>(job.outputs) * sizeof(float));
}

// Fills in what follows from head, units and rows, takes memory, and runs `task` on every thread.
bool run_job(Job& job, const DiffusionHeadWeights& head, Parallel& parallel, Parallel::Task task) {
  job.head = &head;
  job.parallel = &parallel;
  job.threads = parallel.threads();
  // With several tokens to a thread nobody needs to wait for anybody. But weights that no
  // cache holds are better read once for all tokens than by each thread for its own.
  const bool small = 2 * head.depth * head.width * head.width <= kCachedWeights;
  job.members = small && job.units >= 2 * job.threads ? 1 : job.threads;
  job.teams = job.threads / job.members;
  job.outputs = head.flow ? head.channels : 2 * head.channels;
  job.modulation_width = (3 * head.depth + 2) * head.width;
  job.chunk = job.network
                  ? 1
                  : smaller(job.sample->step_count,
                            larger(1, kModulationFloats / (job.rows * job.modulation_width)));
  Arena shared{nullptr};
  carve_shared(job, shared);
  Arena own{nullptr};
  carve_own(job, own);
  job.own_bytes = own.used;
  for (int t = job.threads - 1; t > 0; --t)
    if (!parallel.scratch(t, job.own_bytes)) return false;
  char* memory = static_cast<char*>(parallel.scratch(0, shared.used + job.own_bytes));
  if (!memory) return false;
  Arena real{memory};
  carve_shared(job, real);
  job.own_base = memory + real.used;
  job.unit_rows[0] = 0;
  for (int64_t u = 0; u < job.units; ++u)
    job.unit_rows[u + 1] = job.unit_rows[u] + (job.sample && job.tokens[u].z_empty >= 0 ? 2 : 1);
  parallel.run(job.threads, task, &job);
  return true;
}

// Rows whose modulations for one step stay within bounds.
int64_t most_rows(const DiffusionHeadWeights& head) {
  return larger(2, kModulationFloats / ((3 * head.depth + 2) * head.width));
}

}  // namespace

bool diffusion_sample(const DiffusionSampleArgs& args, Products products, Parallel& parallel) {
  const int64_t most = most_rows(*args.head);
  for (int64_t first = 0; first < args.token_count;) {
    Job job{};
    job.products = products;
    job.sample = &args;
    job.tokens = args.tokens + first;
    job.times = args.step_count;
    while (first < args.token_count && job.rows + 2 <= most) {
      job.rows += args.tokens[first].z_empty >= 0 ? 2 : 1;
      ++job.units;
      ++first;
    }
    if (!run_job(job, *args.head, parallel, sample_task)) return false;
  }
  return true;
}

bool diffusion_head(const DiffusionHeadArgs& args, Products products, Parallel& parallel) {
  const int64_t most = most_rows(*args.head);
  for (int64_t first = 0; first < args.x.rows; first += most) {
    const int64_t rows = smaller(most, args.x.rows - first);
    DiffusionHeadArgs piece = args;
    const auto rows_from = [&](Tensor& t) {
      t.data = static_cast<float*>(t.data) + first * t.stride;
      t.rows = rows;
    };
    rows_from(piece.x);
    rows_from(piece.z);
    rows_from(piece.out);
    piece.time += first;
    Job job{};
    job.products = products;
    job.network = &piece;
    job.units = job.rows = job.times = rows;
    if (!run_job(job, *args.head, parallel, network_task)) return false;
  }
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
