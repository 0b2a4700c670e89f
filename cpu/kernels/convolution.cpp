// Convolution on channels-last images as an implicit matrix product: the windows of a run of output
// pixels are gathered into rows [kernel * kernel * in], which the matrix product takes as its x.
// Padding, stride and enlargement are resolved in the gather; nothing of the size of the image is
// made.
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/matmul.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

// Gathered windows of one task, at most. They may outgrow the second-level cache: each value that
// comes back from the third is used for a whole block of outputs, while fewer pixels a task would
// read the weights more often.
constexpr int64_t kGatheredBytes = int64_t{1} << 21;

struct Plan {
  const ConvolutionArgs* args;
  Products products;
  Parallel* parallel;
  int64_t out_width;
  int64_t window;                 // kernel * kernel * in
  int64_t pixels;                 // output pixels of a task, at most kBlockRows
  int64_t output_parts, outputs;  // parts the output channels are cut into, and channels of a part
  size_t gathered_bytes;
  bool in_place;  // 1x1: the rows of x are the windows
};

UNIFLUID_INLINE void copy(float* to, const float* from, int64_t count) {
  __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

// The window of one output pixel, [kernel][kernel][in].
void gather(const Plan& plan, int64_t pixel, float* to) {
  const Tensor& image = plan.args->x;
  const ConvolutionGeometry& g = plan.args->geometry;
  const int64_t in = image.cols, height = g.height * g.upsample, width = g.width * g.upsample;
  const int64_t top = pixel / plan.out_width * g.stride - g.pad_before;
  const int64_t left = pixel % plan.out_width * g.stride - g.pad_before;
  const float* x = static_cast<const float*>(image.data);
  for (int64_t ky = 0; ky < g.kernel; ++ky) {
    const int64_t y = top + ky;
    if (y < 0 || y >= height) {
      __builtin_memset(to, 0, static_cast<size_t>(g.kernel * in) * sizeof(float));
      to += g.kernel * in;
      continue;
    }
    const float* line = x + y / g.upsample * g.width * image.stride;
    if (g.upsample == 1 && image.stride == in && left >= 0 && left + g.kernel <= width) {
      copy(to, line + left * in, g.kernel * in);
      to += g.kernel * in;
      continue;
    }
    for (int64_t kx = 0; kx < g.kernel; ++kx, to += in) {
      const int64_t at = left + kx;
      if (at < 0 || at >= width)
        __builtin_memset(to, 0, static_cast<size_t>(in) * sizeof(float));
      else
        copy(to, line + at / g.upsample * image.stride, in);
    }
  }
}

void convolution_task(void* context, int64_t index, int thread) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const ConvolutionArgs& a = *plan.args;
  const int64_t first = index / plan.output_parts * plan.pixels;
  const int64_t rows = smaller(plan.pixels, a.out.rows - first);
  const int64_t begin = index % plan.output_parts * plan.outputs;
  const int64_t end = smaller(begin + plan.outputs, a.out.cols);

  char* memory =
      static_cast<char*>(plan.parallel->scratch(thread, plan.gathered_bytes + kMatmulScratch));
  const float* windows = static_cast<const float*>(a.x.data) + first * a.x.stride;
  int64_t stride = a.x.stride;
  if (!plan.in_place) {
    float* gathered = reinterpret_cast<float*>(memory + kMatmulScratch);
    for (int64_t i = 0; i < rows; ++i) gather(plan, first + i, gathered + i * plan.window);
    windows = gathered;
    stride = plan.window;
  }
  alignas(64) float product[kBlockRows * kBlockOutputs];
  for (int64_t o = begin; o < end; o += kBlockOutputs) {
    const int64_t count = smaller(kBlockOutputs, end - o);
    matmul(windows, stride, rows, a.weight, plan.products, o, count, product, kBlockOutputs,
           memory);
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = product + i * kBlockOutputs;
      float* to = static_cast<float*>(a.out.data) + (first + i) * a.out.stride + o;
      const float* residual = a.residual ? static_cast<const float*>(a.residual.data) +
                                               (first + i) * a.residual.stride + o
                                         : nullptr;
      for (int64_t c = 0; c < count; c += kLanes) {
        const int n = static_cast<int>(smaller(kLanes, count - c));
        Vec v = add(load_n(from + c, n), load_n(a.bias + o + c, n));
        if (residual) v = add(load_n(residual + c, n), v);
        store_n(to + c, v, n);
      }
    }
  }
}

}  // namespace

bool convolution(const ConvolutionArgs& args, Products products, Parallel& parallel) {
  Plan plan{};
  plan.args = &args;
  plan.products = products;
  plan.parallel = &parallel;
  plan.window = args.weight.cols;
  const ConvolutionGeometry& g = args.geometry;
  plan.out_width = g.out_width();
  plan.in_place =
      g.kernel == 1 && g.stride == 1 && g.upsample == 1 && g.pad_before == 0 && g.pad_after == 0;
  const int64_t row_bytes = plan.window * static_cast<int64_t>(sizeof(float));
  int64_t pixels = kBlockRows;
  while (!plan.in_place && pixels > 16 && pixels * row_bytes > kGatheredBytes) pixels /= 2;
  plan.pixels = pixels;
  plan.gathered_bytes = plan.in_place ? 0 : static_cast<size_t>(pixels * row_bytes);

  // Small images are cut along the output channels as well, or threads would have nothing to do.
  const int64_t runs = divide_up(args.out.rows, pixels);
  const int64_t blocks = divide_up(args.out.cols, kBlockOutputs);
  plan.output_parts = smaller(blocks, divide_up(2 * parallel.threads(), runs));
  plan.outputs = divide_up(blocks, plan.output_parts) * kBlockOutputs;
  plan.output_parts = divide_up(args.out.cols, plan.outputs);

  for (int t = 0; t < parallel.threads(); ++t)
    if (!parallel.scratch(t, plan.gathered_bytes + kMatmulScratch)) return false;
  parallel.run(runs * plan.output_parts, convolution_task, &plan);
  return true;
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
