// Normalizations. Statistics are sums in an order that depends on the row or the image alone, never
// on how the work is shared.
#include "cpu/kernels/kernels.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// Elements below which the calling thread is done before another would have begun.
constexpr int64_t kSmall = int64_t{1} << 14;
// Pixels that a float32 sum of group norm runs over before it goes into a float64 one.
constexpr int64_t kRun = 64;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

UNIFLUID_INLINE const float* row_of(const Tensor& t, int64_t row) {
  return static_cast<const float*>(t.data) + row * t.stride;
}
UNIFLUID_INLINE float* mutable_row_of(const Tensor& t, int64_t row) {
  return static_cast<float*>(t.data) + row * t.stride;
}

// Calls f(offset, lanes) for every vector of `count` elements.
template <class F>
UNIFLUID_INLINE void each_vector(int64_t count, F f) {
  for (int64_t c = 0; c < count; c += kLanes) f(c, static_cast<int>(least(kLanes, count - c)));
}

// 1 / sqrt(x), correctly rounded twice rather than estimated.
UNIFLUID_INLINE float inverse_root(float x) { return 1.0f / __builtin_sqrtf(x); }

// Rows shared among threads in runs.
template <class Args>
struct Rows {
  const Args* args;
  void (*row)(const Args&, int64_t row);
  int64_t rows, run;
};

template <class Args>
void rows_task(void* context, int64_t index, int) {
  const auto& work = *static_cast<const Rows<Args>*>(context);
  const int64_t end = least((index + 1) * work.run, work.rows);
  for (int64_t i = index * work.run; i < end; ++i) work.row(*work.args, i);
}

template <class Args>
void each_row(const Args& args, void (*row)(const Args&, int64_t), Parallel& parallel) {
  const int64_t rows = args.x.rows;
  const int64_t tasks = args.x.size() < kSmall ? 1 : least(rows, 4 * parallel.threads());
  if (rows == 0) return;
  Rows<Args> work{&args, row, rows, (rows + tasks - 1) / tasks};
  parallel.run((rows + work.run - 1) / work.run, rows_task<Args>, &work);
}

void rms_norm_row(const RmsNormArgs& a, int64_t row) {
  const int64_t n = a.x.cols;
  const float* x = row_of(a.x, row);
  Vec squares = zero();
  each_vector(n, [&](int64_t c, int k) {
    const Vec v = load_n(x + c, k);
    squares = fma(v, v, squares);
  });
  const Vec scale = set1(inverse_root(sum(squares) / static_cast<float>(n) + a.eps));
  const float* residual = a.residual ? row_of(a.residual, row) : nullptr;
  float* out = mutable_row_of(a.out, row);
  each_vector(n, [&](int64_t c, int k) {
    const Vec weight = add(set1(1.0f), load_n(a.weight + c, k));
    Vec v = mul(mul(load_n(x + c, k), scale), weight);
    if (residual) v = add(load_n(residual + c, k), v);
    store_n(out + c, v, k);
  });
}

void layer_norm_row(const LayerNormArgs& a, int64_t row) {
  const int64_t n = a.x.cols;
  const float* x = row_of(a.x, row);
  Vec total = zero();
  each_vector(n, [&](int64_t c, int k) { total = add(total, load_n(x + c, k)); });
  const float mean = sum(total) / static_cast<float>(n);
  const Vec center = set1(mean);
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
  const Vec scale = set1(inverse_root(sum(squares) / static_cast<float>(n) + a.eps));
  float* out = mutable_row_of(a.out, row);
  each_vector(n, [&](int64_t c, int k) {
    Vec v = mul(sub(load_n(x + c, k), center), scale);
    if (a.weight) v = mul(v, load_n(a.weight + c, k));
    if (a.bias) v = add(v, load_n(a.bias + c, k));
    store_n(out + c, v, k);
  });
}

// ---- group norm ----

struct GroupPlan {
  const GroupNormArgs* args;
  int64_t channels;  // of one group
  int64_t bundle;    // groups a task takes: as many as fill a vector
};

