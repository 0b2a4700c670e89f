// The losses of training and their gradients, and what the diffusion loss starts from.
#include "cuda/device/math.h"
#include "cuda/device/philox.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/training_elements.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

// ---- cross-entropy ----

// A block takes a row of logits, which it goes over three times; the second and third reading come
// from the second-level cache.
constexpr int kRowThreads = 512;

struct EntropyParams {
  Rows logits;
  const int32_t* targets;
  float* losses;
  int32_t cols;
  float cap, scale;
};

__global__ void __launch_bounds__(kRowThreads) cross_entropy_row(EntropyParams p) {
  SharedArena arena;
  const auto scratch = arena.take<float>(kRowThreads / kWarp);
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  float* logits = p.logits.at(row);
  const int32_t target = p.targets[row];
  // Each thread reads what it wrote itself, but for the target's logit.
  float most = -INFINITY;
  for (int c = thread; c < p.cols; c += kRowThreads) {
    float v = logits[c];
    if (p.cap > 0) logits[c] = v = soft_capped(v, p.cap);
    most = fmaxf(most, v);
  }
  const float top = block_max(most, scratch);
  const float aim = logits[target];
  float part = 0;
  for (int c = thread; c < p.cols; c += kRowThreads) part += expf(logits[c] - top);
  // Ends with a barrier, after which the target's logit may be overwritten.
  const float total = block_sum(part, scratch);
  if (thread == 0) p.losses[row] = logf(total) - (aim - top);
  for (int c = thread; c < p.cols; c += kRowThreads) {
    const float v = logits[c];
    float d = expf(v - top) / total;
    if (c == target) d -= 1.0f;
    d *= p.scale;
    if (p.cap > 0) d *= 1.0f - (v / p.cap) * (v / p.cap);
    logits[c] = d;
  }
}

// ---- what the diffusion loss starts from ----

struct TimeParams {
  const float* time;
  Rows out;
  ElementGrid grid;  // of frequencies
};
__global__ void __launch_bounds__(kElementThreads) time_feature(TimeParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const float angle = p.time[at.row] * time_frequency(static_cast<int>(at.column));
  p.out.at(at.row, at.column) = cosf(angle);
  p.out.at(at.row, kTimeFeatures / 2 + at.column) = sinf(angle);
}

struct NoiseParams {
  const uint64_t* counters;
  uint64_t seed;
  Rows out;
  int32_t channels;
  ElementGrid grid;  // of four channels each
};
__global__ void __launch_bounds__(kElementThreads) training_noise_quad(NoiseParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const uint64_t counter = p.counters[at.row];
  float drawn[4];
  normals(p.seed, static_cast<uint32_t>(at.column), static_cast<uint32_t>(counter),
          static_cast<uint32_t>(counter >> 32), Draw::training_noise, drawn);
  for (int i = 0; i < 4; ++i)
    if (at.column * 4 + i < p.channels) p.out.at(at.row, at.column * 4 + i) = drawn[i];
}

struct DiffuseParams {
  Rows x0, epsilon, out;
  const int32_t* index;
  const TrainingStep* steps;
  ElementGrid grid;
};
__global__ void __launch_bounds__(kElementThreads) diffuse_element(DiffuseParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const TrainingStep& s = p.steps[at.row];
  p.out.at(at.row, at.column) = fmaf(s.noise, p.epsilon.at(at.row, at.column),
                                     s.signal * p.x0.at(p.index[at.row], at.column));
}

// ---- the diffusion loss ----

// A block takes a row: channels are few, and a step has a row for every token and timestep.
constexpr int kLossThreads = 64;

struct LossParams {
  Rows output, x0, epsilon, doutput;
  const int32_t* index;
  const TrainingStep* steps;
  float* losses;
  int32_t channels;
  float scale;
};

struct Cdf {
  double value, density;
};

// The tanh approximation of the normal distribution that IDDPM uses, and its derivative.
UNIFLUID_DEVICE Cdf normal_cdf(double u) {
  const double root = 0.7978845608028654;  // sqrt(2 / pi)
  const double t = tanh(root * (u + 0.044715 * u * u * u));
  return {0.5 * (1 + t), 0.5 * (1 - t * t) * root * (1 + 3 * 0.044715 * u * u)};
}

// The bound of one channel in nats, and its derivative with respect to the log variance.
struct Bound {
  double value, slope;
};

// The likelihood of x0 at the first step: of the interval of a 256th part about it.
UNIFLUID_DEVICE Bound likelihood(double x0, double mean, double log_variance) {
  const double inverse = exp(-0.5 * log_variance);
  const double high = inverse * (x0 - mean + 1.0 / 255), low = inverse * (x0 - mean - 1.0 / 255);
  const Cdf above = normal_cdf(high), below = normal_cdf(low);
  double p, dp;  // dp: with respect to log variance; d high / d log variance = -high / 2
  if (x0 < -0.999) {
    p = above.value;
    dp = above.density * (-high / 2);
  } else if (x0 > 0.999) {
    p = 1 - below.value;
    dp = -below.density * (-low / 2);
  } else {
    p = above.value - below.value;
    dp = above.density * (-high / 2) - below.density * (-low / 2);
  }
  const bool tiny = p <= 1e-12;  // not where it is no number, which the loss must show
  return {-log(tiny ? 1e-12 : p), tiny ? 0 : -dp / p};
}

