/** attention: against float64 on ragged spans, with caches and without. */
import { dotBound, expectClose, type Random, UNIT_ROUNDOFF, withRandom } from "../support/numbers";
import {
  type AttentionSpan,
  type Backend,
  describeBackends,
  expectSameBits,
  expectSameEverywhere,
  type Matrix,
} from "../support/ops";

// A test's globals are slow to look up.
const { abs, cos, exp, fround, max, sin, tanh } = Math;

interface Settings {
  heads: number;
  kvHeads: number;
  headDim: number;
  scale: number;
  softCap?: number;
  window?: number;
  ropeTheta?: number;
  firstPosition?: number;
}

/** A sequence's rows of q, k and v before rotary embedding, each [rows, heads * headDim]. */
interface Sequence {
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  rows: number;
  prefixEnd: number;
}

function randomSequence(random: Random, s: Settings, rows: number, prefixEnd = 0): Sequence {
  return {
    q: random.floats(rows * s.heads * s.headDim),
    k: random.floats(rows * s.kvHeads * s.headDim),
    v: random.floats(rows * s.kvHeads * s.headDim),
    rows,
    prefixEnd,
  };
}

/** transformers' rotary embedding: frequencies, and angles from them, in float32. */
function rotated(x: Float32Array, at: number, position: number, s: Settings): Float64Array {
  const half = s.headDim / 2;
  const out = Float64Array.from(x.subarray(at, at + s.headDim));
  if (!s.ropeTheta) return out;
  for (let c = 0; c < half; c++) {
    const power = fround(s.ropeTheta ** fround((2 * c) / s.headDim));
    const angle = fround(position * fround(1 / power));
    const [a, b] = [x[at + c]!, x[at + half + c]!];
    out[c] = a * cos(angle) - b * sin(angle);
    out[half + c] = b * cos(angle) + a * sin(angle);
  }
  return out;
}

function sees(i: number, j: number, s: Settings, prefixEnd: number): boolean {
  if (i < prefixEnd && j < prefixEnd) return true;
  return j <= i && (!s.window || j > i - s.window);
}

/** Rows `from` on, with their scores in memory; and a bound for each element's error. */
function reference(sequence: Sequence, s: Settings, from = 0) {
  const { heads, kvHeads, headDim: d } = s;
  const n = sequence.rows;
  const first = s.firstPosition ?? 0;
  const out = new Float64Array((n - from) * heads * d);
  const bound = new Float64Array(out.length);
  for (let h = 0; h < heads; h++) {
    const g = Math.floor(h / (heads / kvHeads));
    const keys = Array.from({ length: n }, (_, j) =>
      rotated(sequence.k, (j * kvHeads + g) * d, first + j, s),
    );
    for (let i = from; i < n; i++) {
      const q = rotated(sequence.q, (i * heads + h) * d, first + i, s);
      const weights = new Float64Array(n);
      let most = Number.NEGATIVE_INFINITY;
      let magnitude = 0;
      for (let j = 0; j < n; j++) {
        weights[j] = Number.NEGATIVE_INFINITY;
        if (!sees(i, j, s, sequence.prefixEnd)) continue;
        let dot = 0;
        let absolute = 0;
        const key = keys[j]!;
        for (let c = 0; c < d; c++) {
          const term = q[c]! * key[c]!;
          dot += term;
          absolute += abs(term);
        }
        let score = dot * s.scale;
        if (s.softCap) score = s.softCap * tanh(score / s.softCap);
        weights[j] = score;
        most = max(most, score);
        magnitude = max(magnitude, absolute * s.scale);
      }
      const shares = weights.map((w) => exp(w - most));
      const total = shares.reduce((sum, w) => sum + w, 0);
      // An error of a score is the same relative error of its weight. Rotation adds a few roundings.
      const relative = 2 * dotBound(d, magnitude) + 16 * UNIT_ROUNDOFF * (1 + (s.softCap ?? 0));
      for (let c = 0; c < d; c++) {
        let sum = 0;
        let absolute = 0;
        for (let j = 0; j < n; j++) {
          const term = (shares[j]! / total) * sequence.v[(j * kvHeads + g) * d + c]!;
          sum += term;
          absolute += abs(term);
        }
        const at = ((i - from) * heads + h) * d + c;
        out[at] = sum;
        bound[at] = dotBound(n, absolute) + relative * absolute;
      }
    }
  }
  return { out, bound };
}

function expectUntouched(values: Float32Array): void {
  if (!values.every(Number.isNaN)) throw new Error(`written where it should not be: ${values}`);
}