// The sums over all pixels of f(value, lane) in `lanes` channels from `channel` on, in float64.
template <class F>
UNIFLUID_INLINE void column_sums(const Tensor& x, int64_t channel, int lanes, F f,
                                 double (&sums)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) sums[i] = 0;
  for (int64_t first = 0; first < x.rows; first += kRun) {
    const int64_t end = least(first + kRun, x.rows);
    Vec part = zero();
    for (int64_t p = first; p < end; ++p)
      part = add(part, f(load_n(row_of(x, p) + channel, lanes)));
    float t[kLanes];
    store(t, part);
    for (int i = 0; i < lanes; ++i) sums[i] += t[i];
  }
}

// Adds each lane's sum to that of its group.
UNIFLUID_INLINE void add_to_groups(const double (&sums)[kLanes], int lanes, int64_t first,
                                   int64_t channels, double (&groups)[kLanes]) {
  for (int i = 0; i < lanes; ++i) groups[(first + i) / channels] += sums[i];
}

void group_norm_task(void* context, int64_t index, int) {
  const GroupPlan& plan = *static_cast<const GroupPlan*>(context);
  const GroupNormArgs& a = *plan.args;
  const int64_t first_group = index * plan.bundle;
  const int64_t groups = least(plan.bundle, a.groups - first_group);
  const int64_t begin = first_group * plan.channels, width = groups * plan.channels;
  const double count = static_cast<double>(a.x.rows) * static_cast<double>(plan.channels);

  double total[kLanes] = {}, squares[kLanes] = {};
  double sums[kLanes];
  each_vector(width, [&](int64_t c, int k) {
    column_sums(
        a.x, begin + c, k, [](Vec v) { return v; }, sums);
    add_to_groups(sums, k, c, plan.channels, total);
  });
  float mean[kLanes], scale[kLanes];
  for (int64_t g = 0; g < groups; ++g) mean[g] = static_cast<float>(total[g] / count);

  // The values of one vector's lanes, by channel.
  const auto spread = [&](const float* of_group, int64_t c, int k) {
    float t[kLanes] = {};
    for (int i = 0; i < k; ++i) t[i] = of_group[(c + i) / plan.channels];
    return load(t);
  };
  each_vector(width, [&](int64_t c, int k) {
    const Vec center = spread(mean, c, k);
    column_sums(
        a.x, begin + c, k,
        [&](Vec v) {
          const Vec d = sub(v, center);
          return mul(d, d);
        },
        sums);
    add_to_groups(sums, k, c, plan.channels, squares);
  });
  for (int64_t g = 0; g < groups; ++g)
    scale[g] = inverse_root(static_cast<float>(squares[g] / count) + a.eps);

  each_vector(width, [&](int64_t c, int k) {
    const Vec center = spread(mean, c, k);
    const Vec factor = mul(spread(scale, c, k), load_n(a.weight + begin + c, k));
    const Vec bias = load_n(a.bias + begin + c, k);
    for (int64_t p = 0; p < a.x.rows; ++p) {
      Vec v = fma(sub(load_n(row_of(a.x, p) + begin + c, k), center), factor, bias);
      if (a.silu) v = silu(v);
      store_n(mutable_row_of(a.out, p) + begin + c, v, k);
    }
  });
}

}  // namespace

void rms_norm(const RmsNormArgs& args, Parallel& parallel) {
  each_row(args, rms_norm_row, parallel);
}

void layer_norm(const LayerNormArgs& args, Parallel& parallel) {
  each_row(args, layer_norm_row, parallel);
}

void group_norm(const GroupNormArgs& args, Parallel& parallel) {
  const int64_t channels = args.x.cols / args.groups;
  GroupPlan plan{&args, channels, channels < kLanes ? kLanes / channels : 1};
  const int64_t tasks = (args.groups + plan.bundle - 1) / plan.bundle;
  if (args.x.size() < kSmall) {
    for (int64_t i = 0; i < tasks; ++i) group_norm_task(&plan, i, 0);
  } else {
    parallel.run(tasks, group_norm_task, &plan);
  }
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
