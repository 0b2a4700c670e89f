// The weights of a model in training: float32 masters, gradients, AdamW's moments and the moving
// average, each kind in one piece of the backend's memory.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/backend.h"
#include "core/config.h"
#include "core/memory.h"
#include "core/weights.h"

namespace unifluid {

enum class ParameterState : uint8_t { weights, average, first_moment, second_moment, gradient };

struct Parameter {
  std::string name;  // canonical, as lib/checkpoint/tensor-names.ts has it
  int64_t rows = 0, cols = 0;
  // Of a convolution: side of its kernel. Such a weight is [out, row, column, in] here and [out,
  // in, row, column] in checkpoints. 0: not a convolution's.
  int64_t kernel = 0;
  bool matrix = false;     // has weight decay
  bool trainable = true;   // else no gradient is computed
  int64_t offset = 0;      // elements from the start of each piece
  Tensor value, gradient;  // gradient: empty where not trainable
  const float* vector() const { return static_cast<const float*>(value.data); }
  float* gradient_vector() const { return static_cast<float*>(gradient.data); }
};

// Trained tensors that lie one behind the other, with the padding between them, and decay alike.
struct ParameterRun {
  int64_t offset, count;
  bool matrix;
};

class Parameters {
 public:
  // Reads all the weights that the configuration has: those of the vision tower, the decoder and
  // the image part, or those of the autoencoder alone. `frozen`: names that are not trained. Throws
  // INVALID_CHECKPOINT where a tensor is missing or of another shape, INVALID_ARGUMENT where a
  // frozen name does not exist or nothing is left to train. Without `training` everything is
  // frozen, and there are neither gradients nor moments.
  Parameters(const ModelConfig& config, bool autoencoder, const Weights& weights,
             const std::vector<std::string>& frozen, bool average, bool training, Backend& backend);

  // Throws INVALID_ARGUMENT where there is none.
  const Parameter& at(const std::string& name) const;
  // The adjacent tensors of the group starting at `first`, viewed as one: the weights of several
  // layers with the same input, [sum of rows, cols], or their biases, [1, sum of cols]. Null where
  // some of them are frozen, or padding lies between them.
  const Parameter* joined(const std::string& first) const;
  // Everything that is trained, for what is done element by element. Padding is zeros of all kinds.
  const std::vector<ParameterRun>& runs() const { return runs_; }
  int64_t size() const { return size_; }

  // All of a kind, `size()` elements.
  float* piece(ParameterState what) const;
  bool has(ParameterState what) const { return piece(what) != nullptr; }
  void zero_gradients();

  // One tensor in the checkpoint's layout.
  std::vector<float> read(const std::string& name, ParameterState what) const;
  void write(const std::string& name, ParameterState what, const std::vector<float>& values);

  // Exchanges weights and their average, for evaluation.
  void swap_average();

 private:
  // Gives every tensor its place; the tensors of a group come one behind the other.
  void place(const std::vector<std::vector<std::string>>& groups);
  void join(const std::vector<std::string>& group);
  void find_runs();
  Tensor tensor(const Parameter& p, ParameterState what) const;
  // Throws INVALID_ARGUMENT where a kind is not kept.
  void expect(ParameterState what) const;

  Backend& backend_;
  std::vector<Parameter> all_;
  std::unordered_map<std::string, size_t> index_;
  std::unordered_map<std::string, Parameter> joined_;
  std::vector<ParameterRun> runs_;
  int64_t size_ = 0;
  Block values_, gradients_, first_, second_, average_;
};

}  // namespace unifluid
