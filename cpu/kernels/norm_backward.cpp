// Gradients of the normalizations, and the adaptive layer norm of the diffusion head.
//
// Gradients of a norm's weight and bias are sums over rows: each run of rows keeps partial sums in
// thread 0's scratch, and these are added up in order.
#include "cpu/kernels/rows.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// ---- rms_norm ----

struct RmsWork {
  const RmsNormBackwardArgs* args;
  float* partial;  // [runs, n], or null
};

// With r = 1 / sqrt(mean(x^2) + eps), g = dout (1 + weight): dx = r (g - x r^2 mean(g x)).
void rms_run(RmsWork& work, int64_t first, int64_t end, int64_t run) {
  const RmsNormBackwardArgs& a = *work.args;
  const int64_t n = a.x.cols;
  float* dweight = work.partial ? work.partial + run * n : nullptr;
  for (int64_t i = first; i < end; ++i) {
    const float *x = row_of(a.x, i), *dout = row_of(a.dout, i);
    Vec squares = zero(), products = zero();
    each_vector(n, [&](int64_t c, int k) {
      const Vec v = load_n(x + c, k);
      const Vec g = mul(load_n(dout + c, k), add(set1(1.0f), load_n(a.weight + c, k)));
      squares = fma(v, v, squares);
      products = fma(g, v, products);
    });
    const float r = inverse_root(sum(squares) / static_cast<float>(n) + a.eps);
    const Vec root = set1(r), pull = set1(r * r * r * sum(products) / static_cast<float>(n));
    const OperandRow dx = operand_row(a.dx, i);
    each_vector(n, [&](int64_t c, int k) {
      const Vec v = load_n(x + c, k), d = load_n(dout + c, k);
      const Vec g = mul(d, add(set1(1.0f), load_n(a.weight + c, k)));
      Vec out = fnma(v, pull, mul(g, root));
      if (a.accumulate) out = add(load_n(dx.data + c, k), out);
      if (dweight)
        store_n(dweight + c, fma(mul(d, v), root, i == first ? zero() : load_n(dweight + c, k)), k);
      dx.store(c, out, k);
    });
  }
}

// out[j] += sum over runs of partial[run, j], in order.
void add_partials(const float* partial, int64_t runs, int64_t n, float* out) {
  each_vector(n, [&](int64_t c, int k) {
    Vec total = zero();
    for (int64_t r = 0; r < runs; ++r) total = add(total, load_n(partial + r * n + c, k));
    store_n(out + c, add(load_n(out + c, k), total), k);
  });
}

// ---- layer norm, modulated ----

void modulated_run(const ModulatedNormArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) {
    const float* x = row_of(a.x, i);
    const RowMoments m = moments_of(x, a.x.cols, a.eps);
    const float* shift = a.shift ? row_of(a.shift, i) : nullptr;
    const float* scale = a.shift ? row_of(a.scale, i) : nullptr;
    const OperandRow out = operand_row(a.out, i);
    each_vector(a.x.cols, [&](int64_t c, int k) {
      Vec v = mul(sub(load_n(x + c, k), set1(m.mean)), set1(m.root));
      if (a.weight) v = mul(v, load_n(a.weight + c, k));
      if (a.bias) v = add(v, load_n(a.bias + c, k));
      if (shift) v = fma(v, add(set1(1.0f), load_n(scale + c, k)), load_n(shift + c, k));
      out.store(c, v, k);
    });
  }
}

struct ModulatedWork {
  const ModulatedNormBackwardArgs* args;
  float *dweight, *dbias;  // partial sums, or null
};

