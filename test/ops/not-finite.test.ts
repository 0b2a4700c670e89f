/**
 * What is not finite stays so: a NaN among what a row is computed from is in its result on every instruction set and
 * on CUDA, whatever maximum, cap or limit lies between; and it is in no other row. So a checkpoint with broken weights
 * ends in NUMERICAL_ERROR (test/model/not-finite.test.ts) rather than in an answer.
 */
import { randomHead } from "../support/diffusion";
import { matrix } from "../support/gradients";
import { Random } from "../support/numbers";
import {
  addon,
  type Backend,
  describeBackends,
  expectSameBits,
  type Matrix,
  simulate,
  simulatedLibrary,
} from "../support/ops";

const { NaN: NAN, POSITIVE_INFINITY: INFINITE } = Number;
const BROKEN = [NAN, INFINITE, -INFINITE];

/** A copy with elements set. */
function broken<T extends { data: Float32Array | Uint16Array | Uint8Array }>(
  from: T,
  ...at: [index: number, value: number][]
): T {
  const data = from.data.slice();
  for (const [index, value] of at) data[index] = value;
  return { ...from, data };
}

const row = (data: Float32Array, cols: number, r: number) =>
  data.subarray(r * cols, (r + 1) * cols);

function expectAllNaN(values: Float32Array, what: string): void {
  const finite = values.findIndex((v) => !Number.isNaN(v));
  if (finite >= 0) throw new Error(`${what}: element ${finite} is ${values[finite]}, not NaN`);
}

/** Some of the values of a row that something broken went into. */
function expectSomeNaN(values: Float32Array, what: string): void {
  if (!values.some(Number.isNaN)) throw new Error(`${what}: no element is NaN but ${values}`);
}

function expectNoneFinite(values: Float32Array, what: string): void {
  const finite = values.findIndex(Number.isFinite);
  if (finite >= 0) throw new Error(`${what}: element ${finite} is ${values[finite]}`);
}

