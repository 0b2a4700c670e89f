/**
 * The operations of training. Results are compared with float64 references; gradients with central differences of
 * those references, which are exact to about 1e-9.
 */
import { activate } from "../support/activations";
import {
  dotBound,
  expectClose,
  fromBFloat16,
  packed,
  type Random,
  toBFloat16,
  UNIT_ROUNDOFF,
  withRandom,
} from "../support/numbers";
import { type Backend, describeBackends, expectSameEverywhere, type Matrix } from "../support/ops";

const { abs, exp, floor, log, max, min, PI, sqrt, tanh, cos, sin } = Math;

type Vector = Float64Array;
type Inputs = Record<string, Float32Array>;

/** Elements of each input whose gradients are checked; all, where there are fewer. */
const CHECKED = 24;

/**
 * The gradients of `loss` (in float64) by central differences against what an operation gave. `terms`: how many
 * products a gradient sums up, about; `scale`: its size where it may cancel to less.
 */
function expectGradients(
  random: Random,
  loss: (x: Record<string, Vector>) => number,
  inputs: Inputs,
  got: Record<string, Float32Array>,
  terms: number,
  scale = 1,
): void {
  const at: Record<string, Vector> = {};
  for (const [name, values] of Object.entries(inputs)) at[name] = Float64Array.from(values);
  for (const name of Object.keys(got)) {
    const [values, gradient] = [at[name]!, got[name]!];
    expect(gradient.length).toBe(values.length);
    const all = values.length <= CHECKED;
    for (let n = 0; n < min(CHECKED, values.length); n++) {
      const i = all ? n : random.integer(values.length);
      const [middle, h] = [values[i]!, 1e-5 * max(1, abs(values[i]!))];
      values[i] = middle + h;
      const up = loss(at);
      values[i] = middle - h;
      const down = loss(at);
      values[i] = middle;
      const slope = (up - down) / (2 * h);
      // Intermediate values are rounded a few times each, beside the sum itself.
      const bound = 4 * dotBound(terms, max(abs(slope), scale));
      if (!(abs(gradient[i]! - slope) <= bound))
        throw new Error(`d ${name}[${i}] is ${gradient[i]}, expected ${slope} within ${bound}`);
    }
  }
}

const weighted = (out: ArrayLike<number>, dout: ArrayLike<number>) => {
  let sum = 0;
  for (let i = 0; i < out.length; i++) sum += out[i]! * dout[i]!;
  return sum;
};
const matrix = (data: Float32Array, rows: number, cols: number): Matrix => ({ data, rows, cols });
const difference = (a: Float32Array, b: Float32Array) => a.map((v, i) => v - b[i]!);

describeBackends("gemm", (backend) => {
  const product = (a: Matrix, ta: boolean, b: Matrix, tb: boolean) => {
    const [m, k] = ta ? [a.cols, a.rows] : [a.rows, a.cols];
    const n = tb ? b.rows : b.cols;
    const [x, y] = [packed(a), packed(b)];
    const out = new Float64Array(m * n);
    const size = new Float64Array(m * n);
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++)
        for (let c = 0; c < k; c++) {
          const term = x[ta ? c * m + i : i * k + c]! * y[tb ? j * k + c : c * n + j]!;
          out[i * n + j] = out[i * n + j]! + term;
          size[i * n + j] = size[i * n + j]! + abs(term);
        }
    return { out, bound: size.map((s) => dotBound(k, s) + UNIT_ROUNDOFF ** 2) };
  };
  const SHAPES = [
    [1, 1, 1],
    [3, 5, 2],
    [13, 33, 7],
    [37, 29, 41],
    [100, 64, 257],
  ] as const;

  test.each(SHAPES)("%d x %d over %d, either side transposed", (m, n, k) => {
    withRandom((random) => {
      for (const ta of [false, true])
        for (const tb of [false, true]) {
          const [ar, ac] = ta ? [k, m] : [m, k];
          const [br, bc] = tb ? [n, k] : [k, n];
          const a = random.matrix(ar, ac, 1, ac + 3);
          const b = random.matrix(br, bc, 1, bc + 1);
          const args = { name: "gemm", a, b, transposeA: ta, transposeB: tb };
          const { out, bound } = product(a, ta, b, tb);
          expectClose(backend().training(args).out!, out, bound);
          const bias = random.floats(n);
          const start = random.matrix(m, n);
          const sum = out.map((v, i) => v + bias[i % n]! + start.data[i]!);
          expectClose(
            backend().training({ ...args, bias, start }).out!,
            sum,
            bound.map((v, i) => v + 2 * UNIT_ROUNDOFF * (abs(sum[i]!) + abs(bias[i % n]!))),
          );
        }
    })();
  });

  test("bfloat16 rounds the operands, and nothing else", () => {
    withRandom((random) => {
      const [m, n, k] = [19, 37, 75];
      const round = (x: Matrix) => ({
        ...x,
        data: x.data.map((v) => fromBFloat16(toBFloat16(v))),
      });
      const [a, b] = [random.matrix(m, k), random.matrix(n, k)];
      const args = { name: "gemm", a, b, transposeB: true, bf16: true };
      const { out, bound } = product(round(a), false, round(b), true);
      expectClose(backend().training(args).out!, out, bound);
    })();
  });
});

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

