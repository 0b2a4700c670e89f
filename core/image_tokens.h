// Continuous image tokens: how they enter the decoder, and the diffusion head that writes them
// (spec sections 3, 5 and 6; Fluid 2410.13863, MAR 2406.11838).
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/backend.h"
#include "core/config.h"
#include "core/weights.h"

namespace unifluid {

// Latents [c, grid * p, grid * p] to tokens [grid * grid, c * p * p]: cells in raster order, values
// in the order channel, patch row, patch column. All host, packed.
std::vector<float> patchify(const float* latents, int64_t channels, int64_t rows, int64_t columns,
                            int64_t patch);
std::vector<float> unpatchify(const float* tokens, int64_t channels, int64_t rows, int64_t columns,
                              int64_t patch);

class ImageTokens {
 public:
  // `width`: the decoder's hidden size.
  ImageTokens(const ImageConfig& config, int64_t width, const Weights& weights, Backend& backend);
  ImageTokens(const ImageTokens&) = delete;
  ImageTokens& operator=(const ImageTokens&) = delete;

  const DiffusionHeadWeights& head() const { return head_; }

  // Input rows of the decoder; out [rows.size(), d].
  void embed(const std::vector<ImageRow>& rows, const Tensor& out) const;

  // Draws tokens with the conditions z [rows, d], all at the same number of sampling steps.
  void sample(const Tensor& z, int64_t steps, const std::vector<DiffusionToken>& tokens);

 private:
  ImageConfig config_;
  Backend& backend_;
  Tensor in_;
  const float* in_bias_;
  Tensor position_, next_position_;
  const float* begin_;
  DiffusionHeadWeights head_{};
  std::vector<DiffusionHeadWeights::Block> blocks_;
  std::map<int64_t, std::vector<DiffusionStep>> schedules_;  // by number of steps
};

}  // namespace unifluid
