// SigLIP's vision tower and the projector behind it: an image becomes rows of the decoder's input
// (SigLIP 2303.15343; PaliGemma 2407.07726).
#pragma once

#include <vector>

#include "core/backend.h"
#include "core/config.h"
#include "core/memory.h"
#include "core/weights.h"

namespace unifluid {

// The patches of pixels [3, S, S] as rows of `to` [features, 3 * p * p], all on the host; elements
// of a patch in the order of the convolution's weight: channel, row, column.
void extract_patches(const VisionConfig& config, const float* pixels, float* to);

class VisionTower {
 public:
  // `width`: the decoder's hidden size.
  VisionTower(const VisionConfig& config, int64_t width, const Weights& weights, Backend& backend);

  // pixels: host, normalized RGB [3, S, S] -> out [features, hidden]: the last hidden states,
  // behind the last norm.
  void features(const float* pixels, Workspace& workspace, const Tensor& out) const;
  // The same through the projector: out [features, width], unscaled.
  void forward(const float* pixels, Workspace& workspace, const Tensor& out) const;

 private:
  struct Linear {
    Tensor weight;
    const float* bias;
  };
  struct Norm {
    const float *weight, *bias;
  };
  struct Layer {
    Norm norm1, norm2;
    Linear q, k, v, out, fc1, fc2;
  };

  VisionConfig config_;
  Backend& backend_;
  Linear patch_;      // [hidden, 3 * p * p]: the patch convolution, whose windows do not overlap
  Tensor positions_;  // [features, hidden]
  std::vector<Layer> layers_;
  Norm final_;
  Linear projector_;  // [width, hidden]
};

}  // namespace unifluid