describeBackends("gradients of norms", (backend) => {
  const EPS = Math.fround(1e-6);

  test.each([3, 19, 64, 130])("rms_norm of %d", (n) => {
    withRandom((random) => {
      const rows = 70; // more than one run
      const [x, dout] = [random.floats(rows * n), random.floats(rows * n)];
      const weight = random.floats(n, 0.5);
      const norm = (v: Record<string, Vector>) => {
        const out = new Float64Array(rows * n);
        for (let r = 0; r < rows; r++) {
          const row = v.x!.subarray(r * n, (r + 1) * n);
          const root = 1 / sqrt(row.reduce((s, e) => s + e * e, 0) / n + EPS);
          for (let c = 0; c < n; c++) out[r * n + c] = row[c]! * root * (1 + v.weight![c]!);
        }
        return weighted(out, dout);
      };
      const start = random.floats(n);
      const args = {
        name: "rmsNormBackward",
        x: matrix(x, rows, n),
        weight,
        eps: EPS,
        dout: matrix(dout, rows, n),
        startWeight: start,
      };
      const { dx, dweight } = backend().training(args);
      const got = { x: dx!, weight: difference(dweight!, start) };
      expectGradients(random, norm, { x, weight }, got, rows + n, 8);
      const from = random.floats(rows * n);
      const more = backend().training({ ...args, start: matrix(from.slice(), rows, n) }).dx!;
      expectClose(
        more,
        dx!.map((v, i) => v + from[i]!),
        1e-5,
      );
    })();
  });

  test.each([
    [5, true, true],
    [37, true, true],
    [64, false, true],
    [24, true, false],
  ])("layer norm of %d (affine: %p, modulated: %p)", (n, affine, modulated) => {
    withRandom((random) => {
      const rows = 67;
      const inputs: Inputs = { x: random.floats(rows * n, 1, 0.5) };
      if (affine)
        Object.assign(inputs, { weight: random.floats(n, 0.3, 1), bias: random.floats(n) });
      if (modulated)
        Object.assign(inputs, {
          shift: random.floats(rows * n),
          scale: random.floats(rows * n, 0.5),
        });
      const dout = random.floats(rows * n);
      const norm = (v: Record<string, Vector>) => {
        const out = new Float64Array(rows * n);
        for (let r = 0; r < rows; r++) {
          const row = v.x!.subarray(r * n, (r + 1) * n);
          const mean = row.reduce((s, e) => s + e, 0) / n;
          const root = 1 / sqrt(row.reduce((s, e) => s + (e - mean) ** 2, 0) / n + EPS);
          for (let c = 0; c < n; c++) {
            const i = r * n + c;
            let y = (row[c]! - mean) * root;
            if (v.weight) y = y * v.weight[c]! + v.bias![c]!;
            if (v.shift) y = y * (1 + v.scale![i]!) + v.shift[i]!;
            out[i] = y;
          }
        }
        return out;
      };
      const results = backend().training({
        name: "modulatedNorm",
        x: matrix(inputs.x!, rows, n),
        ...(affine && { weight: inputs.weight, bias: inputs.bias }),
        ...(modulated && {
          shift: matrix(inputs.shift!, rows, n),
          scale: matrix(inputs.scale!, rows, n),
        }),
        eps: EPS,
        dout: matrix(dout, rows, n),
        startWeight: new Float32Array(n),
        startBias: new Float32Array(n),
      });
      const exact = norm(
        Object.fromEntries(Object.entries(inputs).map(([k, v]) => [k, Float64Array.from(v)])),
      );
      expectClose(
        results.out!,
        exact,
        exact.map((v) => UNIT_ROUNDOFF * (sqrt(n) + 16) * (abs(v) + 4)),
      );
      const got: Record<string, Float32Array> = { x: results.dx! };
      for (const name of ["weight", "bias", "shift", "scale"])
        if (inputs[name]) got[name] = results[`d${name}`]!;
      // Few columns make small deviations, whose inverse multiplies the gradient of x.
      expectGradients(random, (v) => weighted(norm(v), dout), inputs, got, rows + n, 16);
    })();
  });

  test.each([false, true])("group norm, SiLU after it: %p", (silu) => {
    withRandom((random) => {
      const [images, pixels, groups, channels] = [3, 12, 4, 24];
      const size = images * pixels * channels;
      const inputs = {
        x: random.floats(size, 1, 0.3),
        weight: random.floats(channels, 0.3, 1),
        bias: random.floats(channels),
      };
      const dout = random.floats(size);
      const norm = (v: Record<string, Vector>) => {
        const width = channels / groups;
        const out = new Float64Array(size);
        for (let image = 0; image < images; image++)
          for (let g = 0; g < groups; g++) {
            const at: number[] = [];
            for (let p = 0; p < pixels; p++)
              for (let c = 0; c < width; c++)
                at.push((image * pixels + p) * channels + g * width + c);
            const mean = at.reduce((s, i) => s + v.x![i]!, 0) / at.length;
            const root =
              1 / sqrt(at.reduce((s, i) => s + (v.x![i]! - mean) ** 2, 0) / at.length + EPS);
            for (const i of at) {
              const y =
                (v.x![i]! - mean) * root * v.weight![i % channels]! + v.bias![i % channels]!;
              out[i] = silu ? y / (1 + exp(-y)) : y;
            }
          }
        return weighted(out, dout);
      };
      const args = {
        name: "groupNormBackward",
        x: matrix(inputs.x, images * pixels, channels),
        images,
        groups,
        weight: inputs.weight,
        bias: inputs.bias,
        eps: EPS,
        silu,
        dout: matrix(dout, images * pixels, channels),
        startWeight: new Float32Array(channels),
        startBias: new Float32Array(channels),
      };
      const { dx, dweight, dbias } = backend().training(args);
      const got = { x: dx!, weight: dweight!, bias: dbias! };
      expectGradients(random, norm, inputs, got, images * pixels * 6, 4);
    })();
  });
});

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