/** Rows [from, to) of some sequences, one span each, as one ragged call. */
function call(
  backend: Backend,
  s: Settings,
  pieces: { sequence: Sequence; from: number; to: number; cache?: number }[],
  gap = 0,
): Float32Array[] {
  const widths = { q: s.heads * s.headDim, k: s.kvHeads * s.headDim, v: s.kvHeads * s.headDim };
  const rows = pieces.reduce((sum, { from, to }) => sum + to - from, 0);
  const pack = (name: "q" | "k" | "v"): Matrix => {
    const cols = widths[name];
    const stride = cols + gap;
    const data = new Float32Array(rows * stride).fill(Number.NaN);
    let row = 0;
    for (const { sequence, from, to } of pieces)
      for (let r = from; r < to; r++, row++)
        data.set(sequence[name].subarray(r * cols, (r + 1) * cols), row * stride);
    return { data, rows, cols, stride };
  };
  let firstRow = 0;
  const spans: AttentionSpan[] = pieces.map(({ sequence, from, to, cache }) => {
    const span = { firstRow, rows: to - from, index: from, prefixEnd: sequence.prefixEnd, cache };
    firstRow += to - from;
    return span;
  });
  const outStride = widths.q + gap;
  const out = backend.attention({
    q: pack("q"),
    k: pack("k"),
    v: pack("v"),
    ...s,
    spans,
    outStride,
  });
  return spans.map((span) => {
    const piece = new Float32Array(span.rows * widths.q);
    for (let r = 0; r < span.rows; r++) {
      const at = (span.firstRow + r) * outStride;
      piece.set(out.subarray(at, at + widths.q), r * widths.q);
      expectUntouched(out.subarray(at + widths.q, at + outStride));
    }
    return piece;
  });
}

const scaled = (headDim: number) => headDim ** -0.5;

const CASES: { name: string; settings: Settings; rows: number; prefixEnd?: number }[] = [
  { name: "one row", settings: { heads: 1, kvHeads: 1, headDim: 8, scale: 1 }, rows: 1 },
  {
    name: "causal, odd dimensions",
    settings: { heads: 3, kvHeads: 3, headDim: 10, scale: 0.3, ropeTheta: 10000 },
    rows: 37,
  },
  {
    name: "grouped heads, soft cap, Gemma 2",
    settings: {
      heads: 4,
      kvHeads: 2,
      headDim: 8,
      scale: 12 ** -0.5,
      softCap: 2,
      ropeTheta: 10000,
      firstPosition: 1,
    },
    rows: 75,
  },
  {
    name: "multi-query, more heads than a task takes",
    settings: { heads: 40, kvHeads: 1, headDim: 16, scale: 0.25, ropeTheta: 10000 },
    rows: 9,
  },
  {
    name: "window",
    settings: { heads: 2, kvHeads: 1, headDim: 24, scale: 0.2, window: 12, ropeTheta: 500 },
    rows: 150,
  },
  {
    name: "window of one: a row sees itself",
    settings: { heads: 2, kvHeads: 2, headDim: 4, scale: 1, window: 1 },
    rows: 70,
  },
  {
    name: "bidirectional prefix longer than the window",
    settings: {
      heads: 4,
      kvHeads: 2,
      headDim: 16,
      scale: 0.25,
      window: 20,
      softCap: 50,
      ropeTheta: 1e4,
    },
    rows: 140,
    prefixEnd: 83,
  },
  {
    name: "wholly bidirectional: SigLIP's head",
    settings: { heads: 3, kvHeads: 3, headDim: 72, scale: scaled(72) },
    rows: 69,
    prefixEnd: 69,
  },
  {
    name: "one wide head: the VAE's",
    settings: { heads: 1, kvHeads: 1, headDim: 516, scale: scaled(516) },
    rows: 66,
    prefixEnd: 66,
  },
  {
    name: "far positions",
    settings: {
      heads: 2,
      kvHeads: 2,
      headDim: 32,
      scale: scaled(32),
      ropeTheta: 1e4,
      firstPosition: 8185,
    },
    rows: 20,
  },
];

