// The update of parameters. Runs of them are tasks; sums are over runs in order.
#include "cpu/kernels/rows.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

constexpr int64_t kRun = int64_t{1} << 15;

UNIFLUID_INLINE int64_t pieces_of(int64_t count) { return divide_up(count, kRun); }

void adamw_task(void* context, int64_t index, int) {
  const AdamWArgs& a = *static_cast<const AdamWArgs*>(context);
  const int64_t first = index * kRun;
  const int64_t count = a.count - first < kRun ? a.count - first : kRun;
  const Vec beta1 = set1(a.beta1), beta2 = set1(a.beta2);
  const Vec rest1 = set1(1 - a.beta1), rest2 = set1(1 - a.beta2);
  const Vec inverse1 = set1(1 / a.correction1), inverse2 = set1(1 / a.correction2);
  const Vec shrink = set1(1 - a.rate * a.decay), rate = set1(a.rate);
  const Vec epsilon = set1(a.epsilon), scale = set1(a.gradient_scale);
  const Vec keep = set1(a.average_keep), take = set1(1 - a.average_keep);
  each_vector(count, [&](int64_t c, int n) {
    const int64_t i = first + c;
    const Vec g = mul(load_n(a.gradient + i, n), scale);
    const Vec m = fma(beta1, load_n(a.first + i, n), mul(rest1, g));
    const Vec v = fma(beta2, load_n(a.second + i, n), mul(rest2, mul(g, g)));
    store_n(a.first + i, m, n);
    store_n(a.second + i, v, n);
    const Vec step = div(mul(m, inverse1), add(sqrt(mul(v, inverse2)), epsilon));
    const Vec value = fnma(rate, step, mul(shrink, load_n(a.value + i, n)));
    store_n(a.value + i, value, n);
    if (a.average) store_n(a.average + i, fma(keep, load_n(a.average + i, n), mul(take, value)), n);
  });
}

struct SquaresWork {
  const float* values;
  int64_t count;
  double* sums;
};

void squares_task(void* context, int64_t index, int) {
  const SquaresWork& work = *static_cast<const SquaresWork*>(context);
  const int64_t first = index * kRun;
  const int64_t count = work.count - first < kRun ? work.count - first : kRun;
  double total = 0;
  for (int64_t block = 0; block < count; block += 1024) {
    const int64_t size = count - block < 1024 ? count - block : 1024;
    Vec part = zero();
    each_vector(size, [&](int64_t c, int n) {
      const Vec v = load_n(work.values + first + block + c, n);
      part = fma(v, v, part);
    });
    total += sum(part);
  }
  work.sums[index] = total;
}

}  // namespace

void adamw(const AdamWArgs& args, Parallel& parallel) {
  AdamWArgs a = args;
  parallel.run(pieces_of(a.count), adamw_task, &a);
}

bool sum_of_squares(const float* values, int64_t count, double* result, Parallel& parallel) {
  const int64_t pieces = pieces_of(count);
  SquaresWork work{
      values, count,
      static_cast<double*>(parallel.scratch(0, sizeof(double) * static_cast<size_t>(pieces + 1)))};
  if (!work.sums) return false;
  parallel.run(pieces, squares_task, &work);
  double total = 0;
  for (int64_t i = 0; i < pieces; ++i) total += work.sums[i];
  *result = total;
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