describeBackends("rows by index, and patches", (backend) => {
  test("gather and scatter: negative indices are left out, equal ones add up", () => {
    withRandom((random) => {
      const [rows, table, cols] = [9, 4, 70];
      const index = Int32Array.of(2, -1, 0, 2, 2, 3, -1, 0, 2);
      const [t, start, dout, from] = [
        random.floats(table * cols),
        random.floats(rows * cols),
        random.floats(rows * cols),
        random.floats(table * cols),
      ];
      const scale = 1.5;
      const { out, dtable } = backend().training({
        name: "gatherRows",
        index,
        scale,
        table: matrix(t, table, cols),
        start: matrix(start.slice(), rows, cols),
        dout: matrix(dout, rows, cols),
        startTable: matrix(from.slice(), table, cols),
      });
      const wanted = Float64Array.from(start);
      const gradient = Float64Array.from(from);
      for (const [i, at] of index.entries())
        for (let c = 0; at >= 0 && c < cols; c++) {
          wanted[i * cols + c] = wanted[i * cols + c]! + scale * t[at * cols + c]!;
          gradient[at * cols + c] = gradient[at * cols + c]! + scale * dout[i * cols + c]!;
        }
      expectClose(out!, wanted, 1e-6);
      expectClose(dtable!, gradient, 3e-6);
    })();
  });

  test.each([
    [3, 1, 1, 1, 1],
    [3, 2, 1, 0, 1],
    [3, 1, 2, 1, 1],
    [1, 1, 1, 0, 0],
  ])(
    "kernel %d, stride %d, enlarged %d, padding %d and %d",
    (kernel, stride, upsample, padBefore, padAfter) => {
      withRandom((random) => {
        const [images, height, width, channels] = [2, 4, 6, 5];
        const side = (n: number) =>
          floor((n * upsample + padBefore + padAfter - kernel) / stride) + 1;
        const [rows, cols] = [images * side(height) * side(width), kernel * kernel * channels];
        const x = random.floats(images * height * width * channels);
        const dout = random.floats(rows * cols);
        const start = random.floats(x.length);
        const { out, dx } = backend().training({
          name: "patches",
          x: matrix(x, images * height * width, channels),
          dout: matrix(dout, rows, cols),
          start: matrix(start.slice(), images * height * width, channels),
          images,
          height,
          width,
          upsample,
          kernel,
          stride,
          padBefore,
          padAfter,
        });
        const wanted = new Float64Array(rows * cols);
        const gradient = Float64Array.from(start);
        for (let r = 0; r < rows; r++) {
          const image = floor(r / (side(height) * side(width)));
          const [oy, ox] = [floor(r / side(width)) % side(height), r % side(width)];
          for (let n = 0; n < cols; n++) {
            const c = n % channels;
            const tap = floor(n / channels);
            const sy = oy * stride + floor(tap / kernel) - padBefore;
            const sx = ox * stride + (tap % kernel) - padBefore;
            if (sy < 0 || sx < 0 || sy >= height * upsample || sx >= width * upsample) continue;
            const at =
              ((image * height + floor(sy / upsample)) * width + floor(sx / upsample)) * channels +
              c;
            wanted[r * cols + n] = x[at]!;
            gradient[at] = gradient[at]! + dout[r * cols + n]!;
          }
        }
        expectClose(out!, wanted, 0);
        // At most 36 terms of size 4.
        expectClose(dx!, gradient, dotBound(36, 64));
      })();
    },
  );
});

