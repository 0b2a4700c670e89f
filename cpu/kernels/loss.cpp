// The losses of training and their gradients, and what the diffusion loss starts from.
#include "core/noise.h"
#include "cpu/kernels/rows.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// ---- cross-entropy ----

void cross_entropy_run(const CrossEntropyArgs& a, int64_t first, int64_t end, int64_t) {
  const int64_t n = a.logits.cols;
  const Vec cap = set1(a.cap);
  for (int64_t i = first; i < end; ++i) {
    float* row = mutable_row_of(a.logits, i);
    Vec most = set1(-3e38f);
    each_vector(n, [&](int64_t c, int k) {
      Vec v = load_n(row + c, k);
      if (a.cap > 0) {
        v = soft_capped(v, cap);
        store_n(row + c, v, k);
      }
      if (k < kLanes) {  // the last logit for the lanes past the end
        float t[kLanes];
        for (int l = 0; l < kLanes; ++l) t[l] = row[n - 1];
        store_n(t, v, k);
        v = load(t);
      }
      most = max(most, v);
    });
    const float top = max_of(most);
    // Sums of many small terms: the vocabulary may be large.
    double total = 0;
    for (int64_t block = 0; block < n; block += 1024) {
      Vec part = zero();
      const int64_t size = n - block < 1024 ? n - block : 1024;
      each_vector(size, [&](int64_t c, int k) {
        part = add(part, keep(exp(sub(load_n(row + block + c, k), set1(top))), k));
      });
      total += sum(part);
    }
    const int32_t target = a.targets[i];
    a.losses[i] =
        static_cast<float>(__builtin_log(total) - (static_cast<double>(row[target]) - top));
    const float inverse = static_cast<float>(1.0 / total);
    const float hit = a.cap > 0 ? 1 - (row[target] / a.cap) * (row[target] / a.cap) : 1;
    each_vector(n, [&](int64_t c, int k) {
      const Vec v = load_n(row + c, k);
      Vec d = mul(mul(exp(sub(v, set1(top))), set1(inverse)), set1(a.scale));
      if (a.cap > 0) {
        const Vec t = div(v, cap);
        d = mul(d, fnma(t, t, set1(1.0f)));
      }
      store_n(row + c, d, k);
    });
    row[target] -= a.scale * hit;
  }
}

// ---- diffusion ----

void noise_run(const TrainingNoiseArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i)
    unifluid::training_noise(a.seed, a.counters[i], a.out.cols, mutable_row_of(a.out, i));
}

void diffuse_run(const DiffuseArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float *x0 = row_of(a.x0, a.index[i]), *epsilon = row_of(a.epsilon, i);
    const Vec signal = set1(a.steps[i].signal), noise = set1(a.steps[i].noise);
    float* out = mutable_row_of(a.out, i);
    each_vector(a.out.cols, [&](int64_t c, int n) {
      store_n(out + c, fma(noise, load_n(epsilon + c, n), mul(signal, load_n(x0 + c, n))), n);
    });
  }
}

// The velocity's square error.
float flow_row(const DiffusionLossArgs& a, int64_t i) {
  const int64_t channels = a.epsilon.cols;
  const float *output = row_of(a.output, i), *epsilon = row_of(a.epsilon, i),
              *x0 = row_of(a.x0, a.index[i]);
  float* doutput = mutable_row_of(a.doutput, i);
  const Vec slope = set1(2 * a.scale / static_cast<float>(channels));
  Vec squares = zero();
  each_vector(channels, [&](int64_t c, int n) {
    const Vec miss = sub(load_n(output + c, n), sub(load_n(epsilon + c, n), load_n(x0 + c, n)));
    squares = fma(miss, miss, squares);
    store_n(doutput + c, mul(miss, slope), n);
  });
  return sum(squares) / static_cast<float>(channels);
}

struct Cdf {
  double value, density;
};