describeBackends("what is not finite", (backend) => {
  const random = new Random(3);

  test.each(BROKEN)("soft_cap of %d", (value) => {
    // Whole vectors and what is left over, and more than a task of them.
    for (const cols of [1, 7, 37, 20001]) {
      const x = random.matrix(2, cols, 20);
      const sound = backend().softCap({ x, cap: 30 });
      for (const at of new Set([0, cols >> 1, cols - 1])) {
        const out = backend().softCap({ x: broken(x, [at, value]), cap: 30 });
        expect(out[at]).toBeNaN();
        out[at] = sound[at]!;
        expectSameBits(out, sound, "the others");
      }
    }
  });

  test.each(["none", "silu", "gelu_tanh", "gelu_erf"] as const)("products and %s", (activation) => {
    const x = random.matrix(9, 70);
    const weight = random.weight("f32", 41, 70);
    const up = random.weight("f32", 41, 70);
    const bias = random.floats(41);
    const products = {
      linear: (x: Matrix) => backend().linear({ x, weight, bias, activation }),
      gatedLinear: (x: Matrix) => backend().gatedLinear({ x, gate: weight, up, activation }),
    };
    for (const [name, product] of Object.entries(products)) {
      const sound = product(x);
      for (const value of BROKEN) {
        const out = product(broken(x, [2 * 70 + 69, value]));
        if (Number.isNaN(value)) expectAllNaN(row(out, 41, 2), name);
        // An activation may take minus infinity to 0, but not all that infinite sums make of it.
        else
          expectNoneFinite(
            backend()
              .linear({ x: broken(x, [209, value]), weight })
              .subarray(82, 123),
            name,
          );
        for (const r of [0, 1, 3, 8]) expectSameBits(row(out, 41, r), row(sound, 41, r), name);
      }
    }
    // One weight is one column.
    for (const gate of [broken(weight, [5 * 70 + 3, NAN]), weight]) {
      const out = backend().gatedLinear({
        x,
        gate,
        up: gate === weight ? broken(up, [5 * 70 + 3, NAN]) : up,
        activation,
      });
      for (let r = 0; r < 9; r++) {
        expect(out[r * 41 + 5]).toBeNaN();
        expect(out[r * 41 + 4]).not.toBeNaN();
      }
    }
  });

  test.each(["silu", "gelu_tanh", "gelu_erf"] as const)("%s and its gradient", (activation) => {
    const [x, dout] = [random.floats(21), random.floats(21)];
    const run = (value: number, at: number) => {
      const [input, gradient] = [x, dout].map((v) => matrix(v.slice(), 1, 21)) as [Matrix, Matrix];
      input.data[at] = value;
      const { out } = backend().training({ name: "activation", x: input, activation });
      const args = { name: "activationBackward", x: input, activation, dout: gradient };
      return { out: out!, dx: backend().training(args).dx! };
    };
    for (const at of [0, 20]) {
      const { out, dx } = run(NAN, at);
      expect(out[at]).toBeNaN();
      expect(dx[at]).toBeNaN();
      expect(out.filter(Number.isNaN)).toHaveLength(1);
      expect(run(INFINITE, at).out[at]).not.toBeLessThan(INFINITE);
    }
  });

  test.each(BROKEN)("norms of %d", (value) => {
    const cols = 45;
    const x = random.matrix(3, cols);
    const [weight, bias, eps] = [random.floats(cols), random.floats(cols), 1e-6];
    const norms: Record<string, (x: Matrix) => Float32Array> = {
      rmsNorm: (x) => backend().rmsNorm({ x, weight, eps }),
      layerNorm: (x) => backend().layerNorm({ x, weight, bias, eps }),
    };
    for (const [name, norm] of Object.entries(norms)) {
      const sound = norm(x);
      const out = norm(broken(x, [cols + 7, value]));
      if (Number.isNaN(value)) expectAllNaN(row(out, cols, 1), name);
      else expectSomeNaN(row(out, cols, 1), name);
      for (const r of [0, 2]) expectSameBits(row(out, cols, r), row(sound, cols, r), name);
    }
    for (const silu of [false, true]) {
      const args = { groups: 3, weight, bias, eps, silu };
      const sound = backend().groupNorm({ x, ...args });
      const out = backend().groupNorm({ x: broken(x, [cols + 20, value]), ...args });
      const ofGroup = (v: Float32Array, g: number) =>
        v.filter((_, i) => Math.floor((i % cols) / 15) === g);
      if (Number.isNaN(value)) expectAllNaN(ofGroup(out, 1), "groupNorm");
      else expectSomeNaN(ofGroup(out, 1), "groupNorm");
      for (const g of [0, 2]) expectSameBits(ofGroup(out, g), ofGroup(sound, g), "groupNorm");
    }
  });

  attentionTests(backend);

  test.each([
    { flow: false, guided: false },
    { flow: false, guided: true },
    { flow: true, guided: false },
    { flow: true, guided: true },
  ])("diffusion_sample with a limit: flow $flow, guided $guided", ({ flow, guided }) => {
    const shape = { channels: 6, condition: 9, width: 20, depth: 1, flow, type: "f32" } as const;
    const head = randomHead(random, shape);
    const z = random.matrix(6, 9);
    const steps = flow ? addon.flowSteps(1000, 3) : addon.ddpmSteps(1000, 3);
    const tokens = Array.from({ length: 3 }, (_, i) => ({
      z: i,
      zEmpty: guided ? 3 + i : -1,
      guidance: 2,
      temperature: 1,
      x0Limit: 1.5,
      seed: 5n,
      cell: i,
    }));
    const sound = backend().diffusionSample({ head, z, steps, tokens });
    expectFinite(sound);
    // Its condition, or that of the empty prompt.
    for (const r of guided ? [1, 4] : [1])
      for (const value of BROKEN) {
        const out = backend().diffusionSample({
          head,
          z: broken(z, [9 * r + 8, value]),
          steps,
          tokens,
        });
        expectAllNaN(row(out, 6, 1), `z ${r} ${value}`);
        for (const t of [0, 2]) expectSameBits(row(out, 6, t), row(sound, 6, t), "other tokens");
      }
    // A weight of the last layer, whose outputs nothing but the limit follows.
    for (const value of BROKEN) {
      const { weight, bias } = head.finalLinear;
      const changed = bias.slice();
      changed[2] = value;
      const out = backend().diffusionSample({
        head: { ...head, finalLinear: { weight, bias: changed } },
        z,
        steps,
        tokens,
      });
      for (let t = 0; t < 3; t++) expectAllNaN(row(out, 6, t), `bias ${value}`);
    }
  });

  test.each([0, 30])("cross-entropy, cap %d", (cap) => {
    const [rows, vocab] = [4, 37];
    const logits = random.floats(rows * vocab, 3);
    const run = (...at: [number, number][]) =>
      backend().training({
        name: "crossEntropy",
        logits: broken(matrix(logits.slice(), rows, vocab), ...at),
        targets: Int32Array.of(1, 2, 3, 4),
        cap,
        scale: 1,
      });
    const sound = run().losses!;
    // Minus infinity without a cap is a logit of no weight.
    for (const value of cap ? BROKEN : BROKEN.slice(0, 2))
      for (const at of [0, 36]) {
        const { losses, dlogits } = run([vocab + at, value]);
        expect(losses![1]).toBeNaN();
        expectAllNaN(row(dlogits!, vocab, 1), "gradients");
        for (const r of [0, 2, 3]) expect(losses![r]).toBe(sound[r]);
      }
  });

  test.each([
    { flow: true, timestep: 500 },
    { flow: false, timestep: 500 },
    // The likelihood, whose logarithm has a floor.
    { flow: false, timestep: 0 },
  ])("the diffusion loss: flow $flow, timestep $timestep", ({ flow, timestep }) => {
    const channels = 5;
    const outputs = flow ? channels : 2 * channels;
    const run = (...at: [number, number][]) =>
      backend().training({
        name: "diffusionLoss",
        flow,
        cap: 1,
        index: Int32Array.of(0, 0),
        timesteps: [timestep, timestep],
        output: broken(matrix(random.floats(2 * outputs, 0.1), 2, outputs), ...at),
        x0: matrix(random.floats(channels, 0.5), 1, channels),
        noise: matrix(random.floats(2 * channels, 0.1), 2, channels),
        scale: 1,
      });
    expectFinite(run().losses!);
    for (let c = 0; c < outputs; c++) {
      const { losses } = run([outputs + c, NAN]);
      expect(losses![0]).not.toBeNaN();
      expect(losses![1]).toBeNaN();
    }
  });

  test.each([0, 2])("gradients of attention, cap %d", (softCap) => {
    // More rows than a tile, so that other blocks of keys follow.
    const [rows, d] = [90, 8];
    const floats = () => matrix(random.floats(rows * d), rows, d);
    const inputs = { q: floats(), k: floats(), v: floats(), dout: floats() };
    const run = (changed: Partial<typeof inputs>) =>
      backend().training({
        name: "attentionBackward",
        ...inputs,
        ...changed,
        heads: 1,
        kvHeads: 1,
        headDim: d,
        softCap,
        scale: 0.3,
        firstPosition: 0,
        spans: [
          { firstRow: 0, rows: 80, prefixEnd: 0 },
          { firstRow: 80, rows: 10, prefixEnd: 10 },
        ],
      });
    const sound = run({});
    for (const at of [3, 40]) {
      const changed = run({ q: broken(inputs.q, [at * d + 1, NAN]) });
      // Its own, and those of what it sees.
      for (const [name, r] of [
        ["out", at],
        ["dq", at],
        ["dk", 3],
        ["dv", 3],
      ] as const)
        expectSomeNaN(row(changed[name]!, d, r), `${name} ${at}`);
      for (const name of ["out", "dq", "dk", "dv"])
        expectSameBits(
          changed[name]!.subarray(80 * d),
          sound[name]!.subarray(80 * d),
          "the other sequence",
        );
    }
    // A key that is seen first makes the row's weights NaN, though sound ones follow.
    const { dq } = run({ k: broken(inputs.k, [1, NAN]) });
    for (const r of [0, 30, 79]) expectAllNaN(row(dq!, d, r), `dq ${r}`);
  });

  /** Payloads that plain rounding would make an infinity or 0 of. */
  test.each([0x7f800001, 0xff800001, 0x7fffffff, 0xffffffff])(
    "a NaN of bits %d is one in bfloat16",
    (bits) => {
      for (const [m, k, n] of [
        [1, 3, 2],
        [20, 65, 33],
      ] as const) {
        const a = random.matrix(m, k);
        new Uint32Array(a.data.buffer)[k - 1] = bits;
        const b = random.matrix(n, k);
        for (const [name, first, second] of [
          ["a", a, b],
          ["b", b, a],
        ] as const) {
          const { out } = backend().training({
            name: "gemm",
            a: first,
            b: second,
            transposeB: true,
            bf16: true,
          });
          const products = [...out!.keys()].filter((i) => (name === "a" ? i < n : i % m === 0));
          for (const i of products) expect(out![i]).toBeNaN();
          expect(out!.filter(Number.isNaN)).toHaveLength(n);
        }
      }
    },
  );
});

