/** Gradients of attention: prefixes, windows, soft-caps, grouped heads, rotary embedding. */
import { existsSync, readFileSync } from "node:fs";
import { expectGradients, matrix, type Vector, weighted } from "../support/gradients";
import { expectClose, withRandom } from "../support/numbers";
import {
  describeBackends,
  expectSameBits,
  expectSameEverywhere,
  type Matrix,
  withBackend,
} from "../support/ops";

const { abs, exp, floor, max, sqrt, tanh, cos, sin } = Math;

/** Whether a backend rounds operands to bfloat16: GPUs of heads of whole 16 bytes, and CPUs with the instructions. */
const PAIRS =
  existsSync("/proc/cpuinfo") && /\bavx512_bf16\b/.test(readFileSync("/proc/cpuinfo", "utf8"));
const roundsIn = (backend: string, headDim: number) =>
  backend.startsWith("cuda") ? headDim % 8 === 0 : backend.startsWith("avx512") && PAIRS;

describeBackends("gradients of attention", (backend) => {
  interface Case {
    lengths: number[];
    prefixes: number[];
    heads: number;
    kvHeads: number;
    headDim: number;
    softCap?: number;
    window?: number;
    ropeTheta?: number;
  }
  const reference = (c: Case, v: Record<string, Vector>, scale: number) => {
    const d = c.headDim;
    const [qw, kw] = [c.heads * d, c.kvHeads * d];
    const rows = c.lengths.reduce((a, b) => a + b, 0);
    const out = new Float64Array(rows * qw);
    const turned = (x: Vector, at: number, position: number) => {
      const row = x.slice(at, at + d);
      if (!c.ropeTheta) return row;
      for (let i = 0; i < d / 2; i++) {
        const angle = position / c.ropeTheta ** ((2 * i) / d);
        const [a, b] = [x[at + i]!, x[at + d / 2 + i]!];
        row[i] = a * cos(angle) - b * sin(angle);
        row[d / 2 + i] = b * cos(angle) + a * sin(angle);
      }
      return row;
    };
    let first = 0;
    for (const [s, length] of c.lengths.entries()) {
      for (let h = 0; h < c.heads; h++) {
        const kv = floor(h / (c.heads / c.kvHeads));
        for (let i = 0; i < length; i++) {
          const q = turned(v.q!, (first + i) * qw + h * d, i + 1);
          const prefix = c.prefixes[s]!;
          const weights: [number, number][] = [];
          for (let j = 0; j < length; j++) {
            const both = i < prefix && j < prefix;
            const near = !c.window || j > i - c.window;
            if (!(both || (j <= i && near))) continue;
            const k = turned(v.k!, (first + j) * kw + kv * d, j + 1);
            let score = scale * q.reduce((sum, e, n) => sum + e * k[n]!, 0);
            if (c.softCap) score = c.softCap * tanh(score / c.softCap);
            weights.push([j, exp(score)]);
          }
          const total = weights.reduce((sum, [, w]) => sum + w, 0);
          for (const [j, w] of weights)
            for (let n = 0; n < d; n++) {
              const at = (first + i) * qw + h * d + n;
              out[at] = out[at]! + (w / total) * v.v![(first + j) * kw + kv * d + n]!;
            }
        }
      }
      first += length;
    }
    return out;
  };

  test.each<[string, Case]>([
    ["causal", { lengths: [5, 9], prefixes: [0, 0], heads: 2, kvHeads: 2, headDim: 6 }],
    [
      "a bidirectional prefix, rotary",
      { lengths: [11, 3], prefixes: [6, 3], heads: 2, kvHeads: 1, headDim: 8, ropeTheta: 100 },
    ],
    [
      "grouped heads, soft-cap and window",
      {
        lengths: [13, 7],
        prefixes: [5, 0],
        heads: 6,
        kvHeads: 2,
        headDim: 10,
        softCap: 2,
        window: 4,
        ropeTheta: 10000,
      },
    ],
    [
      "all in both directions",
      { lengths: [17], prefixes: [17], heads: 1, kvHeads: 1, headDim: 20 },
    ],
    [
      "longer than a tile, the window shorter than the prefix",
      {
        lengths: [45, 3, 38],
        prefixes: [20, 0, 33],
        heads: 2,
        kvHeads: 1,
        headDim: 4,
        softCap: 3,
        window: 9,
        ropeTheta: 50,
      },
    ],
    [
      "longer than a block of rows",
      {
        lengths: [7, 131],
        prefixes: [0, 25],
        heads: 2,
        kvHeads: 1,
        headDim: 4,
        softCap: 3,
        window: 60,
        ropeTheta: 50,
      },
    ],
    [
      "a window as large as its type, which is none",
      { lengths: [70, 9], prefixes: [3, 0], heads: 2, kvHeads: 1, headDim: 8, window: 2 ** 31 - 1 },
    ],
    // Kernels differ by the size of a head.
    ...[80, 136, 260].map((headDim): [string, Case] => [
      `heads of ${headDim}`,
      { lengths: [19], prefixes: [4], heads: 2, kvHeads: 1, headDim, ropeTheta: 100 },
    ]),
  ])("%s", (_, c) => {
    withRandom((random) => {
      const rows = c.lengths.reduce((a, b) => a + b, 0);
      const [qw, kw] = [c.heads * c.headDim, c.kvHeads * c.headDim];
      const inputs = {
        q: random.floats(rows * qw),
        k: random.floats(rows * kw),
        v: random.floats(rows * kw),
      };
      const dout = random.floats(rows * qw);
      const scale = Math.fround(1 / sqrt(c.headDim));
      let first = 0;
      const spans = c.lengths.map((length, i) => {
        const span = { firstRow: first, rows: length, prefixEnd: c.prefixes[i]! };
        first += length;
        return span;
      });
      const results = backend().training({
        ...c,
        name: "attentionBackward",
        q: matrix(inputs.q, rows, qw),
        k: matrix(inputs.k, rows, kw),
        v: matrix(inputs.v, rows, kw),
        dout: matrix(dout, rows, qw),
        scale,
        firstPosition: 1,
        spans,
      });
      const exact = reference(
        c,
        {
          q: Float64Array.from(inputs.q),
          k: Float64Array.from(inputs.k),
          v: Float64Array.from(inputs.v),
        },
        scale,
      );
      expectClose(results.out!, exact, 1e-5);
      const got = { q: results.dq!, k: results.dk!, v: results.dv! };
      expectGradients(
        random,
        (v) => weighted(reference(c, v, scale), dout),
        inputs,
        got,
        rows * 4,
        8,
      );
    })();
  });
});