// The velocity's square error.
__global__ void __launch_bounds__(kLossThreads) flow_loss_row(LossParams p) {
  SharedArena arena;
  const auto scratch = arena.take<float>(kLossThreads / kWarp);
  const int64_t row = blockIdx.x;
  const float n = static_cast<float>(p.channels);
  const float slope = 2 * p.scale / n;
  float squares = 0;
  for (int c = static_cast<int>(threadIdx.x); c < p.channels; c += kLossThreads) {
    const float velocity = p.epsilon.at(row, c) - p.x0.at(p.index[row], c);
    const float miss = p.output.at(row, c) - velocity;
    squares = fmaf(miss, miss, squares);
    p.doutput.at(row, c) = miss * slope;
  }
  squares = block_sum(squares, scratch);
  if (threadIdx.x == 0) p.losses[row] = squares / n;
}

// The square error of epsilon, and the variational bound in bits through the variance alone:
// epsilon counts as a constant in it. In float64, as the tables' differences need.
__global__ void __launch_bounds__(kLossThreads) ddpm_loss_row(LossParams p) {
  SharedArena arena;
  const auto scratch = arena.take<double>(kLossThreads / kWarp);
  const int64_t row = blockIdx.x;
  const TrainingStep s = p.steps[row];
  const double n = p.channels, bits = 0.6931471805599453;
  const double range = (static_cast<double>(s.log_beta) - s.log_tilde) / 2;  // d log variance / dv
  double square = 0, bound = 0;
  for (int c = static_cast<int>(threadIdx.x); c < p.channels; c += kLossThreads) {
    const double epsilon = p.epsilon.at(row, c), x0 = p.x0.at(p.index[row], c);
    const double output = p.output.at(row, c), miss = output - epsilon;
    square += miss * miss;
    p.doutput.at(row, c) = static_cast<float>(2 * miss * s.weight * p.scale / n);

    const double x = s.signal * x0 + s.noise * epsilon;
    const double mean = s.coef_x0 * (s.recip * x - s.recipm1 * output) + s.coef_x * x;
    const double share = (static_cast<double>(p.output.at(row, p.channels + c)) + 1) / 2;
    const double log_variance = share * s.log_beta + (1 - share) * s.log_tilde;
    Bound b;
    if (s.first) {
      b = likelihood(x0, mean, log_variance);
    } else {
      const double miss_mean = s.coef_x0 * x0 + s.coef_x * x - mean;
      const double ratio = exp(s.log_tilde - log_variance);
      const double far = miss_mean * miss_mean * exp(-log_variance);
      b = {0.5 * (log_variance - s.log_tilde - 1 + ratio + far), 0.5 * (1 - ratio - far)};
    }
    bound += b.value;
    p.doutput.at(row, p.channels + c) = static_cast<float>(b.slope * range * p.scale / (n * bits));
  }
  square = block_sum(square, scratch);
  bound = block_sum(bound, scratch);
  if (threadIdx.x == 0)
    p.losses[row] = static_cast<float>(square / n * s.weight + bound / (n * bits));
}

}  // namespace

const float* cross_entropy(Queue& queue, const CrossEntropyArgs& args) {
  const size_t rows = static_cast<size_t>(args.logits.rows);
  EntropyParams p{};
  p.losses = queue.scratch<float>(rows);
  p.targets = queue.stage(args.targets, rows);
  p.logits = args.logits;
  p.cols = static_cast<int32_t>(args.logits.cols);
  p.cap = args.cap;
  p.scale = args.scale;
  queue.launch(cross_entropy_row, dim3(static_cast<unsigned>(rows)), dim3(kRowThreads),
               SharedBytes{}.take<float>(kRowThreads / kWarp).used, p);
  return p.losses;
}

void time_features(Queue& queue, const TimeFeaturesArgs& args) {
  if (args.out.rows == 0) return;
  TimeParams p{};
  p.time = queue.stage(args.time, static_cast<size_t>(args.out.rows));
  p.out = args.out;
  p.grid = ElementGrid(args.out.rows, kTimeFeatures / 2);
  launch_elements(queue, time_feature, p.grid, p);
}

void training_noise(Queue& queue, const TrainingNoiseArgs& args) {
  if (args.out.size() == 0) return;
  NoiseParams p{};
  p.counters = queue.stage(args.counters, static_cast<size_t>(args.out.rows));
  p.seed = args.seed;
  p.out = args.out;
  p.channels = static_cast<int32_t>(args.out.cols);
  p.grid = ElementGrid(args.out.rows, (args.out.cols + 3) / 4);
  launch_elements(queue, training_noise_quad, p.grid, p);
}

void diffuse(Queue& queue, const DiffuseArgs& args) {
  if (args.out.size() == 0) return;
  DiffuseParams p{};
  p.index = queue.stage(args.index, static_cast<size_t>(args.out.rows));
  p.steps = queue.stage(args.steps, static_cast<size_t>(args.out.rows));
  p.x0 = args.x0;
  p.epsilon = args.epsilon;
  p.out = args.out;
  p.grid = ElementGrid(args.out.rows, args.out.cols);
  launch_elements(queue, diffuse_element, p.grid, p);
}

const float* diffusion_loss(Queue& queue, const DiffusionLossArgs& args) {
  const size_t rows = static_cast<size_t>(args.output.rows);
  LossParams p{};
  p.losses = queue.scratch<float>(rows);
  p.index = queue.stage(args.index, rows);
  p.steps = queue.stage(args.steps, rows);
  p.output = args.output;
  p.x0 = args.x0;
  p.epsilon = args.epsilon;
  p.doutput = args.doutput;
  p.channels = static_cast<int32_t>(args.epsilon.cols);
  p.scale = args.scale;
  const dim3 grid(static_cast<unsigned>(rows));
  if (args.flow)
    queue.launch(flow_loss_row, grid, dim3(kLossThreads),
                 SharedBytes{}.take<float>(kLossThreads / kWarp).used, p);
  else
    queue.launch(ddpm_loss_row, grid, dim3(kLossThreads),
                 SharedBytes{}.take<double>(kLossThreads / kWarp).used, p);
  return p.losses;
}

}  // namespace unifluid::cuda