function expectFinite(values: Float32Array): void {
  expect(values.every(Number.isFinite)).toBe(true);
}

/** Keys and queries that are not finite, in any of the blocks of keys, behind sound ones and before them. */
function attentionTests(backend: () => Backend): void {
  const random = new Random(4);
  const [heads, kvHeads, headDim] = [4, 2, 16];
  const ROWS = 150;
  test.each([
    { softCap: 0, window: 0 },
    { softCap: 5, window: 0 },
    { softCap: 0, window: 9 },
  ])("attention: cap $softCap, window $window", ({ softCap, window }) => {
    // Of one magnitude and sign, so that an infinity makes scores of plus infinity.
    const inputs = {
      q: random.matrix(ROWS + 5, heads * headDim),
      k: random.matrix(ROWS + 5, kvHeads * headDim),
      v: random.matrix(ROWS + 5, kvHeads * headDim),
    };
    for (const name of ["q", "k"] as const)
      inputs[name].data.forEach((v, i, data) => {
        data[i] = Math.abs(v);
      });
    const run = (changed: Partial<typeof inputs>) =>
      backend().attention({
        ...inputs,
        ...changed,
        heads,
        kvHeads,
        headDim,
        scale: 0.2,
        softCap,
        window,
        spans: [
          { firstRow: 0, rows: ROWS, index: 0, prefixEnd: 0 },
          { firstRow: ROWS, rows: 5, index: 0, prefixEnd: 5 },
        ],
      });
    const sound = run({});
    const ofHead = (out: Float32Array, r: number, h: number) => row(out, headDim, r * heads + h);
    for (const at of [0, 70, ROWS - 1]) {
      const sees = (r: number) => r >= at && (!window || r < at + window);
      for (const value of [NAN, INFINITE]) {
        // Head 3 of the queries, and the second key head, which heads 2 and 3 share.
        const ofQuery = run({ q: broken(inputs.q, [(at * heads + 3) * headDim + 2, value]) });
        expectAllNaN(ofHead(ofQuery, at, 3), `query ${at} ${value}`);
        for (let h = 0; h < 3; h++)
          expectSameBits(ofHead(ofQuery, at, h), ofHead(sound, at, h), "other heads");
        const ofKey = run({ k: broken(inputs.k, [(at * kvHeads + 1) * headDim + 2, value]) });
        const ofValue = run({ v: broken(inputs.v, [(at * kvHeads + 1) * headDim + 2, value]) });
        for (let r = 0; r < ROWS; r++) {
          if (!sees(r)) continue;
          for (const h of [2, 3]) {
            expectAllNaN(ofHead(ofKey, r, h), `key ${at} ${value}, row ${r}`);
            expect(ofHead(ofValue, r, h)[2]).not.toBeLessThan(INFINITE);
          }
          for (const h of [0, 1])
            expectSameBits(ofHead(ofKey, r, h), ofHead(sound, r, h), "other key heads");
        }
        for (const out of [ofQuery, ofKey, ofValue])
          expectSameBits(
            out.subarray(ROWS * heads * headDim),
            sound.subarray(ROWS * heads * headDim),
            "the other sequence",
          );
      }
    }
  });

  test("attention of one row to a cache: a key of before", () => {
    const rows = 70;
    const one = (cols: number) => random.matrix(1, cols);
    const run = (value: number) => {
      const cache = backend().createCache(kvHeads, rows + 1, headDim);
      const settings = { heads, kvHeads, headDim, scale: 0.2 };
      const k = new Random(9).matrix(rows, kvHeads * headDim);
      backend().attention({
        ...settings,
        q: random.matrix(rows, heads * headDim),
        k: broken(k, [headDim * kvHeads * 3, value]),
        v: random.matrix(rows, kvHeads * headDim),
        spans: [{ firstRow: 0, rows, index: 0, prefixEnd: rows, cache }],
      });
      return backend().attention({
        ...settings,
        q: one(heads * headDim),
        k: one(kvHeads * headDim),
        v: one(kvHeads * headDim),
        spans: [{ firstRow: 0, rows: 1, index: rows, prefixEnd: rows, cache }],
      });
    };
    expectFinite(run(1));
    const out = run(NAN);
    expectAllNaN(out.subarray(0, 2 * headDim), "the key head's");
    expectFinite(out.subarray(2 * headDim));
  });
}