describeBackends("gradients of attention in company", (backend) => {
  test.each([4, 64, 136])("a sequence's bits are its own, heads of %d", (headDim) => {
    withRandom((random) => {
      const lengths = [21, 37, 5];
      const rows = lengths.reduce((a, b) => a + b);
      const [qw, kw] = [4 * headDim, 2 * headDim];
      const inputs = {
        q: random.matrix(rows, qw),
        k: random.matrix(rows, kw),
        v: random.matrix(rows, kw),
        dout: random.matrix(rows, qw),
      };
      const common = {
        name: "attentionBackward",
        ...{ heads: 4, kvHeads: 2, headDim, scale: 0.25, softCap: 4, window: 11, ropeTheta: 100 },
      };
      const first = lengths[0]!;
      const among = backend().training({
        ...common,
        ...inputs,
        spans: [
          { firstRow: 0, rows: first, prefixEnd: 9 },
          { firstRow: first, rows: 37, prefixEnd: 20 },
          { firstRow: first + 37, rows: 5, prefixEnd: 0 },
        ],
      });
      const part = ({ data, cols }: Matrix): Matrix => ({
        data: data.slice(first * cols, (first + 37) * cols),
        rows: 37,
        cols,
      });
      const alone = backend().training({
        ...common,
        q: part(inputs.q),
        k: part(inputs.k),
        v: part(inputs.v),
        dout: part(inputs.dout),
        spans: [{ firstRow: 0, rows: 37, prefixEnd: 20 }],
      });
      for (const [name, width] of [
        ["dq", qw],
        ["dk", kw],
        ["dv", kw],
      ] as const)
        expectSameBits(among[name]!.slice(first * width, (first + 37) * width), alone[name]!, name);
    })();
  });
});

