// Rows taken from tables and gradients added back to them, and patches of images as rows.
#include "cpu/kernels/rows.h"
#include "cpu/kernels/trigonometry.h"

namespace unifluid::cpu::UNIFLUID_ISA {
namespace {

void gather_run(const GatherRowsArgs& a, int64_t first, int64_t end, int64_t) {
  const Vec scale = set1(a.scale);
  for (int64_t i = first; i < end; ++i) {
    if (a.index[i] < 0) continue;
    const float* from = row_of(a.table, a.index[i]);
    float* out = mutable_row_of(a.out, i);
    each_vector(a.out.cols, [&](int64_t c, int n) {
      store_n(out + c, fma(scale, load_n(from + c, n), load_n(out + c, n)), n);
    });
  }
}

// Each task has its own columns, so that rows are added to one table row in their order.
constexpr int64_t kScatterColumns = 4 * kLanes;

void scatter_task(void* context, int64_t task, int) {
  const ScatterRowsArgs& a = *static_cast<const ScatterRowsArgs*>(context);
  const int64_t first = task * kScatterColumns;
  const int64_t count =
      a.dout.cols - first < kScatterColumns ? a.dout.cols - first : kScatterColumns;
  const Vec scale = set1(a.scale);
  for (int64_t i = 0; i < a.dout.rows; ++i) {
    if (a.index[i] < 0) continue;
    const float* from = row_of(a.dout, i) + first;
    float* to = mutable_row_of(a.dtable, a.index[i]) + first;
    each_vector(count, [&](int64_t c, int n) {
      store_n(to + c, fma(scale, load_n(from + c, n), load_n(to + c, n)), n);
    });
  }
}

void time_features_run(const TimeFeaturesArgs& a, int64_t first, int64_t end, int64_t) {
  for (int64_t i = first; i < end; ++i) time_sinusoid(a.time[i], mutable_row_of(a.out, i));
}

// ---- patches ----

struct PatchWork {
  ConvolutionGeometry geometry;
  Tensor x, rows;
};

// One row of output pixels.
void patches_task(void* context, int64_t task, int) {
  const PatchWork& w = *static_cast<const PatchWork*>(context);
  const ConvolutionGeometry& g = w.geometry;
  const int64_t channels = w.x.cols;
  const int64_t image = task / g.out_height(), y = task % g.out_height();
  for (int64_t x = 0; x < g.out_width(); ++x) {
    float* to = mutable_row_of(w.rows, task * g.out_width() + x);
    for (int64_t ky = 0; ky < g.kernel; ++ky) {
      const int64_t sy = y * g.stride + ky - g.pad_before;
      for (int64_t kx = 0; kx < g.kernel; ++kx, to += channels) {
        const int64_t sx = x * g.stride + kx - g.pad_before;
        if (sy < 0 || sx < 0 || sy >= g.height * g.upsample || sx >= g.width * g.upsample) {
          for (int64_t c = 0; c < channels; ++c) to[c] = 0;
        } else {
          const float* from =
              row_of(w.x, (image * g.height + sy / g.upsample) * g.width + sx / g.upsample);
          __builtin_memcpy(to, from, static_cast<size_t>(channels) * sizeof(float));
        }
      }
    }
  }
}

// One image: its pixels belong to no other.
void patches_backward_task(void* context, int64_t image, int) {
  const PatchWork& w = *static_cast<const PatchWork*>(context);
  const ConvolutionGeometry& g = w.geometry;
  const int64_t channels = w.x.cols;
  int64_t row = image * g.out_height() * g.out_width();
  for (int64_t y = 0; y < g.out_height(); ++y)
    for (int64_t x = 0; x < g.out_width(); ++x, ++row) {
      const float* from = row_of(w.rows, row);
      for (int64_t ky = 0; ky < g.kernel; ++ky) {
        const int64_t sy = y * g.stride + ky - g.pad_before;
        for (int64_t kx = 0; kx < g.kernel; ++kx, from += channels) {
          const int64_t sx = x * g.stride + kx - g.pad_before;
          if (sy < 0 || sx < 0 || sy >= g.height * g.upsample || sx >= g.width * g.upsample)
            continue;
          float* to =
              mutable_row_of(w.x, (image * g.height + sy / g.upsample) * g.width + sx / g.upsample);
          each_vector(channels, [&](int64_t c, int n) {
            store_n(to + c, add(load_n(to + c, n), load_n(from + c, n)), n);
          });
        }
      }
    }
}

}  // namespace

void gather_rows(const GatherRowsArgs& args, Parallel& parallel) {
  each_run<const GatherRowsArgs>(args, args.out.rows, args.out.size(), gather_run, parallel);
}

void scatter_rows(const ScatterRowsArgs& args, Parallel& parallel) {
  ScatterRowsArgs a = args;
  parallel.run((a.dout.cols + kScatterColumns - 1) / kScatterColumns, scatter_task, &a);
}

void time_features(const TimeFeaturesArgs& args, Parallel& parallel) {
  each_run<const TimeFeaturesArgs>(args, args.out.rows, args.out.size(), time_features_run,
                                   parallel);
}

void patches(const PatchesArgs& args, Parallel& parallel) {
  PatchWork work{args.geometry, args.x, args.out};
  parallel.run(args.images * work.geometry.out_height(), patches_task, &work);
}

void patches_backward(const PatchesBackwardArgs& args, Parallel& parallel) {
  PatchWork work{args.geometry, args.dx, args.dout};
  parallel.run(args.images, patches_backward_task, &work);
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
