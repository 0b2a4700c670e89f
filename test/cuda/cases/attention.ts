/**
 * attention in bfloat16: each head size that has a kernel of its own, and sizes between; many rows and few, in one
 * call; caches that are filled in pieces.
 */
import { type CudaCase, Inputs, type Invariant } from "../../support/cuda-cases";
import { Random } from "../../support/numbers";
import type { Backend, Matrix } from "../../support/ops";

interface Settings {
  heads: number;
  kvHeads: number;
  headDim: number;
  softCap?: number;
  window?: number;
  ropeTheta?: number;
  /** Rows at the beginning of a sequence that see each other. */
  prefix?: number;
}

const SETTINGS: Record<string, Settings> = {
  "one head of 64": { heads: 1, kvHeads: 1, headDim: 64 },
  "Gemma 2's: 256, grouped, soft cap, rotary": {
    heads: 4,
    kvHeads: 2,
    headDim: 256,
    softCap: 50,
    ropeTheta: 10000,
    prefix: 20,
  },
  "128, multi-query, window, rotary": {
    heads: 5,
    kvHeads: 1,
    headDim: 128,
    window: 37,
    ropeTheta: 10000,
  },
  "a bidirectional prefix longer than the window": {
    heads: 2,
    kvHeads: 1,
    headDim: 64,
    window: 16,
    prefix: 70,
    ropeTheta: 500,
  },
  "SigLIP's 72": { heads: 2, kvHeads: 2, headDim: 72, prefix: 1000 },
  "a head between, 48": { heads: 3, kvHeads: 1, headDim: 48, ropeTheta: 100 },
  "an odd one, 34, whose rows are not aligned": {
    heads: 2,
    kvHeads: 2,
    headDim: 34,
    ropeTheta: 100,
  },
  "multi-query, more heads than a tile takes": {
    heads: 20,
    kvHeads: 1,
    headDim: 32,
    ropeTheta: 10000,
  },
  "the VAE's one of 512": { heads: 1, kvHeads: 1, headDim: 512, prefix: 1000 },
  "two large heads of one key head, 262": { heads: 2, kvHeads: 1, headDim: 262, prefix: 1000 },
};

interface Rows {
  q: Matrix;
  k: Matrix;
  v: Matrix;
}

const draw = (random: Random, s: Settings, rows: number): Rows => {
  const inputs = new Inputs(random);
  return {
    q: inputs.matrix(rows, s.heads * s.headDim),
    k: inputs.matrix(rows, s.kvHeads * s.headDim),
    v: inputs.matrix(rows, s.kvHeads * s.headDim),
  };
};

const part = (m: Matrix, first: number, count: number): Matrix => ({
  data: m.data.slice(first * m.cols, (first + count) * m.cols),
  rows: count,
  cols: m.cols,
});

const settingsOf = ({ heads, kvHeads, headDim, softCap, window, ropeTheta }: Settings) => ({
  heads,
  kvHeads,
  headDim,
  ...(softCap && { softCap }),
  ...(window && { window }),
  ...(ropeTheta && { ropeTheta, firstPosition: 1 }),
  scale: headDim ** -0.5,
});

/** One sequence, through a cache, in pieces of these rows; outputs one after another. */
function inPieces(backend: Backend, s: Settings, rows: Rows, pieces: number[]): Float32Array {
  const cache = backend.createCache(s.kvHeads, rows.q.rows + 5, s.headDim);
  const width = s.heads * s.headDim;
  const out = new Float32Array(rows.q.rows * width);
  let index = 0;
  for (const count of pieces) {
    const piece = {
      q: part(rows.q, index, count),
      k: part(rows.k, index, count),
      v: part(rows.v, index, count),
    };
    const prefixEnd = Math.min(s.prefix ?? 0, rows.q.rows);
    const spans = [{ firstRow: 0, rows: count, index, prefixEnd, cache }];
    out.set(backend.attention({ ...piece, ...settingsOf(s), spans }), index * width);
    index += count;
  }
  return out;
}

/** A prefix that sees itself comes in one piece; then many rows, few and single ones. */
function piecesOf(total: number, prefix = 0): number[] {
  const first = Math.min(total, Math.max(prefix, 75));
  const pieces = [first];
  for (let left = total - first, next = 0; left > 0; next++) {
    const count = Math.min(left, [1, 7, 1, 2][next % 4]!);
    pieces.push(count);
    left -= count;
  }
  return pieces;
}