void modulated_backward_run(ModulatedWork& work, int64_t first, int64_t end, int64_t run) {
  const ModulatedNormBackwardArgs& a = *work.args;
  const int64_t n = a.x.cols;
  float* dweight = work.dweight ? work.dweight + run * n : nullptr;
  float* dbias = work.dbias ? work.dbias + run * n : nullptr;
  for (int64_t i = first; i < end; ++i) {
    const float *x = row_of(a.x, i), *dout = row_of(a.dout, i);
    const RowMoments m = moments_of(x, n, a.eps);
    const Vec mean = set1(m.mean), root = set1(m.root);
    const float* scale = a.shift ? row_of(a.scale, i) : nullptr;
    const OperandRow dshift = operand_row(a.dshift, i), dscale = operand_row(a.dscale, i);
    // g: gradient of the normalized values.
    Vec total = zero(), products = zero();
    each_vector(n, [&](int64_t c, int k) {
      const Vec d = load_n(dout + c, k);
      const Vec hat = keep(mul(sub(load_n(x + c, k), mean), root), k);
      Vec affine = hat, g = d;
      if (a.weight) affine = mul(affine, load_n(a.weight + c, k));
      if (a.bias) affine = add(affine, load_n(a.bias + c, k));
      if (a.dshift) dshift.store(c, d, k);
      if (a.dscale) dscale.store(c, mul(d, affine), k);
      if (scale) g = mul(g, add(set1(1.0f), load_n(scale + c, k)));
      if (dweight)
        store_n(dweight + c, fma(g, hat, i == first ? zero() : load_n(dweight + c, k)), k);
      if (dbias) store_n(dbias + c, add(g, i == first ? zero() : load_n(dbias + c, k)), k);
      if (a.weight) g = mul(g, load_n(a.weight + c, k));
      total = add(total, g);
      products = fma(g, hat, products);
    });
    const Vec center = set1(sum(total) / static_cast<float>(n));
    const Vec pull = set1(sum(products) / static_cast<float>(n));
    float* dx = mutable_row_of(a.dx, i);
    each_vector(n, [&](int64_t c, int k) {
      const Vec hat = mul(sub(load_n(x + c, k), mean), root);
      Vec g = load_n(dout + c, k);
      if (scale) g = mul(g, add(set1(1.0f), load_n(scale + c, k)));
      if (a.weight) g = mul(g, load_n(a.weight + c, k));
      Vec out = mul(root, fnma(hat, pull, sub(g, center)));
      if (a.accumulate) out = add(load_n(dx + c, k), out);
      store_n(dx + c, out, k);
    });
  }
}

// ---- group norm ----
//
// A task is one group of one image. Its pixels are few at training sizes; sums run over pixels in
// order, for each channel, and then over the group's channels, in float64.

struct GroupWork {
  const GroupNormBackwardArgs* args;
  double* partial;  // [images, channels, 2]: gradients of weight and bias
};

void group_task(void* context, int64_t index, int) {
  const GroupWork& work = *static_cast<const GroupWork*>(context);
  const GroupNormBackwardArgs& a = *work.args;
  const int64_t channels = a.x.cols, pixels = a.x.rows / a.images, width = channels / a.groups;
  const int64_t image = index / a.groups, group = index % a.groups;
  const int64_t first = image * pixels, start = group * width;
  const double count = static_cast<double>(pixels * width);
  double total = 0, squares = 0;
  for (int64_t p = 0; p < pixels; ++p) {
    const float* x = row_of(a.x, first + p) + start;
    for (int64_t c = 0; c < width; ++c) total += x[c];
  }
  const double mean = total / count;
  for (int64_t p = 0; p < pixels; ++p) {
    const float* x = row_of(a.x, first + p) + start;
    for (int64_t c = 0; c < width; ++c) squares += (x[c] - mean) * (x[c] - mean);
  }
  const float root =
      static_cast<float>(1.0 / __builtin_sqrt(squares / count + static_cast<double>(a.eps)));
  const float center = static_cast<float>(mean);

  // Gradient before SiLU, of the affine value: recomputed rather than kept.
  double all = 0, product = 0;
  for (int64_t c = 0; c < width; c += kLanes) {
    const int n = width - c < kLanes ? static_cast<int>(width - c) : kLanes;
    const Vec weight = load_n(a.weight + start + c, n), bias = load_n(a.bias + start + c, n);
    Vec dweight = zero(), dbias = zero();
    for (int64_t p = 0; p < pixels; ++p) {
      const Vec x = load_n(row_of(a.x, first + p) + start + c, n);
      Vec d = load_n(row_of(a.dout, first + p) + start + c, n);
      const Vec hat = mul(sub(x, set1(center)), set1(root));
      if (a.silu) {
        const Vec v = fma(hat, weight, bias);
        const Vec s = div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), v))));
        d = mul(d, fma(mul(v, s), sub(set1(1.0f), s), s));
      }
      dweight = fma(d, hat, dweight);
      dbias = add(dbias, d);
    }
    float w[kLanes], b[kLanes];
    store(w, dweight);
    store(b, dbias);
    for (int i = 0; i < n; ++i) {
      double* out = work.partial + (image * channels + start + c + i) * 2;
      out[0] = w[i];
      out[1] = b[i];
      all += static_cast<double>(b[i]) * a.weight[start + c + i];
      product += static_cast<double>(w[i]) * a.weight[start + c + i];
    }
  }
  const Vec middle = set1(static_cast<float>(all / count));
  const Vec pull = set1(static_cast<float>(product / count));
  for (int64_t p = 0; p < pixels; ++p) {
    const float* x = row_of(a.x, first + p) + start;
    const float* dout = row_of(a.dout, first + p) + start;
    float* dx = mutable_row_of(a.dx, first + p) + start;
    each_vector(width, [&](int64_t c, int n) {
      const Vec weight = load_n(a.weight + start + c, n);
      const Vec hat = mul(sub(load_n(x + c, n), set1(center)), set1(root));
      Vec d = load_n(dout + c, n);
      if (a.silu) {
        const Vec v = fma(hat, weight, load_n(a.bias + start + c, n));
        const Vec s = div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), v))));
        d = mul(d, fma(mul(v, s), sub(set1(1.0f), s), s));
      }
      Vec out = mul(set1(root), fnma(hat, pull, sub(mul(d, weight), middle)));
      if (a.accumulate) out = add(load_n(dx + c, n), out);
      store_n(dx + c, out, n);
    });
  }
}

}  // namespace

