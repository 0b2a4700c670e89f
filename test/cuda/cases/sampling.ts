/** soft_cap and sample_text on bfloat16 logits: vocabularies of one chunk and several, whole pieces and not. */
import { type CudaCase, Inputs, type Invariant } from "../../support/cuda-cases";
import { type Random, rowsOf } from "../../support/numbers";

/** A chunk is 2048 logits. */
const VOCABULARIES = [2, 7, 1000, 2048, 2049, 9000];

function drawInputs(random: Random, rows: number, vocabulary: number, temperature: number) {
  return {
    logits: new Inputs(random).matrix(rows, vocabulary, 3),
    // Chosen and drawn rows side by side.
    temperature: Float32Array.from({ length: rows }, (_, i) => (i % 4 === 3 ? 0 : temperature)),
    uniform: Float64Array.from({ length: rows }, () => random.uniform()),
  };
}

export const cases: CudaCase[] = [
  ...[64, 300, 4100].map(
    (n): CudaCase => ({
      name: `soft_cap of ${n}`,
      run: (backend, random) =>
        backend.softCap({ x: new Inputs(random).matrix(2, n, 40, n + 2), cap: 30 }),
    }),
  ),
  // Ids are equal or wrong: the logits of both sides are.
  ...VOCABULARIES.flatMap((vocabulary) =>
    [0.3, 1, 50].map(
      (temperature): CudaCase => ({
        name: `sample_text of ${vocabulary} at ${temperature}`,
        tolerance: 0,
        run: (backend, random) =>
          Float32Array.from(
            backend.sampleText(drawInputs(random, 12, vocabulary, Math.fround(temperature))),
          ),
      }),
    ),
  ),
  {
    name: "sample_text at the ends of the running sum",
    tolerance: 0,
    run(backend, random) {
      const inputs = drawInputs(random, 4, 5000, 1);
      inputs.uniform.set([2 ** -60, 1 - 2 ** -20, 2 ** -20, 0.5]);
      return Float32Array.from(backend.sampleText(inputs));
    },
  },
];

export const invariants: Invariant[] = [
  {
    name: "rows 3 to 8 of 12",
    run(backend, random) {
      const { logits, temperature, uniform } = drawInputs(random, 12, 5001, 1);
      return {
        whole: Float32Array.from(backend.sampleText({ logits, temperature, uniform }).slice(3, 8)),
        alone: Float32Array.from(
          backend.sampleText({
            logits: rowsOf(logits, 3, 5),
            temperature: temperature.slice(3, 8),
            uniform: uniform.slice(3, 8),
          }),
        ),
      };
    },
  },
];
