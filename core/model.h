// All parts of one checkpoint, loaded onto one backend.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/autoencoder.h"
#include "core/backend.h"
#include "core/config.h"
#include "core/decoder.h"
#include "core/image_tokens.h"
#include "core/vision.h"
#include "core/weights.h"

namespace unifluid {

// Throws INVALID_CHECKPOINT where sizes do not fit each other.
void check_config(const ModelConfig& config);

// Parts that a checkpoint lacks are empty.
struct Model {
  // Maps the files, checks every tensor that the configuration needs. Throws INVALID_CHECKPOINT and
  // INSUFFICIENT_MEMORY.
  Model(const ModelConfig& config, const std::vector<std::string>& files,
        std::vector<TensorRecord> records, std::unique_ptr<Backend> backend);

  ModelConfig config;
  std::unique_ptr<Backend> backend;
  Weights weights;  // keeps the files mapped
  std::optional<Decoder> decoder;
  std::optional<VisionTower> vision;
  std::optional<ImageTokens> image;
  std::optional<Autoencoder> vae;
};

}  // namespace unifluid