bool rms_norm_backward(const RmsNormBackwardArgs& args, Parallel& parallel) {
  RmsWork work{&args, nullptr};
  const int64_t runs = runs_of(args.x.rows), n = args.x.cols;
  if (args.dweight) {
    work.partial =
        static_cast<float*>(parallel.scratch(0, sizeof(float) * static_cast<size_t>(runs * n)));
    if (!work.partial) return false;
  }
  each_run(work, args.x.rows, args.x.size(), rms_run, parallel);
  if (args.dweight) add_partials(work.partial, runs, n, args.dweight);
  return true;
}

void modulated_norm(const ModulatedNormArgs& args, Parallel& parallel) {
  each_run<const ModulatedNormArgs>(args, args.x.rows, args.x.size(), modulated_run, parallel);
}

bool modulated_norm_backward(const ModulatedNormBackwardArgs& args, Parallel& parallel) {
  ModulatedWork work{&args, nullptr, nullptr};
  const int64_t runs = runs_of(args.x.rows), n = args.x.cols;
  if (args.dweight || args.dbias) {
    float* partial =
        static_cast<float*>(parallel.scratch(0, sizeof(float) * static_cast<size_t>(2 * runs * n)));
    if (!partial) return false;
    if (args.dweight) work.dweight = partial;
    if (args.dbias) work.dbias = partial + runs * n;
  }
  each_run(work, args.x.rows, args.x.size(), modulated_backward_run, parallel);
  if (args.dweight) add_partials(work.dweight, runs, n, args.dweight);
  if (args.dbias) add_partials(work.dbias, runs, n, args.dbias);
  return true;
}

bool group_norm_backward(const GroupNormBackwardArgs& args, Parallel& parallel) {
  const int64_t channels = args.x.cols;
  GroupWork work{&args, static_cast<double*>(parallel.scratch(
                            0, sizeof(double) * static_cast<size_t>(2 * args.images * channels)))};
  if (!work.partial) return false;
  parallel.run(args.images * args.groups, group_task, &work);
  for (int64_t c = 0; c < channels; ++c) {
    double weight = 0, bias = 0;
    for (int64_t i = 0; i < args.images; ++i) {
      weight += work.partial[(i * channels + c) * 2];
      bias += work.partial[(i * channels + c) * 2 + 1];
    }
    if (args.dweight) args.dweight[c] += static_cast<float>(weight);
    if (args.dbias) args.dbias[c] += static_cast<float>(bias);
  }
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
