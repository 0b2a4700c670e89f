// From logits to a token: the soft cap, and the choice of an id.
#include "cpu/kernels/kernels.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// Elements of a row that one task caps: a large vocabulary is shared among threads.
constexpr int64_t kCapColumns = 16384;

int64_t cap_pieces(const SoftCapArgs& args) { return divide_up(args.x.cols, kCapColumns); }

void cap_task(void* context, int64_t index, int) {
  const SoftCapArgs& args = *static_cast<const SoftCapArgs*>(context);
  const int64_t pieces = cap_pieces(args);
  const int64_t first = index % pieces * kCapColumns;
  const int64_t n = args.x.cols - first < kCapColumns ? args.x.cols - first : kCapColumns;
  float* x = static_cast<float*>(args.x.data) + index / pieces * args.x.stride + first;
  const Vec cap = set1(args.cap);
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) store(x + c, soft_capped(load(x + c), cap));
  if (c < n) {
    const int rest = static_cast<int>(n - c);
    store_n(x + c, soft_capped(load_n(x + c, rest), cap), rest);
  }
}

// The largest of n > 0 values; `finite` becomes false where one is infinite or not a number.
float largest(const float* x, int64_t n, bool* finite) {
  Vec most = set1(x[0]);
  Vec check = zero();  // stays 0 as long as every value times 0 is 0
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    const Vec v = load(x + c);
    most = max(most, v);
    check = fma(v, zero(), check);
  }
  float result = max_of(most), rest = sum(check);
  for (; c < n; ++c) {
    result = x[c] > result ? x[c] : result;
    rest += x[c] * 0.0f;
  }
  *finite = rest == 0.0f;
  return result;
}

int32_t first_of(const float* x, float value) {
  int32_t id = 0;
  while (x[id] != value) ++id;
  return id;
}

// The first id at which the running sum of softmax(x / temperature) exceeds u; the last one where
// rounding leaves the whole sum at or below u.
int32_t draw(const float* x, int64_t n, float most, double temperature, double u) {
  const double top = most / temperature;
  double total = 0;
  for (int64_t c = 0; c < n; ++c) total += __builtin_exp(x[c] / temperature - top);
  double running = 0;
  for (int64_t c = 0; c < n; ++c) {
    running += __builtin_exp(x[c] / temperature - top) / total;
    if (running > u) return static_cast<int32_t>(c);
  }
  return static_cast<int32_t>(n - 1);
}

void sample_task(void* pointer, int64_t row, int) {
  const SampleTextArgs& args = *static_cast<const SampleTextArgs*>(pointer);
  const float* x = static_cast<const float*>(args.logits.data) + row * args.logits.stride;
  bool finite = true;
  const float most = largest(x, args.logits.cols, &finite);
  if (!finite) {
    args.ids[row] = -1;
  } else if (args.temperature[row] == 0.0f) {
    args.ids[row] = first_of(x, most);
  } else {
    args.ids[row] = draw(x, args.logits.cols, most, args.temperature[row], args.uniform[row]);
  }
}

}  // namespace

void soft_cap(const SoftCapArgs& args, Parallel& parallel) {
  parallel.run(args.x.rows * cap_pieces(args), cap_task, const_cast<SoftCapArgs*>(&args));
}

void sample_text(const SampleTextArgs& args, Parallel& parallel) {
  parallel.run(args.logits.rows, sample_task, const_cast<SampleTextArgs*>(&args));
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
