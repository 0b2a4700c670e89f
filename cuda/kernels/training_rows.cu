// Rows taken from tables and gradients added back to them, and patches of images as rows.
#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda/kernels/training_elements.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

// ---- rows of tables ----

struct GatherParams {
  Rows table, out;
  const int32_t* index;
  float scale;
  ElementGrid grid;
};
__global__ void __launch_bounds__(kElementThreads) gather_element(GatherParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const int32_t from = p.index[at.row];
  if (from < 0) return;
  float& out = p.out.at(at.row, at.column);
  out = fmaf(p.scale, p.table.at(from, at.column), out);
}

// The rows that go to one row of the table: `rows[first .. end)`.
struct Target {
  int32_t row, first, end;
};
struct ScatterParams {
  Rows dout, dtable;
  const Target* targets;
  const int32_t* rows;
  float scale;
  ElementGrid grid;  // of targets
};
__global__ void __launch_bounds__(kElementThreads) scatter_element(ScatterParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const Target target = p.targets[at.row];
  float& to = p.dtable.at(target.row, at.column);
  float total = to;
  for (int32_t i = target.first; i < target.end; ++i)
    total = fmaf(p.scale, p.dout.at(p.rows[i], at.column), total);
  to = total;
}

// ---- patches ----

struct PatchParams {
  Rows image, patches;
  int32_t height, width, upsample, kernel, stride, pad, channels;
  int32_t out_height, out_width;
  ElementGrid grid;
};

__global__ void __launch_bounds__(kElementThreads) patch_element(PatchParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const int tap = static_cast<int>(at.column) / p.channels;
  const int channel = static_cast<int>(at.column) % p.channels;
  const int64_t line = at.row / p.out_width;
  const int x = static_cast<int>(at.row % p.out_width) * p.stride + tap % p.kernel - p.pad;
  const int y = static_cast<int>(line % p.out_height) * p.stride + tap / p.kernel - p.pad;
  const bool inside = x >= 0 && y >= 0 && x < p.width * p.upsample && y < p.height * p.upsample;
  const int64_t image = line / p.out_height;
  const int64_t from = (image * p.height + y / p.upsample) * p.width + x / p.upsample;
  p.patches.at(at.row, at.column) = inside ? p.image.at(from, channel) : 0.0f;
}

// A thread gathers what all patches that its pixel is part of have for one of its channels, so that
// the order of the sum is fixed.
__global__ void __launch_bounds__(kElementThreads) patch_backward_element(PatchParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const int64_t line = at.row / p.width, image = line / p.height;
  const int x = static_cast<int>(at.row % p.width), y = static_cast<int>(line % p.height);
  float total = 0;
  for (int up_y = y * p.upsample; up_y < (y + 1) * p.upsample; ++up_y)
    for (int ky = 0; ky < p.kernel; ++ky) {
      const int offset_y = up_y + p.pad - ky, out_y = offset_y / p.stride;
      if (offset_y < 0 || offset_y % p.stride != 0 || out_y >= p.out_height) continue;
      for (int up_x = x * p.upsample; up_x < (x + 1) * p.upsample; ++up_x)
        for (int kx = 0; kx < p.kernel; ++kx) {
          const int offset_x = up_x + p.pad - kx, out_x = offset_x / p.stride;
          if (offset_x < 0 || offset_x % p.stride != 0 || out_x >= p.out_width) continue;
          const int64_t row = (image * p.out_height + out_y) * p.out_width + out_x;
          total += p.patches.at(row, int64_t{ky * p.kernel + kx} * p.channels + at.column);
        }
    }
  p.image.at(at.row, at.column) += total;
}

PatchParams patch_params(const ConvolutionGeometry& g, const Tensor& image, const Tensor& patches) {
  PatchParams p{};
  p.image = image;
  p.patches = patches;
  p.height = static_cast<int32_t>(g.height);
  p.width = static_cast<int32_t>(g.width);
  p.upsample = static_cast<int32_t>(g.upsample);
  p.kernel = static_cast<int32_t>(g.kernel);
  p.stride = static_cast<int32_t>(g.stride);
  p.pad = static_cast<int32_t>(g.pad_before);
  p.channels = static_cast<int32_t>(image.cols);
  p.out_height = static_cast<int32_t>(g.out_height());
  p.out_width = static_cast<int32_t>(g.out_width());
  return p;
}

}  // namespace

void gather_rows(Queue& queue, const GatherRowsArgs& args) {
  if (args.out.size() == 0) return;
  GatherParams p{};
  p.index = queue.stage(args.index, static_cast<size_t>(args.out.rows));
  p.table = args.table;
  p.out = args.out;
  p.scale = args.scale;
  p.grid = ElementGrid(args.out.rows, args.out.cols);
  launch_elements(queue, gather_element, p.grid, p);
}

void scatter_rows(Queue& queue, const ScatterRowsArgs& args) {
  if (args.dout.size() == 0) return;
  // Rows by where they go, each target's in their order.
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < args.dout.rows; ++i)
    if (args.index[i] >= 0) rows.push_back(static_cast<int32_t>(i));
  std::stable_sort(rows.begin(), rows.end(),
                   [&](int32_t a, int32_t b) { return args.index[a] < args.index[b]; });
  std::vector<Target> targets;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t row = args.index[rows[i]];
    if (targets.empty() || targets.back().row != row)
      targets.push_back({row, static_cast<int32_t>(i), 0});
    targets.back().end = static_cast<int32_t>(i) + 1;
  }
  if (targets.empty()) return;
  ScatterParams p{};
  p.targets = queue.stage(targets.data(), targets.size());
  p.rows = queue.stage(rows.data(), rows.size());
  p.dout = args.dout;
  p.dtable = args.dtable;
  p.scale = args.scale;
  p.grid = ElementGrid(static_cast<int64_t>(targets.size()), args.dout.cols);
  launch_elements(queue, scatter_element, p.grid, p);
}

void patches(Queue& queue, const PatchesArgs& args) {
  PatchParams p = patch_params(args.geometry, args.x, args.out);
  p.grid = ElementGrid(args.out.rows, args.out.cols);
  launch_elements(queue, patch_element, p.grid, p);
}

void patches_backward(Queue& queue, const PatchesBackwardArgs& args) {
  PatchParams p = patch_params(args.geometry, args.dx, args.dout);
  p.grid = ElementGrid(args.dx.rows, args.dx.cols);
  launch_elements(queue, patch_backward_element, p.grid, p);
}

}  // namespace unifluid::cuda
