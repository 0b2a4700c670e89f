#include "core/train/tape.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "core/error.h"

namespace unifluid {

namespace {

// Rows of logits that exist at a time: this many elements. For every part of them the whole matrix
// of logits is read, and its gradient added to; on a device of its own there is room for more.
constexpr int64_t kLogits = int64_t{1} << 20, kDeviceLogits = int64_t{1} << 26;
// Whose small arrays go to a device at once.
constexpr int64_t kMostLogitRows = int64_t{1} << 15;

bool trains(const Parameter* p) { return p && p->trainable; }
const float* vector_of(const Parameter* p) { return p ? p->vector() : nullptr; }

}  // namespace

// ---- the tape ----

Var Tape::push(const Tensor& value, bool needs, std::function<void(const Tensor&)> back) {
  Node n;
  n.value = value;
  n.needs = needs && gradients_;
  if (n.needs) n.back = std::move(back);
  nodes_.push_back(std::move(n));
  return static_cast<Var>(nodes_.size() - 1);
}

Var Tape::input(int64_t rows, int64_t cols) {
  return push(workspace_.tensor(rows, cols), false, nullptr);
}

Tensor Tape::operand(int64_t rows, int64_t cols) {
  if (!bf16_ || !ops_.takes_rounded()) return workspace_.tensor(rows, cols);
  return workspace_.tensor(rows, (cols + 7) / 8 * 8, DType::bf16).columns(0, cols);
}

const Tensor& Tape::gradient_memory(Var v, bool rounded) {
  Node& n = node(v);
  if (n.gradient || n.value.rows == 0) return n.gradient;
  if (n.whole != kNone)
    n.gradient = gradient_memory(n.whole, rounded).columns(n.first, n.value.cols);
  else if (rounded && n.projected)
    n.gradient = operand(n.value.rows, n.value.cols);
  else
    n.gradient = workspace_.tensor(n.value.rows, n.value.cols);
  return n.gradient;
}

Tensor Tape::gradient(Var v, bool* accumulate, bool rounded) {
  const Tensor memory = gradient_memory(v, rounded);
  Node& n = node(v);
  *accumulate = n.written;
  n.written = true;
  if (n.whole != kNone) node(n.whole).written = true;
  return memory;
}

Tensor Tape::gradient_of(const Parameter* parameter) {
  if (!trains(parameter)) return Tensor();
  reached_.insert(parameter);
  return parameter->gradient;
}

Tensor Tape::zeroed_gradient(Var v) {
  bool accumulate;
  const Tensor g = gradient(v, &accumulate);
  if (!accumulate) ops_.fill(g, 0);
  return g;
}

void Tape::pass(Var v, const Tensor& dout) {
  if (!needs(v)) return;
  Node& n = node(v);
  if (!n.gradient && n.whole == kNone) {
    n.gradient = dout;
    n.written = true;
    return;
  }
  bool accumulate;
  const Tensor to = gradient(v, &accumulate);
  if (accumulate)
    ops_.add({dout, to});
  else
    backend_.copy(dout, to);
}

void Tape::backward_to(size_t first) {
  for (size_t i = nodes_.size(); i-- > first;) {
    if (!nodes_[i].back || !nodes_[i].written) continue;
    // Copies: what is computed again grows the list.
    const auto back = std::move(nodes_[i].back);
    const Tensor dout = nodes_[i].gradient;
    back(dout);
  }
}

Var Tape::recomputed(Var x, int64_t rows, std::function<Var(Var)> body) {
  const Tensor out = workspace_.tensor(rows, value(x).cols);
  const size_t mark = nodes_.size();
  bool any;
  {
    Workspace::Scope scope(workspace_);
    const Var y = body(x);
    backend_.copy(value(y), out);
    any = needs(y);
    nodes_.resize(mark);
  }
  return push(out, any, [this, x, body = std::move(body)](const Tensor& dout) {
    // x's gradient must outlive what is made here.
    if (needs(x)) gradient_memory(x);
    const size_t first = nodes_.size();
    Workspace::Scope scope(workspace_);
    const Var y = body(x);
    pass(y, dout);
    backward_to(first);
    nodes_.resize(first);
  });
}

// ---- operations ----

Var Tape::linear(Var x, const Parameter& weight, const Parameter* bias, Var residual) {
  const Tensor in = value(x);
  const Tensor out = workspace_.tensor(in.rows, weight.rows);
  if (residual != kNone) backend_.copy(value(residual), out);
  ops_.gemm({.a = in,
             .b = weight.value,
             .transpose_b = true,
             .bias = vector_of(bias),
             .accumulate = residual != kNone,
             .bf16 = bf16_,
             .out = out});
  const Parameter* w = &weight;
  const Var v = push(out, needs(x) || needs(residual) || w->trainable || trains(bias),
                     [=, this](const Tensor& dout) {
                       bool accumulate = false;
                       const Tensor dx = needs(x) ? gradient(x, &accumulate) : Tensor();
                       ops_.linear_backward({.dout = dout,
                                             .x = value(x),
                                             .weight = w->value,
                                             .bf16 = bf16_,
                                             .dweight = gradient_of(w),
                                             .dbias = vector_gradient_of(bias),
                                             .accumulate = accumulate,
                                             .dx = dx});
                       pass(residual, dout);
                     });
  node(v).projected = residual == kNone;
  return v;
}

Var Tape::columns(Var x, int64_t first, int64_t count) {
  const Var v = push(value(x).columns(first, count), needs(x), nullptr);
  node(v).whole = x;
  node(v).first = first;
  return v;
}

Var Tape::activation(Var x, Activation activation) {
  const Tensor in = value(x), out = operand(in.rows, in.cols);
  ops_.activation({in, activation, out});
  return push(out, needs(x), [=, this](const Tensor& dout) {
    bool accumulate;
    const Tensor dx = gradient(x, &accumulate, true);
    ops_.activation_backward({value(x), activation, dout, accumulate, dx});
  });
}

Var Tape::gated(Var gate, Var up, Activation activation) {
  const Tensor in = value(gate), out = operand(in.rows, in.cols);
  ops_.gated({in, value(up), activation, out});
  // Gate and up come from linear layers and have no other use. Either may be frozen.
  return push(out, needs(gate) || needs(up), [=, this](const Tensor& dout) {
    const Tensor dgate = only_gradient(gate), dup = only_gradient(up);
    ops_.gated_backward({value(gate), value(up), activation, dout, dgate, dup});
  });
}

Var Tape::rms_norm(Var x, const Parameter& weight, float eps, Var residual) {
  return norm(x, weight, eps, residual, workspace_.tensor(value(x).rows, value(x).cols));
}

Var Tape::operand_norm(Var x, const Parameter& weight, float eps) {
  return norm(x, weight, eps, kNone, operand(value(x).rows, value(x).cols));
}

Var Tape::norm(Var x, const Parameter& weight, float eps, Var residual, const Tensor& out) {
  backend_.rms_norm(
      {value(x), weight.vector(), eps, residual == kNone ? Tensor() : value(residual), out});
  const Parameter* w = &weight;
  return push(out, needs(x) || needs(residual) || w->trainable, [=, this](const Tensor& dout) {
    bool accumulate = false;
    // What is added to a residual stream has no other use.
    const Tensor dx = needs(x) ? gradient(x, &accumulate, residual != kNone)
                               : workspace_.tensor(dout.rows, dout.cols);
    ops_.rms_norm_backward(
        {value(x), w->vector(), eps, dout, accumulate, dx, vector_gradient_of(w)});
    pass(residual, dout);
  });
}

Var Tape::modulated_norm(Var x, const Parameter* weight, const Parameter* bias, Var modulation,
                         float eps) {
  const Tensor in = value(x), out = operand(in.rows, in.cols);
  const int64_t n = in.cols;
  Tensor shift, scale;
  if (modulation != kNone) {
    shift = value(modulation).columns(0, n);
    scale = value(modulation).columns(n, n);
  }
  ops_.modulated_norm({in, vector_of(weight), vector_of(bias), shift, scale, eps, out});
  return push(
      out, needs(x) || needs(modulation) || trains(weight) || trains(bias),
      [=, this](const Tensor& dout) {
        Tensor dshift, dscale;
        if (needs(modulation)) {
          const Tensor g = only_gradient(modulation);
          dshift = g.columns(0, n);
          dscale = g.columns(n, n);
        }
        bool accumulate = false;
        const Tensor dx =
            needs(x) ? gradient(x, &accumulate) : workspace_.tensor(dout.rows, dout.cols);
        ops_.modulated_norm_backward({value(x), vector_of(weight), vector_of(bias), shift, scale,
                                      eps, dout, accumulate, dx, vector_gradient_of(weight),
                                      vector_gradient_of(bias), dshift, dscale});
      });
}

Var Tape::gated_add(Var x, Var modulation, Var y) {
  const Tensor in = value(x), out = workspace_.tensor(in.rows, in.cols);
  const int64_t n = in.cols;
  const Tensor gate = value(modulation).columns(2 * n, n);
  ops_.gated_add({in, gate, value(y), out});
  return push(out, needs(x) || needs(modulation) || needs(y), [=, this](const Tensor& dout) {
    const Tensor dgate = needs(modulation) ? only_gradient(modulation).columns(2 * n, n)
                                           : workspace_.tensor(dout.rows, n);
    const Tensor dy = needs(y) ? only_gradient(y) : workspace_.tensor(dout.rows, n);
    ops_.gated_add_backward({gate, value(y), dout, dgate, dy});
    pass(x, dout);
  });
}

Var Tape::attention(Var q, Var k, Var v, const AttentionShape& shape,
                    const std::vector<AttentionSpan>& spans) {
  const Tensor out = workspace_.tensor(value(q).rows, value(q).cols);
  auto kept = std::make_shared<std::vector<AttentionSpan>>(spans);
  AttentionArgs args{};
  args.q = value(q);
  args.k = value(k);
  args.v = value(v);
  args.heads = shape.heads;
  args.kv_heads = shape.kv_heads;
  args.head_dim = shape.head_dim;
  args.scale = shape.scale;
  args.soft_cap = shape.soft_cap;
  args.window = shape.window;
  args.rope_theta = shape.rope_theta;
  args.first_position = shape.first_position;
  args.spans = kept->data();
  args.span_count = static_cast<int64_t>(kept->size());
  args.bf16 = bf16_;
  args.out = out;
  backend_.attention(args);
  // Queries, keys and values come from linear layers and have no other use.
  return push(out, needs(q) || needs(k) || needs(v), [=, this](const Tensor& dout) {
    auto target = [&](Var x) {
      bool accumulate;
      return needs(x) ? gradient(x, &accumulate) : workspace_.tensor(value(x).rows, value(x).cols);
    };
    const Tensor dq = target(q), dk = target(k), dv = target(v);
    AttentionArgs forward = args;
    forward.spans = kept->data();
    ops_.attention_backward({forward, dout, dq, dk, dv});
  });
}

Var Tape::gather(int64_t rows, int64_t cols, std::vector<GatherPart> parts) {
  const Tensor out = workspace_.tensor(rows, cols);
  ops_.fill(out, 0);
  bool any = false;
  for (const GatherPart& p : parts) {
    ops_.gather_rows(
        {p.parameter ? p.parameter->value : value(p.table), p.index.data(), p.scale, out});
    any = any || trains(p.parameter) || needs(p.table);
  }
  auto kept = std::make_shared<std::vector<GatherPart>>(std::move(parts));
  return push(out, any, [=, this](const Tensor& dout) {
    for (const GatherPart& p : *kept) {
      if (trains(p.parameter))
        ops_.scatter_rows({dout, p.index.data(), p.scale, gradient_of(p.parameter)});
      else if (needs(p.table))
        ops_.scatter_rows({dout, p.index.data(), p.scale, zeroed_gradient(p.table)});
    }
  });
}

Var Tape::convolution(Var x, int64_t images, const ConvolutionGeometry& geometry,
                      const Parameter& weight, const Parameter& bias, Var residual) {
  const Tensor in = value(x);
  const Tensor out =
      workspace_.tensor(images * geometry.out_height() * geometry.out_width(), weight.rows);
  const bool plain = geometry.kernel == 1 && geometry.stride == 1 && geometry.upsample == 1 &&
                     geometry.pad_before == 0 && geometry.pad_after == 0;
  // Patches are k^2 times the image: made when needed, never kept.
  const auto patches = [=, this](const Tensor& from) {
    if (plain) return from;
    const Tensor to = workspace_.tensor(out.rows, weight.cols);
    ops_.patches({from, images, geometry, to});
    return to;
  };
  if (residual != kNone) backend_.copy(value(residual), out);
  {
    Workspace::Scope scope(workspace_);
    ops_.gemm({.a = patches(in),
               .b = weight.value,
               .transpose_b = true,
               .bias = bias.vector(),
               .accumulate = residual != kNone,
               .bf16 = bf16_,
               .out = out});
  }
  const Parameter *w = &weight, *b = &bias;
  return push(out, needs(x) || needs(residual) || w->trainable || b->trainable,
              [=, this](const Tensor& dout) {
                const Tensor dx = needs(x) ? zeroed_gradient(x) : Tensor();
                Workspace::Scope scope(workspace_);
                const Tensor dpatches = dx && !plain ? workspace_.tensor(dout.rows, w->cols) : dx;
                ops_.linear_backward({.dout = dout,
                                      .x = w->trainable ? patches(value(x)) : Tensor(),
                                      .weight = w->value,
                                      .bf16 = bf16_,
                                      .dweight = gradient_of(w),
                                      .dbias = vector_gradient_of(b),
                                      .accumulate = plain,
                                      .dx = dpatches});
                if (dx && !plain) ops_.patches_backward({dpatches, images, geometry, dx});
                pass(residual, dout);
              });
}

Var Tape::group_norm(Var x, int64_t images, int64_t groups, const Parameter& weight,
                     const Parameter& bias, float eps, bool silu) {
  const Tensor in = value(x), out = workspace_.tensor(in.rows, in.cols);
  const int64_t pixels = in.rows / images;
  for (int64_t i = 0; i < images; ++i)
    backend_.group_norm({in.slice(i * pixels, pixels), groups, weight.vector(), bias.vector(), eps,
                         silu, out.slice(i * pixels, pixels)});
  const Parameter *w = &weight, *b = &bias;
  return push(out, needs(x) || w->trainable || b->trainable, [=, this](const Tensor& dout) {
    bool accumulate = false;
    const Tensor dx = needs(x) ? gradient(x, &accumulate) : workspace_.tensor(dout.rows, dout.cols);
    ops_.group_norm_backward({value(x), images, groups, w->vector(), b->vector(), eps, silu, dout,
                              accumulate, dx, vector_gradient_of(w), vector_gradient_of(b)});
  });
}

// ---- losses ----

void Tape::cross_entropy(Var hidden, const Parameter& weight, const std::vector<int32_t>& targets,
                         float cap, float scale, std::vector<float>* losses,
                         std::vector<int32_t>* likeliest) {
  const Tensor in = value(hidden);
  losses->resize(targets.size());
  if (!gradients_) likeliest->resize(targets.size());
  bool accumulate = false;
  const Tensor dhidden = needs(hidden) ? gradient(hidden, &accumulate) : Tensor();
  const int64_t logits_at_once = backend_.in_host_memory() ? kLogits : kDeviceLogits;
  const int64_t step = std::clamp<int64_t>(logits_at_once / weight.rows, 1, kMostLogitRows);
  for (int64_t first = 0; first < in.rows; first += step) {
    Workspace::Scope scope(workspace_);
    const int64_t rows = std::min(step, in.rows - first);
    const Tensor x = in.slice(first, rows), logits = workspace_.tensor(rows, weight.rows);
    ops_.gemm({.a = x, .b = weight.value, .transpose_b = true, .bf16 = bf16_, .out = logits});
    if (!gradients_) {
      // A soft cap does not change which is the largest.
      const std::vector<float> zero(static_cast<size_t>(rows));
      const std::vector<double> unused(static_cast<size_t>(rows), 0.5);
      const Tensor sampled = workspace_.tensor(rows, 1, DType::f32);  // for as many ids
      int32_t* ids = static_cast<int32_t*>(sampled.data);
      backend_.sample_text({logits, zero.data(), unused.data(), ids});
      int32_t* read = likeliest->data() + first;
      backend_.finish_read(backend_.begin_read(ids, rows, read));
      if (std::any_of(read, read + rows, [](int32_t id) { return id < 0; }))
        throw Error(
            error_code::kNumerical,
            "the logits contain NaN or infinity, so no token can be chosen: a weight is NaN "
            "or infinite");
    }
    ops_.cross_entropy({logits, targets.data() + first, cap, scale, losses->data() + first});
    if (!gradients_) continue;
    ops_.linear_backward({.dout = logits,
                          .x = x,
                          .weight = weight.value,
                          .bf16 = bf16_,
                          .dweight = gradient_of(&weight),
                          .accumulate = accumulate,
                          .dx = dhidden ? dhidden.slice(first, rows) : Tensor()});
  }
}

void Tape::diffusion_loss(Var output, bool flow, const Tensor& x0,
                          const std::vector<int32_t>& index, const std::vector<TrainingStep>& steps,
                          const Tensor& epsilon, float scale, std::vector<float>* losses) {
  const Tensor out = value(output);
  losses->resize(index.size());
  bool accumulate = false;
  const Tensor doutput =
      needs(output) ? gradient(output, &accumulate) : workspace_.tensor(out.rows, out.cols);
  ops_.diffusion_loss(
      {flow, out, x0, index.data(), steps.data(), epsilon, scale, doutput, losses->data()});
}

void Tape::host_gradient(Var v, const std::vector<float>& values) {
  if (!needs(v)) return;
  bool accumulate;
  const Tensor g = gradient(v, &accumulate);
  backend_.write(values.data(), g);
}

Var Tape::host(Var x, int64_t rows, int64_t cols, const std::vector<float>& out,
               std::function<std::vector<float>(const std::vector<float>&)> back) {
  const Tensor result = workspace_.tensor(rows, cols);
  backend_.write(out.data(), result);
  return push(result, needs(x), [=, this, back = std::move(back)](const Tensor& dout) {
    std::vector<float> gradient(static_cast<size_t>(dout.size()));
    backend_.read(dout, gradient.data());
    const Tensor dx = workspace_.tensor(value(x).rows, value(x).cols);
    backend_.write(back(gradient).data(), dx);
    pass(x, dx);
  });
}

}  // namespace unifluid
