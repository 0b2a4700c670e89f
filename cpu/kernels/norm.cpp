// Normalizations. Statistics are sums in an order that depends on the row or the image alone, never
// on how the work is shared.
#include "cpu/kernels/rows.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

void rms_norm_row(const RmsNormArgs& a, const Tensor& from, const float* weights,
                  const Tensor& added, const Tensor& to, int64_t row) {
  const int64_t n = a.x.cols;
  const float* x = row_of(from, row);
  Vec squares = zero();
  each_vector(n, [&](int64_t c, int k) {
    const Vec v = load_n(x + c, k);
    squares = fma(v, v, squares);
  });
  const Vec scale = set1(inverse_root(sum(squares) / static_cast<float>(n) + a.eps));
  const float* residual = added ? row_of(added, row) : nullptr;
  const OperandRow out = operand_row(to, row);
  each_vector(n, [&](int64_t c, int k) {
    const Vec weight = add(set1(1.0f), load_n(weights + c, k));
    Vec v = mul(mul(load_n(x + c, k), scale), weight);
    if (residual) v = add(load_n(residual + c, k), v);
    out.store(c, v, k);
  });
}

void rms_norm_run(const RmsNormArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    rms_norm_row(a, a.x, a.weight, a.residual, a.out, i);
    if (a.next_weight) rms_norm_row(a, a.out, a.next_weight, Tensor(), a.next_out, i);
  }
}

void layer_norm_run(const LayerNormArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float* x = row_of(a.x, i);
    const RowMoments m = moments_of(x, a.x.cols, a.eps);
    const Vec center = set1(m.mean), scale = set1(m.root);
    float* out = mutable_row_of(a.out, i);
    each_vector(a.x.cols, [&](int64_t c, int k) {
      Vec v = mul(sub(load_n(x + c, k), center), scale);
      if (a.weight) v = mul(v, load_n(a.weight + c, k));
      if (a.bias) v = add(v, load_n(a.bias + c, k));
      store_n(out + c, v, k);
    });
  }
}

// ---- group norm ----
//
// Pixels are cut into runs that fit the second-level cache; how, depends on the image alone. For
// each run and group a mean and the sum of squared deviations from it are taken in two passes, and
// those of all runs are put together in order, in float64 (Chan, Golub and LeVeque, "Updating
// formulae and a pairwise algorithm for computing sample variances", 1979). So the image is read
// once for its statistics and once to be normalized.

constexpr int64_t kRunElements = int64_t{1} << 15;

struct Moments {
  double mean, squares;  // `squares`: sum of squared deviations
};

struct GroupWork {
  const GroupNormArgs* args;
  Parallel* parallel;
  int64_t run;       // pixels of a run
  Moments* moments;  // [runs][groups]
  // Of each channel, once the statistics are known: out = (x - center) * factor + bias.
  float *center, *factor;
};

// Calls f(value, i) for the vector that lies i vectors after `channel` in each pixel of [first,
// end), for kColumns vectors side by side.
constexpr int kColumns = 4;
template <int kCount, class F>
UNIFLUID_INLINE void each_in_columns(const Tensor& x, int64_t first, int64_t end, int64_t channel,
                                     int lanes, F f) {
  for (int64_t p = first; p < end; ++p) {
    const float* at = row_of(x, p) + channel;
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) f(load_n(at + i * kLanes, lanes), i);
  }
}

// sums[c] = the sum over the run's pixels of x[c], or of (x[c] - center[c])^2 with a center, for
// the channels from `channel` on that kCount vectors hold, the last of which may be cut off.
template <int kCount>
void column_sums(const Tensor& x, int64_t first, int64_t end, int64_t channel, int lanes,
                 const float* center, float* sums) {
  Vec total[kCount], middle[kCount];
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
    total[i] = zero();
    middle[i] = center ? load_n(center + channel + i * kLanes, lanes) : zero();
  }
  if (center)
    each_in_columns<kCount>(x, first, end, channel, lanes, [&](Vec v, int i) {
      const Vec d = sub(v, middle[i]);
      total[i] = fma(d, d, total[i]);
    });
  else
    each_in_columns<kCount>(x, first, end, channel, lanes,
                            [&](Vec v, int i) { total[i] = add(total[i], v); });
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) store_n(sums + channel + i * kLanes, total[i], lanes);
}

void channel_sums(const Tensor& x, int64_t first, int64_t end, const float* center, float* sums) {
  int64_t c = 0;
  for (; c + kColumns * kLanes <= x.cols; c += kColumns * kLanes)
    column_sums<kColumns>(x, first, end, c, kLanes, center, sums);
  each_vector(x.cols - c, [&](int64_t offset, int lanes) {
    column_sums<1>(x, first, end, c + offset, lanes, center, sums);
  });
}

