#include "core/image_resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"

namespace unifluid {
namespace {

constexpr int64_t kChannels = 3;

// Coefficients are multiples of 2^-22: 32 bits less 8 of the pixel and 2 for filters that
// overshoot. The sum of a lanczos filter's magnitudes stays below 1.5, so that 255 times it fits
// the sign too.
constexpr int kPrecisionBits = 32 - 8 - 2;

double bilinear(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= 3.14159265358979323846;
  return std::sin(x) / x;
}

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

struct Kernel {
  double (*value)(double);
  double support;
};

Kernel kernel_of(ResizeFilter filter) {
  switch (filter) {
    case ResizeFilter::bilinear:
      return {bilinear, 1.0};
    case ResizeFilter::bicubic:
      return {bicubic, 2.0};
    case ResizeFilter::lanczos:
      return {lanczos, 3.0};
    default:
      throw Error(error_code::kInternal, "the nearest filter has no kernel");
  }
}

// For each place along one axis of the target: the source places it is made of, and their weights.
struct Taps {
  struct Run {
    int64_t first, count;
  };
  std::vector<Run> runs;      // [target]
  std::vector<int32_t> bits;  // [target, stride]: weight * 2^kPrecisionBits
  int64_t stride;
};

Taps make_taps(int64_t from, int64_t to, const Kernel& kernel) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double filter_scale = std::max(scale, 1.0);
  const double support = kernel.support * filter_scale;
  const double inverse = 1.0 / filter_scale;

  Taps taps;
  taps.stride = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  taps.runs.resize(static_cast<size_t>(to));
  taps.bits.resize(static_cast<size_t>(to * taps.stride));
  std::vector<double> weights(static_cast<size_t>(taps.stride));
  for (int64_t i = 0; i < to; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t end = std::min(static_cast<int64_t>(center + support + 0.5), from);
    double sum = 0.0;
    for (int64_t j = first; j < end; ++j) {
      const double weight = kernel.value((static_cast<double>(j) - center + 0.5) * inverse);
      weights[static_cast<size_t>(j - first)] = weight;
      sum += weight;
    }
    for (int64_t j = first; j < end; ++j) {
      const double weight = weights[static_cast<size_t>(j - first)] / (sum != 0.0 ? sum : 1.0);
      taps.bits[static_cast<size_t>(i * taps.stride + j - first)] =
          static_cast<int32_t>(weight * (1 << kPrecisionBits) + (weight < 0.0 ? -0.5 : 0.5));
    }
    taps.runs[static_cast<size_t>(i)] = {first, end - first};
  }
  return taps;
}

uint8_t to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

constexpr int32_t kHalf = 1 << (kPrecisionBits - 1);

// source [rows, from, 3] -> target [rows, taps, 3]
void resize_horizontally(const uint8_t* source, int64_t from, int64_t rows, const Taps& taps,
                         uint8_t* target) {
  const auto to = static_cast<int64_t>(taps.runs.size());
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* line = source + row * from * kChannels;
    uint8_t* out = target + row * to * kChannels;
    for (int64_t i = 0; i < to; ++i, out += kChannels) {
      const auto [first, count] = taps.runs[static_cast<size_t>(i)];
      const int32_t* bits = &taps.bits[static_cast<size_t>(i * taps.stride)];
      const uint8_t* in = line + first * kChannels;
      int32_t red = kHalf, green = kHalf, blue = kHalf;
      for (int64_t k = 0; k < count; ++k, in += kChannels) {
        red += in[0] * bits[k];
        green += in[1] * bits[k];
        blue += in[2] * bits[k];
      }
      out[0] = to_byte(red);
      out[1] = to_byte(green);
      out[2] = to_byte(blue);
    }
  }
}

// source [*, width, 3] -> target [taps, width, 3]
void resize_vertically(const uint8_t* source, int64_t width, const Taps& taps, uint8_t* target) {
  const int64_t bytes = width * kChannels;
  std::vector<int32_t> sums(static_cast<size_t>(bytes));
  for (size_t i = 0; i < taps.runs.size(); ++i) {
    const auto [first, count] = taps.runs[i];
    const int32_t* bits = &taps.bits[i * static_cast<size_t>(taps.stride)];
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int64_t k = 0; k < count; ++k) {
      const uint8_t* line = source + (first + k) * bytes;
      const int32_t weight = bits[k];
      for (int64_t x = 0; x < bytes; ++x) sums[static_cast<size_t>(x)] += line[x] * weight;
    }
    uint8_t* out = target + static_cast<int64_t>(i) * bytes;
    for (int64_t x = 0; x < bytes; ++x) out[x] = to_byte(sums[static_cast<size_t>(x)]);
  }
}

// The source place under the middle of each target place. The position is a running sum, as in
// Pillow, whose rounding decides where the middle falls on the border of two pixels.
std::vector<int64_t> nearest_places(int64_t from, int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  std::vector<int64_t> places(static_cast<size_t>(to));
  double position = scale * 0.5;
  for (int64_t& place : places) {
    place = std::min(static_cast<int64_t>(position), from - 1);
    position += scale;
  }
  return places;
}

void resize_nearest(const uint8_t* source, int64_t width, int64_t height, uint8_t* target,
                    int64_t to_width, int64_t to_height) {
  const std::vector<int64_t> columns = nearest_places(width, to_width);
  const std::vector<int64_t> rows = nearest_places(height, to_height);
  for (const int64_t row : rows) {
    const uint8_t* line = source + row * width * kChannels;
    for (const int64_t column : columns) {
      std::memcpy(target, line + column * kChannels, kChannels);
      target += kChannels;
    }
  }
}

void require_side(const char* name, int64_t value) {
  if (value < 1 || value > kMaxResizeSide) {
    throw Error(error_code::kInvalidArgument,
                std::string("expected 1 to ") + std::to_string(kMaxResizeSide) +
                    " pixels for the " + name + " of an image but received " +
                    std::to_string(value));
  }
}

}  // namespace

void resize_rgb(const uint8_t* source, int64_t width, int64_t height, uint8_t* target,
                int64_t to_width, int64_t to_height, ResizeFilter filter) {
  require_side("width", width);
  require_side("height", height);
  require_side("new width", to_width);
  require_side("new height", to_height);

  if (filter == ResizeFilter::nearest) {
    return resize_nearest(source, width, height, target, to_width, to_height);
  }
  // An axis that keeps its length keeps its pixels.
  const Kernel kernel = kernel_of(filter);
  if (to_height == height) {
    if (to_width == width) {
      std::memcpy(target, source, static_cast<size_t>(width * height * kChannels));
    } else {
      resize_horizontally(source, width, height, make_taps(width, to_width, kernel), target);
    }
    return;
  }
  const Taps vertical = make_taps(height, to_height, kernel);
  if (to_width == width) return resize_vertically(source, width, vertical, target);

  const Taps horizontal = make_taps(width, to_width, kernel);
  // Columns before rows, as in Pillow, but for what is more than a hundred times as tall as wide
  // and becomes lower (Image.resize): widened first, a tiny file would take gigabytes.
  if (height > 100 * width && to_height < height) {
    std::vector<uint8_t> lowered(static_cast<size_t>(to_height * width * kChannels));
    resize_vertically(source, width, vertical, lowered.data());
    return resize_horizontally(lowered.data(), width, to_height, horizontal, target);
  }
  std::vector<uint8_t> narrowed(static_cast<size_t>(height * to_width * kChannels));
  resize_horizontally(source, width, height, horizontal, narrowed.data());
  resize_vertically(narrowed.data(), to_width, vertical, target);
}

}  // namespace unifluid