describeBackends("losses", (backend) => {
  test.each([
    [3, 0],
    [50, 0],
    [1100, 5],
    [2049, 30],
  ])("cross-entropy over %d words, cap %d", (vocab, cap) => {
    withRandom((random) => {
      const rows = 6;
      const logits = random.floats(rows * vocab, 4);
      const targets = Int32Array.from({ length: rows }, () => random.integer(vocab));
      const scale = 0.25;
      const losses = (v: Vector) =>
        Float64Array.from({ length: rows }, (_, r) => {
          const row = v
            .subarray(r * vocab, (r + 1) * vocab)
            .map((z) => (cap ? cap * tanh(z / cap) : z));
          const top = row.reduce((a, b) => max(a, b));
          return log(row.reduce((s, z) => s + exp(z - top), 0)) + top - row[targets[r]!]!;
        });
      const results = backend().training({
        name: "crossEntropy",
        logits: matrix(logits.slice(), rows, vocab),
        targets,
        cap,
        scale,
      });
      const exact = losses(Float64Array.from(logits));
      expectClose(
        results.losses!,
        exact,
        exact.map((v) => 8 * UNIT_ROUNDOFF * (v + 16)),
      );
      expectGradients(
        random,
        (v) => scale * losses(v.logits!).reduce((a, b) => a + b, 0),
        { logits },
        { logits: results.dlogits! },
        64,
        0.25,
      );
    })();
  });

  /** IDDPM's tables in float64. */
  const bars = (() => {
    const bar = (s: number) => cos((((s + 0.008) / 1.008) * PI) / 2) ** 2;
    let product = 1;
    return Float64Array.from({ length: 1000 }, (_, t) => {
      product *= 1 - min(1 - bar((t + 1) / 1000) / bar(t / 1000), 0.999);
      return product;
    });
  })();

  test.each([
    ["flow", 1],
    ["ddpm", 1],
    ["ddpm", 5],
  ] as const)('the diffusion loss of objective "%s", cap %d', (objective, cap) => {
    withRandom((random) => {
      const flow = objective === "flow";
      const channels = 5;
      const timesteps = flow ? [0, 12.5, 400, 999, 1000] : [0, 1, 250, 700, 980];
      const rows = timesteps.length;
      const index = Int32Array.of(0, 1, 1, 0, 1);
      const x0 = random.floats(2 * channels, 0.8);
      x0[0] = 1.5; // the last bins of the likelihood are open
      x0[1] = -1.5;
      const noise = random.floats(rows * channels);
      const outputs = (flow ? 1 : 2) * channels;
      // Near the noise, or the bound's exponentials leave float32.
      const output = Float32Array.from({ length: rows * outputs }, (_, i) => {
        const [r, c] = [floor(i / outputs), i % outputs];
        return c < channels && !flow
          ? noise[r * channels + c]! + 0.05 * random.normal()
          : 0.5 * random.normal();
      });
      const scale = 0.5;
      const detached = Float64Array.from(output);
      const rowLoss = (out: Vector, r: number) => {
        let square = 0;
        let bound = 0;
        for (let c = 0; c < channels; c++) {
          const [start, epsilon] = [x0[index[r]! * channels + c]!, noise[r * channels + c]!];
          if (flow) {
            square += (out[r * outputs + c]! - (epsilon - start)) ** 2;
            continue;
          }
          const t = timesteps[r]!;
          const [bar, before] = [bars[t]!, t > 0 ? bars[t - 1]! : 1];
          const beta = 1 - bar / before;
          const variance = (s: number) => {
            const b = s > 0 ? bars[s - 1]! : 1;
            return log(((1 - bars[s]! / b) * (1 - b)) / (1 - bars[s]!));
          };
          const least = variance(max(t, 1));
          square += (out[r * outputs + c]! - epsilon) ** 2 * min(max((1 - bar) / bar, 1), cap);
          const x = sqrt(bar) * start + sqrt(1 - bar) * epsilon;
          const guess = sqrt(1 / bar) * x - sqrt(1 / bar - 1) * detached[r * outputs + c]!;
          const [c0, cx] = [
            (beta * sqrt(before)) / (1 - bar),
            ((1 - before) * sqrt(1 - beta)) / (1 - bar),
          ];
          const mean = c0 * guess + cx * x;
          const f = (out[r * outputs + channels + c]! + 1) / 2;
          const logVariance = f * log(beta) + (1 - f) * least;
          if (t === 0) {
            const cdf = (u: number) => 0.5 * (1 + tanh(sqrt(2 / PI) * (u + 0.044715 * u ** 3)));
            const inverse = exp(-0.5 * logVariance);
            const [hi, lo] = [
              cdf(inverse * (start - mean + 1 / 255)),
              cdf(inverse * (start - mean - 1 / 255)),
            ];
            const p = start < -0.999 ? hi : start > 0.999 ? 1 - lo : hi - lo;
            bound -= log(max(p, 1e-12));
          } else {
            const diff = c0 * start + cx * x - mean;
            bound +=
              0.5 *
              (logVariance - least - 1 + exp(least - logVariance) + diff ** 2 * exp(-logVariance));
          }
        }
        return square / channels + bound / channels / log(2);
      };
      const results = backend().training({
        name: "diffusionLoss",
        flow,
        cap,
        index,
        timesteps,
        output: matrix(output, rows, outputs),
        x0: matrix(x0, 2, channels),
        noise: matrix(noise, rows, channels),
        scale,
      });
      const noised = Float64Array.from(noise, (epsilon, i) => {
        const r = floor(i / channels);
        const start = x0[index[r]! * channels + (i % channels)]!;
        const t = timesteps[r]!;
        return flow
          ? (1 - t / 1000) * start + (t / 1000) * epsilon
          : sqrt(bars[t]!) * start + sqrt(1 - bars[t]!) * epsilon;
      });
      expectClose(results.noised!, noised, 1e-6);
      const losses = (out: Vector) => timesteps.map((_, r) => rowLoss(out, r));
      const exact = losses(Float64Array.from(output));
      // Tables are rounded once; at low timesteps differences of their products are divided by variances.
      expectClose(
        results.losses!,
        exact,
        exact.map((v) => 3e-4 * (abs(v) + 1)),
      );
      const got = results.doutput!;
      const total = (v: Record<string, Vector>) =>
        scale * losses(v.output!).reduce((a, b) => a + b, 0);
      const size = max(
        1,
        got.reduce((a, b) => max(a, abs(b)), 0),
      );
      expectGradients(random, total, { output }, { output: got }, flow ? 16 : 1e5, size);
    })();
  });

  test("time features and training noise are those of drawing", () => {
    const values = [0, 1, 37.5, 999];
    const { out } = backend().training({ name: "timeFeatures", times: values });
    const wanted = values.flatMap((t) => {
      const angles = Array.from({ length: 128 }, (_, i) => t * exp((-log(10000) * i) / 128));
      return [...angles.map(cos), ...angles.map(sin)];
    });
    // An angle of 999 is known to 999 units of roundoff, and frequencies are rounded as well.
    expectClose(out!, wanted, 999 * 4 * UNIT_ROUNDOFF);
    const noise = (seed: bigint, counters: number[]) =>
      backend().training({ name: "trainingNoise", seed, counters, channels: 6 }).out!;
    const [one, two] = [noise(1n, [3, 2 ** 32 + 3]), noise(2n, [3])];
    expect(noise(1n, [3])).toEqual(one.slice(0, 6));
    expect(one.slice(0, 6)).not.toEqual(one.slice(6));
    expect(two).not.toEqual(one.slice(0, 6));
    const many = noise(
      7n,
      Array.from({ length: 4000 }, (_, i) => i),
    );
    const mean = many.reduce((a, b) => a + b, 0) / many.length;
    const square = many.reduce((a, b) => a + b * b, 0) / many.length;
    // 24000 draws: five standard deviations.
    expect(abs(mean)).toBeLessThan(5 / sqrt(24000));
    expect(abs(square - 1)).toBeLessThan(5 * sqrt(2 / 24000));
  });
});

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

