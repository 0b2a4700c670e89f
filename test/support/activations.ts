/** The activations of `core/backend.h` in float64. */
import { UNIT_ROUNDOFF } from "./numbers";
import type { Activation } from "./ops";

/** By the series of positive terms e^(-x^2) (x + 2/3 x^3 + 4/15 x^5 + ...). */
function erf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

export function activate(x: number, activation: Activation = "none"): number {
  switch (activation) {
    case "none":
      return x;
    case "silu":
      return x / (1 + Math.exp(-x));
    case "gelu_tanh":
      return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
    case "gelu_erf":
      return 0.5 * x * (1 + erf(x / Math.SQRT2));
  }
}

/** The error of an activation computed in float32 on an input that errs by `error`: no slope exceeds 1.13. */
export function activationBound(x: number, error: number, activation: Activation = "none"): number {
  return activation === "none" ? error : 1.13 * error + 12 * UNIT_ROUNDOFF * Math.abs(x);
}