// Values of channels: a thread's scratch holds two rows of them, rounded up to whole vectors.
int64_t scratch_row(const GroupNormArgs& args) { return divide_up(args.x.cols, kLanes) * kLanes; }

void moments_task(void* context, int64_t index, int thread) {
  const GroupWork& work = *static_cast<const GroupWork*>(context);
  const GroupNormArgs& a = *work.args;
  const int64_t first = index * work.run, end = smaller(first + work.run, a.x.rows);
  const int64_t channels = a.x.cols / a.groups;
  const double count = static_cast<double>((end - first) * channels);
  Moments* moments = work.moments + index * a.groups;
  // Thread 0's scratch begins with the moments of all runs.
  float* sums = thread == 0 ? work.center
                            : static_cast<float*>(work.parallel->scratch(
                                  thread, 2 * sizeof(float) * static_cast<size_t>(scratch_row(a))));
  float* center = sums + scratch_row(a);

  channel_sums(a.x, first, end, nullptr, sums);
  for (int64_t g = 0; g < a.groups; ++g) {
    double total = 0;
    for (int64_t c = 0; c < channels; ++c) total += sums[g * channels + c];
    moments[g].mean = total / count;
    for (int64_t c = 0; c < channels; ++c)
      center[g * channels + c] = static_cast<float>(moments[g].mean);
  }
  channel_sums(a.x, first, end, center, sums);
  for (int64_t g = 0; g < a.groups; ++g) {
    double total = 0;
    for (int64_t c = 0; c < channels; ++c) total += sums[g * channels + c];
    moments[g].squares = total;
  }
}

void normalize_task(void* context, int64_t index, int) {
  const GroupWork& work = *static_cast<const GroupWork*>(context);
  const GroupNormArgs& a = *work.args;
  const int64_t first = index * work.run, end = smaller(first + work.run, a.x.rows);
  for (int64_t p = first; p < end; ++p) {
    const float* x = row_of(a.x, p);
    float* out = mutable_row_of(a.out, p);
    each_vector(a.x.cols, [&](int64_t c, int n) {
      const Vec d = sub(load_n(x + c, n), load_n(work.center + c, n));
      Vec v = fma(d, load_n(work.factor + c, n), load_n(a.bias + c, n));
      if (a.silu) v = silu(v);
      store_n(out + c, v, n);
    });
  }
}

// From the moments of the runs, those of each group over all pixels, and from these `center` and
// `factor`.
void finish_moments(const GroupWork& work, int64_t runs) {
  const GroupNormArgs& a = *work.args;
  const int64_t channels = a.x.cols / a.groups;
  for (int64_t g = 0; g < a.groups; ++g) {
    double count = 0, mean = 0, squares = 0;
    for (int64_t r = 0; r < runs; ++r) {
      const Moments& part = work.moments[r * a.groups + g];
      const double part_count =
          static_cast<double>(smaller(work.run, a.x.rows - r * work.run) * channels);
      const double difference = part.mean - mean;
      const double together = count + part_count;
      mean += difference * part_count / together;
      squares += part.squares + difference * difference * count * part_count / together;
      count = together;
    }
    const float scale = inverse_root(static_cast<float>(squares / count) + a.eps);
    for (int64_t c = g * channels; c < (g + 1) * channels; ++c) {
      work.center[c] = static_cast<float>(mean);
      work.factor[c] = scale * a.weight[c];
    }
  }
}

}  // namespace

void rms_norm(const RmsNormArgs& args, Parallel& parallel) {
  each_share<const RmsNormArgs>(args, args.x.rows, args.x.size(), rms_norm_run, parallel);
}

void layer_norm(const LayerNormArgs& args, Parallel& parallel) {
  each_share<const LayerNormArgs>(args, args.x.rows, args.x.size(), layer_norm_run, parallel);
}

bool group_norm(const GroupNormArgs& args, Parallel& parallel) {
  const int64_t run = larger(kRunElements / args.x.cols, 1);
  const int64_t runs = divide_up(args.x.rows, run);
  const size_t moments = (sizeof(Moments) * static_cast<size_t>(runs * args.groups) + 63) / 64 * 64;
  const size_t rows = 2 * sizeof(float) * static_cast<size_t>(scratch_row(args));
  for (int t = 0; t < parallel.threads(); ++t)
    if (!parallel.scratch(t, t == 0 ? moments + rows : rows)) return false;
  char* memory = static_cast<char*>(parallel.scratch(0, moments + rows));

  GroupWork work{&args, &parallel, run, reinterpret_cast<Moments*>(memory), nullptr, nullptr};
  work.center = reinterpret_cast<float*>(memory + moments);
  work.factor = work.center + scratch_row(args);
  parallel.run(runs, moments_task, &work);
  finish_moments(work, runs);
  parallel.run(runs, normalize_task, &work);
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