describeBackends("attention", (backend) => {
  test.each(CASES)("$name: spans without a cache", ({ settings, rows, prefixEnd }) => {
    withRandom((random) => {
      const sequence = randomSequence(random, settings, rows, prefixEnd);
      const other = randomSequence(random, settings, 5, prefixEnd ? 5 : 0);
      const expected = reference(sequence, settings);
      const [alone] = call(backend(), settings, [{ sequence, from: 0, to: rows }]);
      expectClose(alone!, expected.out, expected.bound);
      const [first, second] = call(
        backend(),
        settings,
        [
          { sequence: other, from: 0, to: 5 },
          { sequence, from: 0, to: rows },
        ],
        3,
      );
      expectSameBits(second!, alone!, "behind another span");
      const theirs = reference(other, settings);
      expectClose(first!, theirs.out, theirs.bound);
    })();
  });

  test.each(CASES)("$name: with a cache, in any pieces", ({ settings, rows, prefixEnd = 0 }) => {
    withRandom((random) => {
      const sequence = randomSequence(random, settings, rows, prefixEnd);
      const [whole] = call(backend(), settings, [{ sequence, from: 0, to: rows }]);
      const cache = backend().createCache(settings.kvHeads, rows + 2, settings.headDim);
      const width = settings.heads * settings.headDim;
      // The prefix comes in one piece; what follows in chunks and single rows, beside other sequences.
      let from = 0;
      while (from < rows) {
        const least = from < prefixEnd ? prefixEnd : from + 1;
        const to = Math.min(rows, least + (random.integer(2) ? random.integer(40) : 0));
        const other = randomSequence(random, settings, 1 + random.integer(3));
        const pieces = [
          { sequence: other, from: 0, to: other.rows },
          { sequence, from, to, cache },
        ];
        const swap = random.integer(2) === 1;
        const out = call(backend(), settings, swap ? pieces.reverse() : pieces);
        const expected = whole!.subarray(from * width, to * width);
        expectSameBits(out[swap ? 0 : 1]!, expected, `rows ${from} to ${to}`);
        from = to;
      }
      const { keys, values } = backend().readCache(cache);
      const d = settings.headDim;
      for (let h = 0; h < settings.kvHeads; h++)
        for (let r = 0; r < rows + 2; r++) {
          const at = (h * (rows + 2) + r) * d;
          const [key, value] = [keys.subarray(at, at + d), values.subarray(at, at + d)];
          if (r >= rows) {
            expectUntouched(key);
            expectUntouched(value);
            continue;
          }
          const from = (r * settings.kvHeads + h) * d;
          expectSameBits(value, sequence.v.subarray(from, from + d));
          const position = (settings.firstPosition ?? 0) + r;
          expectClose(key, rotated(sequence.k, from, position, settings), 2e-6);
        }
    })();
  });

  test("many sequences with one row each", () => {
    withRandom((random) => {
      const settings: Settings = {
        heads: 4,
        kvHeads: 2,
        headDim: 16,
        scale: 0.25,
        ropeTheta: 10000,
        window: 30,
      };
      const sequences = Array.from({ length: 9 }, (_, i) => {
        const sequence = randomSequence(random, settings, 1 + 17 * i);
        const cache = backend().createCache(2, sequence.rows, 16);
        const to = sequence.rows - 1;
        if (to > 0) call(backend(), settings, [{ sequence, from: 0, to, cache }]);
        return { sequence, from: to, to: sequence.rows, cache };
      });
      const out = call(backend(), settings, sequences);
      sequences.forEach(({ sequence, from }, i) => {
        const expected = reference(sequence, settings, from);
        expectClose(out[i]!, expected.out, expected.bound);
      });
    })();
  });

  test("large scores neither overflow nor lose the largest", () => {
    const settings: Settings = { heads: 1, kvHeads: 1, headDim: 4, scale: 100 };
    const sequence: Sequence = {
      q: new Float32Array(4 * 4).fill(30),
      k: Float32Array.from({ length: 16 }, (_, i) => (i < 8 ? -30 : i < 12 ? 30 : 29)),
      v: Float32Array.from({ length: 16 }, (_, i) => i),
      rows: 4,
      prefixEnd: 4,
    };
    const [out] = call(backend(), settings, [{ sequence, from: 0, to: 4 }]);
    expect([...out!]).toEqual([8, 9, 10, 11, 8, 9, 10, 11, 8, 9, 10, 11, 8, 9, 10, 11]);
  });
});

test("the same on every instruction set, and bit for bit on any number of threads", () => {
  for (const { settings, rows, prefixEnd } of CASES)
    withRandom((random) => {
      const sequence = randomSequence(random, settings, rows, prefixEnd);
      expectSameEverywhere(
        (backend) => call(backend, settings, [{ sequence, from: 0, to: rows }])[0]!,
        1e-5,
      );
    })();
});
