// The frequencies of rotary embedding, on the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace unifluid::cuda {

// As transformers has them, and the CPU: powers in float64, the rest in float32. [head_dim / 2]
inline std::vector<float> rope_frequencies(float theta, int64_t head_dim) {
  std::vector<float> out(static_cast<size_t>(head_dim / 2));
  const float d = static_cast<float>(head_dim);
  for (size_t c = 0; c < out.size(); ++c)
    out[c] =
        1.0f / static_cast<float>(std::pow(static_cast<double>(theta),
                                           static_cast<double>(static_cast<float>(2 * c) / d)));
  return out;
}

}  // namespace unifluid::cuda