test("the same bits on any number of threads", () => {
  withRandom((random) => {
    const [m, n, k] = [300, 70, 150];
    const [a, b] = [random.matrix(m, k), random.matrix(n, k)];
    const product = (bf16: boolean) => (backend: Backend) =>
      backend.training({ name: "gemm", a, b, transposeB: true, bf16 }).out!;
    expectSameEverywhere(product(false), 1e-5);
    // Processors that multiply pairs of bfloat16 add them up in pairs.
    expectSameEverywhere(product(true), 1e-5);
    const [x, dout] = [random.matrix(m, n), random.matrix(m, n)];
    const [weight, startWeight] = [random.floats(n), new Float32Array(n)];
    const norm = { name: "rmsNormBackward", x, weight, eps: 1e-6, dout, startWeight };
    expectSameEverywhere((backend) => backend.training(norm).dweight!, 1e-5);
    expectSameEverywhere((backend) => backend.training(norm).dx!, 1e-5);
    const sum = { name: "columnSum", x, start: startWeight };
    expectSameEverywhere((backend) => backend.training(sum).out!, 1e-5);
    const spans = [
      { firstRow: 0, rows: 200, prefixEnd: 50 },
      { firstRow: 200, rows: 100, prefixEnd: 0 },
    ];
    const heads = { heads: 4, kvHeads: 2, headDim: 16, scale: 0.25, ropeTheta: 100, spans };
    const [q, keys, values] = [random.matrix(m, 64), random.matrix(m, 32), random.matrix(m, 32)];
    const attention = {
      ...heads,
      name: "attentionBackward",
      q,
      k: keys,
      v: values,
      dout: random.matrix(m, 64),
    };
    for (const result of ["dq", "dk", "dv"])
      expectSameEverywhere((backend) => backend.training(attention)[result]!, 1e-4);
  })();
});
