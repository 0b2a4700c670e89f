/** embed_tokens, image_embed and add_rows in bfloat16: rows of whole pieces and not. */
import { type CudaCase, Inputs, type Invariant } from "../../support/cuda-cases";
import type { Random } from "../../support/numbers";

const WIDTHS = [1, 8, 19, 64, 136];
const CELLS = 9;

function imageInputs(random: Random, d: number, channels: number) {
  const inputs = new Inputs(random);
  return {
    rows: Array.from({ length: 20 }, (_, i) => ({
      // Tokens stay float32.
      token: i % 5 === 0 ? undefined : random.floats(channels),
      cell: i % 5 === 0 ? -1 : random.integer(CELLS),
      next: i % 3 === 0 ? -1 : random.integer(CELLS),
    })),
    weight: inputs.weight(d, channels),
    bias: random.floats(d),
    position: inputs.weight(CELLS, d, 1),
    nextPosition: inputs.weight(CELLS, d, 1),
    begin: random.floats(d),
  };
}

export const cases: CudaCase[] = WIDTHS.flatMap((d): CudaCase[] => [
  {
    name: `embed_tokens of ${d}`,
    run(backend, random) {
      const table = new Inputs(random).weight(11, d, 1);
      const ids = Int32Array.from({ length: 30 }, () => random.integer(11));
      return backend.embedTokens({
        ids,
        table,
        scale: Math.fround(Math.sqrt(d)),
        outStride: d + 8,
      });
    },
  },
  ...[5, 16].map(
    (channels): CudaCase => ({
      name: `image_embed of ${channels} channels to ${d}`,
      run: (backend, random) => backend.imageEmbed(imageInputs(random, d, channels)),
    }),
  ),
  {
    name: `add_rows of ${d}, the table several times`,
    run(backend, random) {
      const inputs = new Inputs(random);
      return backend.addRows({ table: inputs.weight(7, d, 1), x: inputs.matrix(25, d) });
    },
  },
]);

export const invariants: Invariant[] = [0, 7, 19].map((row) => ({
  name: `image row ${row} of 20`,
  run(backend, random) {
    const d = 136;
    const inputs = imageInputs(random, d, 16);
    const all = backend.imageEmbed(inputs);
    return {
      whole: all.slice(row * d, (row + 1) * d),
      alone: backend.imageEmbed({ ...inputs, rows: [inputs.rows[row]!] }),
    };
  },
}));