/** Single rows, and a few, that end in the next block of 64 keys. */
const COMPANY = [1, 3, 1, 2];

/** Sequences of these lengths go on by the rows of COMPANY, piece by piece: all at once, or each by itself. */
function inCompany(
  backend: Backend,
  s: Settings,
  random: Random,
  together: boolean,
  lengths: number[] = [120, 30, 64, 1, 97],
): Float32Array {
  const count = COMPANY.reduce((sum, piece) => sum + piece, 0);
  const width = s.heads * s.headDim;
  const sequences = lengths.map((earlier) => {
    const rows = draw(random, s, earlier + count);
    const cache = backend.createCache(s.kvHeads, earlier + count + 40, s.headDim);
    return { earlier, rows, cache, prefixEnd: Math.min(s.prefix ?? 0, earlier) };
  });
  const attend = (of: typeof sequences, rowsOf: (earlier: number) => [number, number]) => {
    const parts = of.map(({ earlier, rows, cache, prefixEnd }) => {
      const [index, each] = rowsOf(earlier);
      const piece = (m: Matrix) => part(m, index, each);
      const span = { firstRow: 0, rows: each, index, prefixEnd, cache };
      return { span, q: piece(rows.q), k: piece(rows.k), v: piece(rows.v) };
    });
    let firstRow = 0;
    for (const { span } of parts) {
      span.firstRow = firstRow;
      firstRow += span.rows;
    }
    const joined = (of: "q" | "k" | "v"): Matrix => ({
      data: Float32Array.from(parts.flatMap((p) => [...p[of].data])),
      rows: firstRow,
      cols: parts[0]![of].cols,
    });
    const all = { q: joined("q"), k: joined("k"), v: joined("v") };
    return backend.attention({ ...all, ...settingsOf(s), spans: parts.map((p) => p.span) });
  };
  for (const sequence of sequences) attend([sequence], (earlier) => [0, earlier]);
  const out: Float32Array[] = [];
  let done = 0;
  for (const piece of COMPANY) {
    const rowsOf = (earlier: number): [number, number] => [earlier + done, piece];
    if (together) out.push(attend(sequences, rowsOf));
    else out.push(...sequences.map((sequence) => attend([sequence], rowsOf)));
    done += piece;
  }
  const all = new Float32Array(count * sequences.length * width);
  let at = 0;
  for (const piece of out) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

/** So many that each is a thread block's on a device with 132 processors, even with one key head. */
const MANY = Array.from({ length: 70 }, (_, i) => 1 + ((i * 37) % 75));
const OF_MANY = Object.entries(SETTINGS).filter(([, s]) => [256, 128, 34].includes(s.headDim));

export const cases: CudaCase[] = Object.entries(SETTINGS).flatMap(([name, s]): CudaCase[] => [
  {
    name: `${name}: without a cache`,
    // Scores and weights are rounded to 8 bits on the way.
    tolerance: 8,
    run(backend, random) {
      const rows = draw(random, s, 100);
      const prefixEnd = Math.min(s.prefix ?? 0, 100);
      return backend.attention({
        ...rows,
        ...settingsOf(s),
        spans: [{ firstRow: 0, rows: 100, index: 0, prefixEnd }],
      });
    },
  },
  {
    name: `${name}: through a cache, in pieces`,
    tolerance: 8,
    run: (backend, random) =>
      inPieces(backend, s, draw(random, s, 150), piecesOf(150, Math.min(s.prefix ?? 0, 150))),
  },
  {
    name: `${name}: several sequences of a few rows, without a cache`,
    tolerance: 8,
    run(backend, random) {
      const spans = [0, 1, 2, 3, 4].map((i) => ({
        firstRow: 3 * i,
        rows: 3,
        index: 0,
        prefixEnd: s.prefix ? 3 : 0,
      }));
      return backend.attention({ ...draw(random, s, 15), ...settingsOf(s), spans });
    },
  },
  {
    name: `${name}: several sequences, a few rows of each`,
    tolerance: 8,
    run: (backend, random) => inCompany(backend, s, random, true),
  },
]);

cases.push(
  ...OF_MANY.map(
    ([name, s]): CudaCase => ({
      name: `${name}: many sequences, a few rows of each`,
      tolerance: 8,
      deviceOnly: true,
      run: (backend, random) => inCompany(backend, s, random, true, MANY),
    }),
  ),
);

cases.push({
  name: "the VAE's one of 512: more scores than are in memory at a time",
  tolerance: 8,
  deviceOnly: true,
  run(backend, random) {
    const s = SETTINGS["the VAE's one of 512"]!;
    const rows = 4200;
    const spans = [{ firstRow: 0, rows, index: 0, prefixEnd: rows }];
    return backend.attention({ ...draw(random, s, rows), ...settingsOf(s), spans });
  },
});

cases.push({
  name: "sequences of every kind in one call",
  tolerance: 8,
  run(backend, random) {
    const s = SETTINGS["Gemma 2's: 256, grouped, soft cap, rotary"]!;
    const lengths = [1, 90, 3, 66];
    const earlier = [130, 0, 30, 0];
    const caches = lengths.map((length, i) =>
      backend.createCache(s.kvHeads, length + earlier[i]! + 3, s.headDim),
    );
    lengths.forEach((_, i) => {
      if (earlier[i] === 0) return;
      backend.attention({
        ...draw(random, s, earlier[i]!),
        ...settingsOf(s),
        spans: [{ firstRow: 0, rows: earlier[i]!, index: 0, prefixEnd: 0, cache: caches[i]! }],
      });
    });
    let firstRow = 0;
    const spans = lengths.map((rows, i) => {
      const span = { firstRow, rows, index: earlier[i]!, prefixEnd: 0, cache: caches[i]! };
      firstRow += rows;
      return span;
    });
    return backend.attention({ ...draw(random, s, firstRow), ...settingsOf(s), spans });
  },
});

/** Decoding computes weights for 512 keys at a time: two rounds, and a window that begins in the first. */
const LONG: Record<string, Settings> = {
  "more keys than a round": { heads: 2, kvHeads: 1, headDim: 64, softCap: 5, ropeTheta: 10000 },
  "a window across two rounds": { heads: 2, kvHeads: 1, headDim: 64, window: 530 },
};
const LONG_ROWS = 600;
const LONG_PIECES = [LONG_ROWS - 9, 1, 7, 1];

cases.push(
  ...Object.entries(LONG).map(
    ([name, s]): CudaCase => ({
      name,
      tolerance: 8,
      run: (backend, random) => inPieces(backend, s, draw(random, s, LONG_ROWS), LONG_PIECES),
    }),
  ),
  {
    name: "gaps between rows, which are then not aligned",
    tolerance: 8,
    run(backend, random) {
      const s = SETTINGS["128, multi-query, window, rotary"]!;
      const inputs = new Inputs(random);
      const [q, k] = [s.heads * s.headDim, s.kvHeads * s.headDim];
      return backend.attention({
        q: inputs.matrix(72, q, 1, q + 3),
        k: inputs.matrix(72, k, 1, k + 5),
        v: inputs.matrix(72, k, 1, k + 1),
        ...settingsOf(s),
        spans: [
          { firstRow: 0, rows: 2, index: 0, prefixEnd: 0 },
          { firstRow: 2, rows: 70, index: 0, prefixEnd: 0 },
        ],
        outStride: q + 3,
      });
    },
  },
);

/** Many rows at once go to another kernel than few: the same bits must come of both. */
const invariant = (name: string, s: Settings, total: number, pieces: number[]): Invariant => ({
  name,
  run(backend, random) {
    const rows = draw(random, s, total);
    return {
      whole: inPieces(backend, s, rows, [total]),
      alone: inPieces(backend, s, rows, pieces),
    };
  },
});

const companyOf = (name: string, s: Settings, lengths?: number[]): Invariant => ({
  name: `${name}: ${lengths ? "many" : "several"} sequences at once`,
  deviceOnly: lengths !== undefined,
  run: (backend, { seed }) => ({
    whole: inCompany(backend, s, new Random(seed), true, lengths),
    alone: inCompany(backend, s, new Random(seed), false, lengths),
  }),
});

export const invariants: Invariant[] = [
  ...Object.entries(SETTINGS).map(([name, s]) =>
    invariant(name, s, 200, piecesOf(200, Math.min(s.prefix ?? 0, 200))),
  ),
  ...Object.entries(LONG).map(([name, s]) => invariant(name, s, LONG_ROWS, LONG_PIECES)),
  ...Object.entries(SETTINGS).map(([name, s]) => companyOf(name, s)),
  ...OF_MANY.map(([name, s]) => companyOf(name, s, MANY)),
];