describe.each([
  { capability: 86, name: "8.6" },
  { capability: 90, name: "9.0, warpgroups" },
])("what is not finite, in bfloat16 on CUDA $name", ({ capability }) => {
  let cuda: Backend;
  beforeAll(() => {
    simulate({ capability });
    cuda = new addon.TestBackend({ library: simulatedLibrary, compute: "bf16" });
  });
  afterAll(() => {
    cuda.close();
    simulate();
  });
  attentionTests(() => cuda);

  test("attention of one wide head", () => {
    const random = new Random(5);
    const [rows, d] = [70, 264];
    const inputs = {
      q: random.matrix(rows, d),
      k: random.matrix(rows, d),
      v: random.matrix(rows, d),
    };
    const run = (changed: Partial<typeof inputs>) =>
      cuda.attention({
        ...inputs,
        ...changed,
        heads: 1,
        kvHeads: 1,
        headDim: d,
        scale: 0.05,
        spans: [{ firstRow: 0, rows, index: 0, prefixEnd: rows }],
      });
    expectFinite(run({}));
    expectAllNaN(run({ k: broken(inputs.k, [33 * d + 2, NAN]) }), "a key");
    expectAllNaN(row(run({ q: broken(inputs.q, [33 * d + 2, NAN]) }), d, 33), "a query");
  });

  test("diffusion_sample with a limit", () => {
    const random = new Random(6);
    for (const flow of [false, true]) {
      const shape = { channels: 8, condition: 16, width: 32, depth: 1, flow, type: "f32" } as const;
      const out = cuda.diffusionSample({
        head: randomHead(random, shape),
        z: broken(random.matrix(2, 16), [3, NAN]),
        steps: flow ? addon.flowSteps(1000, 2) : addon.ddpmSteps(1000, 2),
        tokens: [0, 1].map((z) => ({
          z,
          zEmpty: -1,
          guidance: 1,
          temperature: 1,
          x0Limit: 1.5,
          seed: 5n,
          cell: z,
        })),
      });
      expectAllNaN(out.subarray(0, 8), "the token's");
      expectFinite(out.subarray(8));
    }
  });

  /** As the numbers of a checkpoint and of activations become bfloat16. */
  test.each([0x7f800001, 0xff800001, 0x7fffffff, 0xffffffff])("a NaN of bits %d", (bits) => {
    const random = new Random(7);
    const [x, weight] = [random.matrix(3, 40), random.weight("f32", 8, 40)];
    const poisoned = <T extends { data: Float32Array | Uint16Array | Uint8Array }>(from: T): T => {
      const data = Float32Array.from(from.data);
      new Uint32Array(data.buffer)[5] = bits;
      return { ...from, data };
    };
    expectAllNaN(cuda.linear({ x: poisoned(x), weight }).subarray(0, 8), "the row");
    const out = cuda.linear({ x, weight: poisoned(weight) });
    expectAllNaN(
      out.filter((_, i) => i % 8 === 0),
      "the column",
    );
    expect(out.filter(Number.isNaN)).toHaveLength(3);
  });
});