// The tanh approximation of the normal distribution that IDDPM uses, and its derivative.
Cdf normal_cdf(double u) {
  const double root = 0.7978845608028654;  // sqrt(2 / pi)
  const double t = __builtin_tanh(root * (u + 0.044715 * u * u * u));
  return {0.5 * (1 + t), 0.5 * (1 - t * t) * root * (1 + 3 * 0.044715 * u * u)};
}

// The square error of epsilon, and the variational bound in bits through the variance alone:
// epsilon counts as a constant in it.
float ddpm_row(const DiffusionLossArgs& a, int64_t i) {
  const int64_t channels = a.epsilon.cols;
  const TrainingStep& s = a.steps[i];
  const float *output = row_of(a.output, i), *noise = row_of(a.epsilon, i),
              *x0 = row_of(a.x0, a.index[i]);
  float* doutput = mutable_row_of(a.doutput, i);
  const double n = static_cast<double>(channels), bits = 0.6931471805599453;
  double square = 0, bound = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double miss = static_cast<double>(output[c]) - noise[c];
    square += miss * miss;
    doutput[c] = static_cast<float>(2 * miss * s.weight * a.scale / n);

    const double x =
        static_cast<double>(s.signal) * x0[c] + static_cast<double>(s.noise) * noise[c];
    const double guess = s.recip * x - static_cast<double>(s.recipm1) * output[c];
    const double mean = s.coef_x0 * guess + s.coef_x * x;
    const double share = (static_cast<double>(output[channels + c]) + 1) / 2;
    const double range =
        (static_cast<double>(s.log_beta) - s.log_tilde) / 2;  // d log variance / dv
    const double log_variance = share * s.log_beta + (1 - share) * s.log_tilde;
    double term, slope;
    if (s.first) {
      const double inverse = __builtin_exp(-0.5 * log_variance);
      const double high = inverse * (x0[c] - mean + 1.0 / 255),
                   low = inverse * (x0[c] - mean - 1.0 / 255);
      const Cdf above = normal_cdf(high), below = normal_cdf(low);
      double p, dp;  // dp: with respect to log variance; d high / d log variance = -high / 2
      if (x0[c] < -0.999f) {
        p = above.value;
        dp = above.density * (-high / 2);
      } else if (x0[c] > 0.999f) {
        p = 1 - below.value;
        dp = -below.density * (-low / 2);
      } else {
        p = above.value - below.value;
        dp = above.density * (-high / 2) - below.density * (-low / 2);
      }
      const bool tiny = p <= 1e-12;  // not where it is no number, which the loss must show
      term = -__builtin_log(tiny ? 1e-12 : p);
      slope = tiny ? 0 : -dp / p;
    } else {
      const double diff = (s.coef_x0 * static_cast<double>(x0[c]) + s.coef_x * x) - mean;
      const double ratio = __builtin_exp(s.log_tilde - log_variance);
      const double far = diff * diff * __builtin_exp(-log_variance);
      term = 0.5 * (log_variance - s.log_tilde - 1 + ratio + far);
      slope = 0.5 * (1 - ratio - far);
    }
    bound += term;
    doutput[channels + c] = static_cast<float>(slope * range * a.scale / (n * bits));
  }
  return static_cast<float>(square / n * s.weight + bound / (n * bits));
}

void diffusion_loss_run(const DiffusionLossArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) a.losses[i] = a.flow ? flow_row(a, i) : ddpm_row(a, i);
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args, Parallel& parallel) {
  each_run<const CrossEntropyArgs>(args, args.logits.rows, args.logits.size(), cross_entropy_run,
                                   parallel);
}

void training_noise(const TrainingNoiseArgs& args, Parallel& parallel) {
  each_run<const TrainingNoiseArgs>(args, args.out.rows, 16 * args.out.size(), noise_run, parallel);
}

void diffuse(const DiffuseArgs& args, Parallel& parallel) {
  each_run<const DiffuseArgs>(args, args.out.rows, args.out.size(), diffuse_run, parallel);
}

void diffusion_loss(const DiffusionLossArgs& args, Parallel& parallel) {
  each_run<const DiffusionLossArgs>(args, args.output.rows, 4 * args.output.size(),
                                    diffusion_loss_run, parallel);
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
