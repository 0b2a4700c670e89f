#include "core/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace unifluid {
namespace {

constexpr double kHalfPi = 1.5707963267948966;

// The share of signal variance left at time s of 0..1.
double cosine_bar(double s) {
  const double c = std::cos((s + 0.008) / 1.008 * kHalfPi);
  return c * c;
}

// alpha bar of every timestep 0 .. total-1.
std::vector<double> cosine_bars(int64_t total) {
  std::vector<double> bars(static_cast<size_t>(total));
  const double n = static_cast<double>(total);
  double bar = 1;
  for (int64_t t = 0; t < total; ++t) {
    const double beta = std::min(1 - cosine_bar((t + 1) / n) / cosine_bar(t / n), 0.999);
    bar *= 1 - beta;
    bars[t] = bar;
  }
  return bars;
}

// The timesteps that are kept, evenly from the first to the last; halves round to even.
std::vector<int64_t> respace(int64_t total, int64_t steps) {
  std::vector<int64_t> kept(static_cast<size_t>(steps));
  const double stride =
      steps > 1 ? static_cast<double>(total - 1) / static_cast<double>(steps - 1) : 1;
  double at = 0;
  for (int64_t i = 0; i < steps; ++i, at += stride)
    kept[i] = static_cast<int64_t>(std::nearbyint(at));
  return kept;
}

}  // namespace

std::vector<DiffusionStep> ddpm_steps(int64_t total, int64_t steps) {
  const std::vector<double> bars = cosine_bars(total);
  const std::vector<int64_t> times = respace(total, steps);

  // Betas of the kept timesteps, and the log of the posterior's variance, which would be log 0 at
  // the last step: it takes the one's before it.
  std::vector<double> betas(times.size()), log_tilde(times.size());
  for (size_t i = 0; i < times.size(); ++i) {
    const double bar = bars[times[i]], before = i > 0 ? bars[times[i - 1]] : 1;
    betas[i] = 1 - bar / before;
    log_tilde[i] = std::log(betas[i] * (1 - before) / (1 - bar));
  }
  log_tilde[0] = times.size() > 1 ? log_tilde[1] : std::log(betas[0]);

  std::vector<DiffusionStep> out;
  for (size_t i = times.size(); i-- > 0;) {
    const double bar = bars[times[i]], before = i > 0 ? bars[times[i - 1]] : 1;
    DiffusionStep step{};
    step.time = static_cast<float>(times[i]);
    step.recip = static_cast<float>(std::sqrt(1 / bar));
    step.recipm1 = static_cast<float>(std::sqrt(1 / bar - 1));
    step.coef_x0 = static_cast<float>(betas[i] * std::sqrt(before) / (1 - bar));
    step.coef_x = static_cast<float>((1 - before) * std::sqrt(1 - betas[i]) / (1 - bar));
    step.log_beta = static_cast<float>(std::log(betas[i]));
    step.log_tilde = static_cast<float>(log_tilde[i]);
    step.noise = i > 0;
    out.push_back(step);
  }
  return out;
}

std::vector<DiffusionStep> flow_steps(int64_t timesteps, int64_t steps) {
  std::vector<DiffusionStep> out(static_cast<size_t>(steps));
  for (int64_t s = 0; s < steps; ++s) {
    const double tau = 1 - static_cast<double>(s) / static_cast<double>(steps);
    out[s].tau = static_cast<float>(tau);
    out[s].time = static_cast<float>(tau * static_cast<double>(timesteps));
  }
  return out;
}

std::vector<TrainingStep> training_steps(int64_t total, float weight_cap) {
  const std::vector<double> bars = cosine_bars(total);
  // The sampler's tables without any respacing; it has the noisiest first.
  const std::vector<DiffusionStep> steps = ddpm_steps(total, total);
  std::vector<TrainingStep> out(static_cast<size_t>(total));
  const double cap = std::max(1.0, static_cast<double>(weight_cap));
  for (size_t t = 0; t < out.size(); ++t) {
    const DiffusionStep& s = steps[out.size() - 1 - t];
    TrainingStep& o = out[t];
    o.signal = static_cast<float>(std::sqrt(bars[t]));
    o.noise = static_cast<float>(std::sqrt(1 - bars[t]));
    o.time = s.time;
    o.recip = s.recip;
    o.recipm1 = s.recipm1;
    o.coef_x0 = s.coef_x0;
    o.coef_x = s.coef_x;
    o.log_beta = s.log_beta;
    o.log_tilde = s.log_tilde;
    o.weight = static_cast<float>(std::clamp((1 - bars[t]) / bars[t], 1.0, cap));
    o.first = t == 0;
  }
  return out;
}

TrainingStep flow_training_step(float time, int64_t timesteps) {
  TrainingStep s{};
  const double tau = static_cast<double>(time) / static_cast<double>(timesteps);
  s.time = time;
  s.noise = static_cast<float>(tau);
  s.signal = static_cast<float>(1 - tau);
  s.weight = 1;
  return s;
}

}  // namespace unifluid
