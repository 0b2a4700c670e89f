/** embed_tokens, image_embed, add_rows: what enters the decoder. */
import {
  dotBound,
  expectClose,
  misaligned,
  packed,
  UNIT_ROUNDOFF,
  valuesOf,
  withRandom,
} from "../support/numbers";
import { describeBackends, expectSameBits, expectSameEverywhere } from "../support/ops";

const TYPES = ["f32", "f16", "bf16"] as const;
/** Below, at and above a vector's width, and none a multiple of all of them but the last. */
const WIDTHS = [1, 3, 8, 19, 37, 64];

describeBackends("embed_tokens", (backend) => {
  test.each(TYPES)("rows of a %s table, scaled", (type) => {
    withRandom((random) => {
      for (const d of WIDTHS) {
        const table = random.weight(type, 11, d);
        const values = valuesOf(table);
        const ids = Int32Array.from({ length: 40 }, () => random.integer(11));
        const scale = Math.fround(Math.sqrt(d));
        const expected = Float32Array.from(
          { length: ids.length * d },
          (_, i) => values[ids[Math.floor(i / d)]! * d + (i % d)]! * scale,
        );
        // One product of float32 numbers, rounded once.
        expectSameBits(backend().embedTokens({ ids, table, scale }), expected);
        expectSameBits(backend().embedTokens({ ids, table: misaligned(table), scale }), expected);
        expectSameBits(backend().embedTokens({ ids, sampled: true, table, scale }), expected);
        // Where there was nothing to choose from.
        const none = ids.map((id, i) => (i % 3 ? id : -1));
        expectSameBits(
          backend().embedTokens({ ids: none, sampled: true, table, scale }),
          backend().embedTokens({ ids: none.map((id) => Math.max(id, 0)), table, scale }),
        );
        const wide = backend().embedTokens({ ids, table, scale, outStride: d + 2 });
        ids.forEach((_, row) => {
          const at = row * (d + 2);
          expectSameBits(wide.subarray(at, at + d), expected.subarray(row * d, (row + 1) * d));
          expect(wide.subarray(at + d, at + d + 2).every(Number.isNaN)).toBe(true);
        });
      }
    })();
  });

  // A GPU takes the ids in parts.
  test("as many rows as a very long prompt has", () => {
    withRandom((random) => {
      const [d, vocab] = [8, 300];
      const table = random.weight("bf16", vocab, d);
      const values = valuesOf(table);
      const ids = Int32Array.from({ length: 70_001 }, () => random.integer(vocab));
      const expected = Float32Array.from(
        { length: ids.length * d },
        (_, i) => values[ids[Math.floor(i / d)]! * d + (i % d)]!,
      );
      expectSameBits(backend().embedTokens({ ids, table, scale: 1 }), expected);
      expectSameBits(backend().embedTokens({ ids, sampled: true, table, scale: 1 }), expected);
    })();
  });
});

describeBackends("image_embed", (backend) => {
  test.each(TYPES)("tokens, places and the begin row, in %s", (type) => {
    withRandom((random) => {
      for (const [d, c] of [
        [32, 16],
        [19, 5],
        [65, 64],
      ] as const) {
        const cells = 9;
        const [weight, position, nextPosition] = [
          random.weight(type, d, c),
          random.weight(type, cells, d),
          random.weight(type, cells, d),
        ];
        const [bias, begin] = [random.floats(d), random.floats(d)];
        const rows = Array.from({ length: 35 }, (_, i) => ({
          token: i % 5 === 0 ? undefined : random.floats(c),
          cell: i % 5 === 0 ? -1 : random.integer(cells),
          next: i % 3 === 0 ? -1 : random.integer(cells),
        }));
        const [w, p, n] = [valuesOf(weight), valuesOf(position), valuesOf(nextPosition)];
        const expected = new Float64Array(rows.length * d);
        const bound = new Float64Array(rows.length * d);
        rows.forEach(({ token, cell, next }, r) => {
          for (let o = 0; o < d; o++) {
            let [sum, magnitude] = [0, 0];
            const add = (term: number) => {
              sum += term;
              magnitude += Math.abs(term);
            };
            if (token) {
              for (let k = 0; k < c; k++) add(w[o * c + k]! * token[k]!);
              add(bias[o]!);
              add(p[cell * d + o]!);
            } else {
              add(begin[o]!);
            }
            if (next >= 0) add(n[next * d + o]!);
            expected[r * d + o] = sum;
            bound[r * d + o] = dotBound(c + 3, magnitude);
          }
        });
        const args = { weight, bias, position, nextPosition, begin };
        const out = backend().imageEmbed({ ...args, rows });
        expectClose(out, expected, bound);
        rows.forEach((row, r) => {
          const alone = backend().imageEmbed({ ...args, rows: [row] });
          expectSameBits(alone, out.subarray(r * d, (r + 1) * d), `row ${r} alone`);
        });
        const moved = backend().imageEmbed({
          ...args,
          weight: misaligned(weight),
          position: misaligned(position),
          nextPosition: misaligned(nextPosition),
          rows,
        });
        expectSameBits(moved, out, "at odd addresses");
      }
    })();
  });
});

describeBackends("add_rows", (backend) => {
  test.each(TYPES)("a %s table, again and again", (type) => {
    withRandom((random) => {
      for (const d of WIDTHS) {
        const table = random.weight(type, 4, d);
        const values = valuesOf(table);
        for (const [rows, stride] of [
          [4, d],
          [50, d + 3],
        ] as const) {
          const x = random.matrix(rows, d, 1, stride);
          const out = backend().addRows({ table, x });
          const sums = packed(x).map((v, i) => v + values[i % values.length]!);
          const actual = packed({ ...x, data: out });
          expectClose(
            actual,
            sums,
            sums.map((v) => UNIT_ROUNDOFF * Math.abs(v)),
          );
          for (let r = 0; r < rows; r++) {
            const gap = [r * stride + d, (r + 1) * stride] as const;
            expectSameBits(out.subarray(...gap), x.data.subarray(...gap), "the gap between rows");
          }
        }
      }
    })();
  });
});

test("the same on every instruction set", () => {
  withRandom((random) => {
    const [weight, places] = [random.weight("bf16", 40, 16), random.weight("bf16", 6, 40)];
    const [bias, begin] = [random.floats(40), random.floats(40)];
    const rows = Array.from({ length: 30 }, (_, i) => ({
      token: random.floats(16),
      cell: i % 6,
      next: 1,
    }));
    expectSameEverywhere(
      (b) => b.imageEmbed({ rows, weight, bias, position: places, nextPosition: places, begin }),
      1e-6,
    );
    const x = random.matrix(40, 40);
    expectSameEverywhere((b) => b.addRows({ table: places, x }), 0);
    const ids = Int32Array.from({ length: 60 }, (_, i) => i % 6);
    expectSameEverywhere((b) => b.embedTokens({ ids, table: places, scale: 1.7 }), 0);
  })();
});
