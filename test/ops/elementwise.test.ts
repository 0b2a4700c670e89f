/** Activations, gates and sums over rows, with their gradients. */
import { activate } from "../support/activations";
import { expectGradients, matrix, type Vector, weighted } from "../support/gradients";
import { dotBound, expectClose, UNIT_ROUNDOFF, withRandom } from "../support/numbers";
import {
  type Backend,
  describeBackends,
  expectSameBits,
  expectSameEverywhere,
} from "../support/ops";

const { abs, floor } = Math;

describeBackends("elementwise operations and their gradients", (backend) => {
  const KINDS = ["silu", "gelu_tanh", "gelu_erf", "none"] as const;

  test.each(KINDS)("%s", (activation) => {
    withRandom((random) => {
      const [rows, cols] = [5, 21];
      const [x, dout, up] = [1, 2, 3].map(() => random.floats(rows * cols, 2)) as [
        Float32Array,
        Float32Array,
        Float32Array,
      ];
      const of = (v: Float32Array) => matrix(v, rows, cols);
      const act = (v: Vector) => v.map((e) => activate(e, activation));
      const { out } = backend().training({ name: "activation", x: of(x), activation });
      const want = act(Float64Array.from(x));
      // The exponential is good to two units in the last place, and a quotient follows.
      expectClose(
        out!,
        want,
        want.map((v, i) => 16 * UNIT_ROUNDOFF * (abs(v) + abs(x[i]!))),
      );
      const args = { name: "activationBackward", x: of(x), activation, dout: of(dout) };
      const { dx } = backend().training(args);
      expectGradients(random, ({ x }) => weighted(act(x!), dout), { x }, { x: dx! }, 16, 8);
      const start = random.floats(rows * cols);
      const more = backend().training({ ...args, start: of(start.slice()) }).dx!;
      expectClose(
        more,
        dx!.map((v, i) => Math.fround(v + start[i]!)),
        1e-6,
      );

      const gated = backend().training({
        name: "gated",
        gate: of(x),
        up: of(up),
        activation,
        dout: of(dout),
      });
      const product = (gate: Vector, u: ArrayLike<number>) => act(gate).map((v, i) => v * u[i]!);
      const both = product(Float64Array.from(x), up);
      expectClose(
        gated.out!,
        both,
        both.map((v, i) => 16 * UNIT_ROUNDOFF * (abs(v) + abs(x[i]! * up[i]!))),
      );
      expectGradients(
        random,
        (v) => weighted(product(v.gate!, v.up!), dout),
        { gate: x, up },
        { gate: gated.dgate!, up: gated.dup! },
        16,
        16,
      );
    })();
  });

  test("gated_add and column_sum", () => {
    withRandom((random) => {
      const [rows, cols] = [70, 35];
      const of = (v: Float32Array) => matrix(v, rows, cols);
      const [x, gate, y, dout] = [1, 2, 3, 4].map(() =>
        random.floats(rows * cols),
      ) as Float32Array[];
      const results = backend().training({
        name: "gatedAdd",
        x: of(x!),
        gate: of(gate!),
        y: of(y!),
        dout: of(dout!),
      });
      const exact = (f: (i: number) => number) => Float64Array.from(x!, (_, i) => f(i));
      expectClose(
        results.out!,
        exact((i) => x![i]! + gate![i]! * y![i]!),
        1e-6,
      );
      expectClose(
        results.dgate!,
        exact((i) => dout![i]! * y![i]!),
        1e-6,
      );
      expectClose(
        results.dy!,
        exact((i) => dout![i]! * gate![i]!),
        1e-6,
      );
      const start = random.floats(cols);
      const sums = backend().training({ name: "columnSum", x: of(x!), start: start.slice() }).out!;
      const wanted = Float64Array.from(start);
      const size = Float64Array.from(start, abs);
      for (let i = 0; i < x!.length; i++) {
        wanted[i % cols] = wanted[i % cols]! + x![i]!;
        size[i % cols] = size[i % cols]! + abs(x![i]!);
      }
      expectClose(
        sums,
        wanted,
        size.map((s) => dotBound(rows, s)),
      );
    })();
  });
});

test("sums over rows have the same bits on any number of threads", () => {
  withRandom((random) => {
    const args = { name: "columnSum", x: random.matrix(300, 70), start: new Float32Array(70) };
    expectSameEverywhere((backend) => backend.training(args).out!, 1e-5);
  })();
});

describeBackends("moving floats", (backend) => {
  // Large ones are shared out among threads: long rows, short ones, with and without gaps.
  test.each([
    [3, 7, 9],
    [0, 5, 5],
    [1, 200001, 200001],
    [3, 70001, 70003],
    [601, 300, 301],
    [601, 300, 300],
  ])("%d rows of %d, %d apart", (rows, cols, outStride) => {
    const data = Float32Array.from({ length: rows * cols }, (_, i) => i + 1);
    const expected = (value: (i: number) => number) =>
      Float32Array.from({ length: rows * outStride }, (_, i) =>
        i % outStride < cols ? value(floor(i / outStride) * cols + (i % outStride)) : Number.NaN,
      );
    const run = (args: Parameters<Backend["training"]>[0]) => backend().training(args).out!;
    const copied = run({ name: "copy", x: { data, rows, cols }, outStride });
    expectSameBits(
      copied,
      expected((i) => data[i]!),
    );
    const filled = run({ name: "fill", rows, cols, outStride, value: 2.5 });
    expectSameBits(
      filled,
      expected(() => 2.5),
    );
  });
});
