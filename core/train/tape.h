// Reverse-mode differentiation over the backend's operations: each forward operation computes its
// result at once and notes how its gradient goes back.
//
// Values and gradients are float32 tensors of a workspace, in a scope that the caller keeps open
// for as long as the tape lives. Values that only linear layers take are kept as those round them,
// where the backend can: half the memory, and nothing to round again on the way back. A gradient
// comes into being with the first operation that contributes to it.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_set>
#include <vector>

#include "core/backend.h"
#include "core/memory.h"
#include "core/train/parameters.h"
#include "core/training_backend.h"

namespace unifluid {

// A value on the tape. -1: none.
using Var = int32_t;
inline constexpr Var kNone = -1;

// Rows taken from `table` or from `parameter`, one of them given, and added to an output.
struct GatherPart {
  Var table = kNone;
  const Parameter* parameter = nullptr;
  std::vector<int32_t> index;  // [rows of the output]; -1: nothing
  float scale = 1;
};

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale, soft_cap;
  int64_t window;
  float rope_theta;
  int64_t first_position;
};

class Tape {
 public:
  // `bf16`: matrix products round their operands to bfloat16. `gradients`: else losses only.
  Tape(Backend& backend, Workspace& workspace, bool bf16, bool gradients)
      : backend_(backend),
        ops_(*backend.training()),
        workspace_(workspace),
        bf16_(bf16),
        gradients_(gradients) {}

  // A value without a gradient, for the caller to fill.
  Var input(int64_t rows, int64_t cols);
  const Tensor& value(Var v) const { return nodes_[static_cast<size_t>(v)].value; }

  // x [m, k] -> residual + x weight^T + bias, [m, n]
  Var linear(Var x, const Parameter& weight, const Parameter* bias, Var residual = kNone);
  // A view of columns [first, first + count) of x. The views must partition x, which has no other
  // consumer; either each view is consumed by exactly one operation, or none is.
  Var columns(Var x, int64_t first, int64_t count);
  // Its only use, and that of `gated` and of norms but rms_norm, are linear layers. x has no other
  // use if it comes from a linear layer without a residual.
  Var activation(Var x, Activation activation);
  // activation(gate) * up, which have no other use
  Var gated(Var gate, Var up, Activation activation);
  // residual + rms_norm(x); with a residual x has no other use
  Var rms_norm(Var x, const Parameter& weight, float eps, Var residual = kNone);
  // rms_norm(x) for linear layers only.
  Var operand_norm(Var x, const Parameter& weight, float eps);
  Var layer_norm(Var x, const Parameter* weight, const Parameter* bias, float eps) {
    return modulated_norm(x, weight, bias, kNone, eps);
  }
  // Layer norm, shifted and scaled by the first and second x.cols columns of `modulation`. Each
  // column of a modulation must be used by one operation only.
  Var modulated_norm(Var x, const Parameter* weight, const Parameter* bias, Var modulation,
                     float eps);
  // x + gate * y, the gate being the third x.cols columns of `modulation`; y has no other use
  Var gated_add(Var x, Var modulation, Var y);
  // Every span is a whole sequence.
  Var attention(Var q, Var k, Var v, const AttentionShape& shape,
                const std::vector<AttentionSpan>& spans);
  Var gather(int64_t rows, int64_t cols, std::vector<GatherPart> parts);
  // [images * height * width, in] -> [images * out height * out width, out]
  Var convolution(Var x, int64_t images, const ConvolutionGeometry& geometry,
                  const Parameter& weight, const Parameter& bias, Var residual = kNone);
  Var group_norm(Var x, int64_t images, int64_t groups, const Parameter& weight,
                 const Parameter& bias, float eps, bool silu);

  // Losses. `scale` is the factor of each row's loss in what is minimized; losses get one number a
  // row.
  // Cross-entropy of hidden [m, d] through weight [vocab, d]. Logits exist for some rows at a time.
  // `likeliest`: where only losses are asked for, the id of each row's largest logit.
  void cross_entropy(Var hidden, const Parameter& weight, const std::vector<int32_t>& targets,
                     float cap, float scale, std::vector<float>* losses,
                     std::vector<int32_t>* likeliest);
  void diffusion_loss(Var output, bool flow, const Tensor& x0, const std::vector<int32_t>& index,
                      const std::vector<TrainingStep>& steps, const Tensor& epsilon, float scale,
                      std::vector<float>* losses);
  // A loss whose gradient the caller computed, [rows, cols] of v in host memory.
  void host_gradient(Var v, const std::vector<float>& gradient);
  // A small operation on the host: `out` [rows, cols] was computed from x, and `back` turns its
  // gradient into x's.
  Var host(Var x, int64_t rows, int64_t cols, const std::vector<float>& out,
           std::function<std::vector<float>(const std::vector<float>& dout)> back);

  // body(x), which is [rows, x's columns], keeping none of what lies between: it is computed again
  // when the gradient goes back. body may use no other value of the tape.
  Var recomputed(Var x, int64_t rows, std::function<Var(Var)> body);

  // Sends gradients back through everything noted.
  void backward() { backward_to(0); }
  // The parameters whose gradients were added to.
  const std::unordered_set<const Parameter*>& reached() const { return reached_; }

 private:
  struct Node {
    Tensor value, gradient;
    bool needs = false;      // something before it is trained
    bool written = false;    // the gradient holds something
    bool projected = false;  // the gradient goes to a linear layer only
    Var whole = kNone;       // of `columns`: whose, and which is the first
    int64_t first = 0;
    std::function<void(const Tensor& gradient)> back;
  };

  Node& node(Var v) { return nodes_[static_cast<size_t>(v)]; }
  bool needs(Var v) const { return v != kNone && nodes_[static_cast<size_t>(v)].needs; }
  Var push(const Tensor& value, bool needs, std::function<void(const Tensor&)> back);
  // For a value that only linear layers take.
  Tensor operand(int64_t rows, int64_t cols);
  Var norm(Var x, const Parameter& weight, float eps, Var residual, const Tensor& out);
  // The gradient's memory, whatever it holds. `rounded`: in the form of an operand, if a linear
  // layer is all that takes it.
  const Tensor& gradient_memory(Var v, bool rounded = false);
  // The gradient to write to, and whether to add to what is there.
  Tensor gradient(Var v, bool* accumulate, bool rounded = false);
  // The same of a value that has one use, whose operation may write it rounded.
  Tensor only_gradient(Var v) {
    bool accumulate;
    return gradient(v, &accumulate, true);
  }
  // The same, holding zeros where nothing was.
  Tensor zeroed_gradient(Var v);
  // dout is v's gradient or a part of it; it may be kept, so it must not be used any more.
  void pass(Var v, const Tensor& dout);
  void backward_to(size_t first);
  // Where a parameter's gradient is added up: empty where it is not trained, or is none.
  Tensor gradient_of(const Parameter* parameter);
  float* vector_gradient_of(const Parameter* parameter) {
    return static_cast<float*>(gradient_of(parameter).data);
  }

  Backend& backend_;
  TrainingBackend& ops_;
  Workspace& workspace_;
  const bool bf16_;
  const bool gradients_;
  std::vector<Node> nodes_;
  std::unordered_set<const Parameter*> reached_;
};

}  // namespace unifluid
