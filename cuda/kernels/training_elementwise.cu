// Element by element operations of training, with their gradients.
#include "cuda/device/math.h"
#include "cuda/kernels/training_elements.h"
#include "cuda/training_kernels.h"

namespace unifluid::cuda {
namespace {

struct ValueAndSlope {
  float value, slope;
};

template <Activation kActivation>
UNIFLUID_DEVICE ValueAndSlope with_slope(float x) {
  if constexpr (kActivation == Activation::silu) {
    const float s = sigmoid(x), value = x * s;
    return {value, fmaf(value, 1.0f - s, s)};
  }
  if constexpr (kActivation == Activation::gelu_tanh) {
    const float root = 0.7978845608028654f, square = x * x;
    const float t = tanhf(root * fmaf(square * x, 0.044715f, x));
    const float gate = 0.5f * (1.0f + t);
    const float inner = root * fmaf(square, 3 * 0.044715f, 1.0f);
    return {x * gate, fmaf(0.5f * x * fmaf(-t, t, 1.0f), inner, gate)};
  }
  if constexpr (kActivation == Activation::gelu_erf) {
    const float share = 0.5f * (1.0f + erff(x * 0.7071067811865476f));
    return {x * share, fmaf(x, 0.3989422804014327f * expf(-0.5f * x * x), share)};
  }
  return {x, 1.0f};
}

// Calls body(integral constant) for the activation, so that each kernel is of one.
template <class Body>
void with_activation(Activation activation, Body body) {
  switch (activation) {
    case Activation::silu:
      return body(std::integral_constant<Activation, Activation::silu>());
    case Activation::gelu_tanh:
      return body(std::integral_constant<Activation, Activation::gelu_tanh>());
    case Activation::gelu_erf:
      return body(std::integral_constant<Activation, Activation::gelu_erf>());
    case Activation::none:
      return body(std::integral_constant<Activation, Activation::none>());
  }
}

struct FillParams {
  Rows out;
  float value;
  ElementGrid grid;
};
__global__ void __launch_bounds__(kElementThreads) fill_element(FillParams p) {
  const ElementPlace at = element_place(p.grid);
  if (at.inside) p.out.at(at.row, at.column) = p.value;
}

struct AddParams {
  Rows x, out;
  ElementGrid grid;
};
__global__ void __launch_bounds__(kElementThreads) add_element(AddParams p) {
  const ElementPlace at = element_place(p.grid);
  if (at.inside) p.out.at(at.row, at.column) += p.x.at(at.row, at.column);
}

struct ActivationParams {
  Rows x, dout, out;
  bool accumulate;
  ElementGrid grid;
};
template <class T, Activation kActivation>
__global__ void __launch_bounds__(kElementThreads) activation_element(ActivationParams p) {
  const ElementPlace at = element_place(p.grid);
  if (at.inside) p.out.put<T>(at.row, at.column, activate<kActivation>(p.x.at(at.row, at.column)));
}
template <class T, Activation kActivation>
__global__ void __launch_bounds__(kElementThreads) activation_backward_element(ActivationParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const float slope = with_slope<kActivation>(p.x.at(at.row, at.column)).slope;
  const float d = p.dout.at(at.row, at.column) * slope;
  p.out.put<T>(at.row, at.column, p.accumulate ? p.out.get<T>(at.row, at.column) + d : d);
}

struct GatedParams {
  Rows gate, up, dout;
  Rows out, dgate, dup;
  ElementGrid grid;
};
template <class T, Activation kActivation>
__global__ void __launch_bounds__(kElementThreads) gated_element(GatedParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  p.out.put<T>(at.row, at.column,
               activate<kActivation>(p.gate.at(at.row, at.column)) * p.up.at(at.row, at.column));
}
template <class T, Activation kActivation>
__global__ void __launch_bounds__(kElementThreads) gated_backward_element(GatedParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  // One of the outputs may be dout.
  const float d = p.dout.at(at.row, at.column), up = p.up.at(at.row, at.column);
  const ValueAndSlope g = with_slope<kActivation>(p.gate.at(at.row, at.column));
  p.dgate.put<T>(at.row, at.column, d * up * g.slope);
  p.dup.put<T>(at.row, at.column, d * g.value);
}

struct GatedAddParams {
  Rows x, gate, y, dout;
  Rows out, dgate, dy;
  ElementGrid grid;
};
__global__ void __launch_bounds__(kElementThreads) gated_add_element(GatedAddParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  p.out.at(at.row, at.column) =
      fmaf(p.gate.at(at.row, at.column), p.y.at(at.row, at.column), p.x.at(at.row, at.column));
}
template <class Gate, class Y>
__global__ void __launch_bounds__(kElementThreads) gated_add_backward_element(GatedAddParams p) {
  const ElementPlace at = element_place(p.grid);
  if (!at.inside) return;
  const float d = p.dout.at(at.row, at.column);
  p.dgate.put<Gate>(at.row, at.column, d * p.y.at(at.row, at.column));
  p.dy.put<Y>(at.row, at.column, d * p.gate.at(at.row, at.column));
}

}  // namespace

void fill(Queue& queue, const Tensor& tensor, float value) {
  const ElementGrid grid(tensor.rows, tensor.cols);
  launch_elements(queue, fill_element, grid, {tensor, value, grid});
}

void add(Queue& queue, const AddArgs& args) {
  const ElementGrid grid(args.x.rows, args.x.cols);
  launch_elements(queue, add_element, grid, {args.x, args.out, grid});
}

void activation(Queue& queue, const ActivationArgs& args) {
  ActivationParams p{};
  p.x = args.x;
  p.out = args.out;
  p.grid = ElementGrid(args.x.rows, args.x.cols);
  with_activation(args.activation, [&](auto kind) {
    with_type(args.out.type, [&](auto t) {
      launch_elements(queue, activation_element<decltype(t), decltype(kind)::value>, p.grid, p);
    });
  });
}

void activation_backward(Queue& queue, const ActivationBackwardArgs& args) {
  ActivationParams p{};
  p.x = args.x;
  p.dout = args.dout;
  p.out = args.dx;
  p.accumulate = args.accumulate;
  p.grid = ElementGrid(args.x.rows, args.x.cols);
  with_activation(args.activation, [&](auto kind) {
    with_type(args.dx.type, [&](auto t) {
      launch_elements(queue, activation_backward_element<decltype(t), decltype(kind)::value>,
                      p.grid, p);
    });
  });
}

void gated(Queue& queue, const GatedArgs& args) {
  GatedParams p{};
  p.gate = args.gate;
  p.up = args.up;
  p.out = args.out;
  p.grid = ElementGrid(args.gate.rows, args.gate.cols);
  with_activation(args.activation, [&](auto kind) {
    with_type(args.out.type, [&](auto t) {
      launch_elements(queue, gated_element<decltype(t), decltype(kind)::value>, p.grid, p);
    });
  });
}

void gated_backward(Queue& queue, const GatedBackwardArgs& args) {
  GatedParams p{};
  p.gate = args.gate;
  p.up = args.up;
  p.dout = args.dout;
  p.dgate = args.dgate;
  p.dup = args.dup;
  p.grid = ElementGrid(args.gate.rows, args.gate.cols);
  with_activation(args.activation, [&](auto kind) {
    with_type(args.dgate.type, [&](auto t) {
      launch_elements(queue, gated_backward_element<decltype(t), decltype(kind)::value>, p.grid, p);
    });
  });
}

void gated_add(Queue& queue, const GatedAddArgs& args) {
  GatedAddParams p{};
  p.x = args.x;
  p.gate = args.gate;
  p.y = args.y;
  p.out = args.out;
  p.grid = ElementGrid(args.x.rows, args.x.cols);
  launch_elements(queue, gated_add_element, p.grid, p);
}

void gated_add_backward(Queue& queue, const GatedAddBackwardArgs& args) {
  GatedAddParams p{};
  p.gate = args.gate;
  p.y = args.y;
  p.dout = args.dout;
  p.dgate = args.dgate;
  p.dy = args.dy;
  p.grid = ElementGrid(args.y.rows, args.y.cols);
  with_type(args.dgate.type, [&](auto gate) {
    with_type(args.dy.type, [&](auto y) {
      launch_elements(queue, gated_add_backward_element<decltype(gate), decltype(y)>, p.grid, p);
    });
  });
}

}  // namespace unifluid::cuda
