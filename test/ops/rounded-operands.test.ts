/**
 * What only products with bfloat16 operands take may be bfloat16 already (core/training_backend.h), which saves memory and
 * must not change a product's bits: it would have rounded the same numbers.
 */
import { fromBFloat16, toBFloat16, UNIT_ROUNDOFF, withRandom } from "../support/numbers";
import { addon, withBackend } from "../support/ops";

const rounded = (values: Float32Array) => values.map((v) => fromBFloat16(toBFloat16(v)));

const sets = addon.instructionSets().filter((set) => set.supported && set.bfloat16);
const cases = sets.flatMap(({ name }) => [1, 2].map((threads) => ({ isa: name, threads })));
// A machine without such products keeps float32, which the other tests of these operations cover.
const each =
  cases.length > 0 ? describe.each(cases) : describe.skip.each([{ isa: "none", threads: 1 }]);

each("operands in bfloat16: $isa, $threads threads", (options) => {
  type Arguments = { name: string; [argument: string]: unknown };
  const both = (args: Arguments) =>
    withBackend(options, (backend) => [
      backend.training({ ...args, rounded: true }),
      backend.training(args),
    ]) as [Record<string, Float32Array>, Record<string, Float32Array>];

  // Whole vectors and others; an odd sum leaves half of a pair over; several blocks of the sum; rows that threads share.
  test.each([
    [19, 37, 75],
    [29, 70, 1062],
    [200, 64, 96],
    [1, 5, 1],
  ])("a product of %i rows, %i columns and sums over %i", (m, n, k) => {
    withRandom((random) => {
      for (const transposeB of [false, true]) {
        const b = transposeB ? random.matrix(n, k) : random.matrix(k, n);
        const args = { name: "gemm", bf16: true, a: random.matrix(m, k), b, transposeB };
        const [found, expected] = both(args);
        expect(found.out).toEqual(expected.out);
      }
    })();
  });

  test.each([
    [70, 136, 72],
    [601, 24, 40],
    [33, 7, 13],
    [1, 1, 1],
  ])("the gradients of a linear layer: %i rows, %i outputs, %i inputs", (m, n, k) => {
    withRandom((random) => {
      const dout = random.matrix(m, n);
      const startBias = random.floats(n);
      const [found, expected] = both({
        ...{ name: "linearBackward", bf16: true, dout, x: random.matrix(m, k) },
        ...{ weight: random.matrix(n, k), startWeight: random.matrix(n, k), startBias },
      });
      expect(found.dweight).toEqual(expected.dweight);
      expect(found.dx).toEqual(expected.dx);
      // The bias's is a sum of what was rounded.
      const values = rounded(dout.data);
      for (let j = 0; j < n; j++) {
        let sum = startBias[j]!;
        let size = Math.abs(sum);
        for (let i = 0; i < m; i++) {
          sum += values[i * n + j]!;
          size += Math.abs(values[i * n + j]!);
        }
        expect(Math.abs(found.dbias![j]! - sum)).toBeLessThanOrEqual(
          (m + 1) * UNIT_ROUNDOFF * size,
        );
      }
    })();
  });

  test.each([72, 131])("results of %i columns are float32's, rounded once", (cols) => {
    withRandom((random) => {
      const like = () => random.matrix(70, cols, 2);
      const operations: Record<string, [Arguments, string[]]> = {
        activation: [{ name: "activation", activation: "silu", x: like() }, ["out"]],
        activationBackward: [
          { name: "activationBackward", activation: "gelu_tanh", x: like(), dout: like() },
          ["dx"],
        ],
        gated: [
          { name: "gated", activation: "gelu_tanh", gate: like(), up: like(), dout: like() },
          ["out", "dgate", "dup"],
        ],
        gatedAdd: [
          { name: "gatedAdd", x: like(), gate: like(), y: like(), dout: like() },
          ["dgate", "dy"],
        ],
        rmsNorm: [
          {
            ...{ name: "rmsNormBackward", eps: 1e-6, x: like(), weight: random.floats(cols) },
            ...{ dout: like(), startWeight: random.floats(cols) },
          },
          ["out", "dx"],
        ],
        modulatedNorm: [
          {
            ...{ name: "modulatedNorm", eps: 1e-6, x: like(), dout: like() },
            ...{ shift: like(), scale: like() },
          },
          ["out", "dshift", "dscale"],
        ],
      };
      for (const [name, [args, results]] of Object.entries(operations)) {
        const [found, expected] = both(args);
        for (const result of Object.keys(expected))
          expect([name, result, found[result]]).toEqual([
            name,
            result,
            results.includes(result) ? rounded(expected[result]!) : expected[result],
          ]);
      }
    })();
  });
});
