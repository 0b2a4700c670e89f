// The weights of a model in training: float32 masters, gradients, AdamW's moments and the moving
// average, each kind in one piece of the backend's memory. Frozen tensors have weights alone, which
// lie behind the others.
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

enum class ParameterState : uint8_t {
  weights,
  average,
  first_moment,
  second_moment,
  updates,  // one number: how many updates the moments are of
  gradient
};

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
  int64_t updates = 0;     // how often it was updated
  bool reached = false;    // an operation of this step has added to its gradient
  const float* vector() const { return static_cast<const float*>(value.data); }
};

// Tensors that are updated alike and lie one behind the other, with the padding between them.
struct ParameterRun {
  int64_t offset, count;
  bool matrix;
  int64_t updates;  // this one included
};

class Parameters {
 public:
  // Reads all the weights that the configuration has: those of the vision tower, the decoder and
  // the image part, or those of the autoencoder alone. `frozen`: names that are not trained. Throws
  // INVALID_CHECKPOINT where a tensor is missing or of another shape, INVALID_ARGUMENT where a
  // frozen name does not exist or nothing is left to train. Without `training` everything is
  // frozen.
  Parameters(const ModelConfig& config, bool autoencoder, const Weights& weights,
             const std::vector<std::string>& frozen, bool average, bool training, Backend& backend);

  // Throws INVALID_ARGUMENT where there is none.
  const Parameter& at(const std::string& name) const;
  // The adjacent tensors of the group starting at `first`, viewed as one: the weights of several
  // layers with the same input, [sum of rows, cols], or their biases, [1, sum of cols]. Null where
  // some of them are frozen, or padding lies between them.
  const Parameter* joined(const std::string& first) const;

  // All of a kind, `trained_size()` elements that are trained; behind them of the weights the rest.
  float* piece(ParameterState what) const;
  int64_t trained_size() const { return trained_size_; }
  bool has(ParameterState what) const { return piece(what) != nullptr; }
  void zero_gradients();
  // An operation has added to the gradient of this tensor, or of those that `joined` views as one.
  void reach(const Parameter& parameter);
  // Counts an update of every tensor that was reached since `zero_gradients`, and gives them all.
  // Padding is zeros of all kinds.
  std::vector<ParameterRun> count_updates();

  // One tensor in the checkpoint's layout. The moments of a frozen one read as zeros, its average
  // as its weights; writing them throws INVALID_ARGUMENT.
  std::vector<float> read(const std::string& name, ParameterState what) const;
  void write(const std::string& name, ParameterState what, const std::vector<float>& values);

  // Exchanges weights and their average, for evaluation.
  void swap_average();

 private:
  // Gives every tensor that is trained, or that is not, its place; the tensors of a group come one
  // behind the other.
  void place(const std::vector<std::vector<std::string>>& groups, bool trained);
  void join(const std::vector<std::string>& group);
  Tensor tensor(const Parameter& p, ParameterState what) const;
  // Throws INVALID_ARGUMENT where a kind is not kept.
  void expect(ParameterState what) const;

  Backend& backend_;
  std::vector<Parameter> all_;
  std::unordered_map<std::string, size_t> index_;
  std::unordered_map<std::string, Parameter> joined_;
  std::vector<Parameter*> trained_;  // by offset
  int64_t size_ = 0, trained_size_ = 0;
  bool averaged_ = false;  // values are the average's
  Block values_, gradients_, first_, second_, average_;
};

}  // namespace unifluid
