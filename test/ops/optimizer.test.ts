/** AdamW and the norm of a gradient. */
import { expectClose, withRandom } from "../support/numbers";
import { describeBackends } from "../support/ops";

const { abs, sqrt } = Math;

describeBackends("AdamW", (backend) => {
  test.each([1, 7, 40_000])("%d parameters", (count) => {
    withRandom((random) => {
      const state = {
        value: random.floats(count),
        first: random.floats(count, 0.1),
        second: random.floats(count, 0.1).map(abs),
        average: random.floats(count),
        gradient: random.floats(count),
      };
      const step = {
        gradientScale: 0.5,
        rate: 0.01,
        beta1: 0.9,
        beta2: 0.98,
        epsilon: 1e-8,
        decay: 0.1,
        correction1: 0.3,
        correction2: 0.1,
        averageKeep: 0.75,
      };
      const results = backend().training({ name: "adamw", ...structuredClone(state), ...step });
      const each = (f: (i: number) => number) =>
        Float64Array.from({ length: count }, (_, i) => f(i));
      const m = each((i) => 0.9 * state.first[i]! + 0.1 * 0.5 * state.gradient[i]!);
      const v = each((i) => 0.98 * state.second[i]! + 0.02 * (0.5 * state.gradient[i]!) ** 2);
      const value = each(
        (i) => state.value[i]! * (1 - 0.001) - (0.01 * m[i]!) / 0.3 / (sqrt(v[i]! / 0.1) + 1e-8),
      );
      expectClose(results.first!, m, 1e-6);
      expectClose(results.second!, v, 1e-6);
      // Quotients of up to ten, of values known to a few units of roundoff, times the rate.
      expectClose(
        results.value!,
        value,
        value.map((x) => 2e-6 * (abs(x) + 1)),
      );
      expectClose(
        results.average!,
        value.map((x, i) => 0.75 * state.average[i]! + 0.25 * x),
        4e-6,
      );
      const squares = state.gradient.reduce((a, b) => a + b * b, 0);
      expect(abs((results.squares as unknown as number) / squares - 1)).toBeLessThan(1e-5);
    })();
  });
});