describeBackends("gradients of attention from rounded operands", (backend, { name }) => {
  test.each([
    ["without rotary embedding", { headDim: 24 }],
    ["rotary, soft-capped, odd rows", { headDim: 10, softCap: 3, window: 50, ropeTheta: 100 }],
  ])("%s", (_, settings) => {
    withRandom((random) => {
      const [rows, kept] = [117, 101];
      const matrices = {
        q: random.matrix(rows, 4 * settings.headDim),
        k: random.matrix(rows, 2 * settings.headDim),
        v: random.matrix(rows, 2 * settings.headDim),
        dout: random.matrix(rows, 4 * settings.headDim),
      };
      const run = (bf16: 0 | 1, alone = false) =>
        backend().training({
          name: "attentionBackward",
          ...{ heads: 4, kvHeads: 2, scale: 0.2, firstPosition: 1, bf16, ...settings },
          ...Object.fromEntries(
            Object.entries(matrices).map(([key, { data, cols }]): [string, Matrix] => [
              key,
              alone ? { data: data.slice(0, kept * cols), rows: kept, cols } : { data, rows, cols },
            ]),
          ),
          spans: [
            { firstRow: 0, rows: kept, prefixEnd: 30 },
            ...(alone ? [] : [{ firstRow: kept, rows: rows - kept, prefixEnd: 0 }]),
          ],
        });
      const [exact, rounded, alone] = [run(0), run(1), run(1, true)];
      for (const result of ["out", "dq", "dk", "dv"]) {
        const [a, b] = [exact[result]!, rounded[result]!];
        const most = a.reduce((m, v) => max(m, abs(v)), 0);
        // Operands of three products in a row keep 8 bits.
        expectClose(b, Float64Array.from(a), 2 ** -5 * most);
        const same = a.every((v, i) => v === b[i]);
        expect({ result, rounds: !same }).toEqual({
          result,
          rounds: roundsIn(name, settings.headDim),
        });
        expectSameBits(b.slice(0, alone[result]!.length), alone[result]!, result);
      }
    })();
  });
});

test("scratch grows with a sequence's length, not with its square", () => {
  withRandom((random) => {
    const rows = 6000;
    const inputs = () => random.matrix(rows, 4);
    const args = {
      name: "attentionBackward",
      ...{ heads: 1, kvHeads: 1, headDim: 4, scale: 0.5 },
      ...{ q: inputs(), k: inputs(), v: inputs(), dout: inputs() },
      spans: [{ firstRow: 0, rows, prefixEnd: 0 }],
    };
    withBackend({ threads: 1 }, (backend) => {
      const before = process.memoryUsage().rss;
      const { dq } = backend.training(args);
      // One matrix of all rows with each other would be 137 MiB.
      expect(process.memoryUsage().rss - before).toBeLessThan(rows ** 2 * 4);
      expect(dq!.every(Number.isFinite)).toBe(true);
    });
  })();
});

test("gradients have the same bits on any number of threads", () => {
  withRandom((random) => {
    const rows = 300;
    const spans = [
      { firstRow: 0, rows: 200, prefixEnd: 50 },
      { firstRow: 200, rows: 100, prefixEnd: 0 },
    ];
    const args = {
      name: "attentionBackward",
      ...{ heads: 4, kvHeads: 2, headDim: 16, scale: 0.25, ropeTheta: 100, spans },
      q: random.matrix(rows, 64),
      k: random.matrix(rows, 32),
      v: random.matrix(rows, 32),
      dout: random.matrix(rows, 64),
    };
    for (const result of ["out", "dq", "dk", "dv"]) {
      expectSameEverywhere((backend) => backend.training(args)[result]!, 1e-4);
      const rounded = { ...args, bf16: 1 };
      expectSameEverywhere((backend) => backend.training(rounded)[result]!, 2 ** -5);
    }
  })();
});
