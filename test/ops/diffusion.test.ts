/** diffusion_head and diffusion_sample: against float64, the fixtures, and each other. */
import { headOf, randomHead, referenceHead, referenceStep, rowOf } from "../support/diffusion";
import { fixtureJson, fixtureTensors } from "../support/fixtures";
import { expectClose, Random, rowsOf, UNIT_ROUNDOFF, withRandom } from "../support/numbers";
import {
  addon,
  type Backend,
  type DiffusionStep,
  type DiffusionToken,
  describeBackends,
  expectSameBits,
  expectSameEverywhere,
  type Head,
  instructionSets,
  type Matrix,
  withBackend,
} from "../support/ops";

/**
 * Roundings along the longest path through the network, in units of the outputs' scale: its linears and
 * norms, each a sum of up to `width` or 256 terms, and the angles of the time features, which float32
 * holds to 1000 units roundoff. Errors are independent, so they add as squares.
 */
function headBound(head: Head, expected: ArrayLike<number>): number {
  const linears = 6 + 3 * head.depth;
  const terms = Math.max(head.width, head.condition, 256);
  const angles = 1000;
  const norm = Math.sqrt(Array.from(expected).reduce((s, v) => s + v * v, 0) / expected.length);
  return UNIT_ROUNDOFF * 4 * Math.sqrt(linears * terms + angles ** 2 / 16) * Math.max(norm, 1);
}

function runReference(head: Head, x: Matrix, time: ArrayLike<number>, z: Matrix): Float64Array {
  const network = referenceHead(head);
  const outputs = head.channels * (head.flow ? 1 : 2);
  const out = new Float64Array(x.rows * outputs);
  for (let r = 0; r < x.rows; r++)
    out.set(network(rowOf(x, r), time[r]!, rowOf(z, r)), r * outputs);
  return out;
}

const SHAPES = [
  { channels: 16, condition: 32, width: 32, depth: 2, flow: false, type: "bf16" },
  { channels: 5, condition: 7, width: 19, depth: 1, flow: false, type: "f32" },
  { channels: 64, condition: 24, width: 40, depth: 3, flow: true, type: "f16" },
  { channels: 3, condition: 33, width: 130, depth: 0, flow: true, type: "bf16" },
  // On a GPU: blocks with unequal numbers of columns, whose weights stream.
  { channels: 6, condition: 9, width: 132, depth: 2, flow: true, type: "f32" },
] as const;

describeBackends("diffusion_head", (backend) => {
  test.each(SHAPES)("$type width $width depth $depth channels $channels flow $flow", (shape) => {
    withRandom((random) => {
      const head = randomHead(random, shape);
      const m = 1 + random.integer(9);
      const x = random.matrix(m, shape.channels, 1, shape.channels + 3);
      const z = random.matrix(m, shape.condition, 1, shape.condition + 1);
      const time = Float32Array.from({ length: m }, (_, i) =>
        i === 0 ? 999 : random.uniform() * 1000,
      );
      const expected = runReference(head, x, time, z);
      const actual = backend().diffusionHead({ head, x, time, z });
      expectClose(actual, expected, headBound(head, expected));

      const outputs = shape.channels * (shape.flow ? 1 : 2);
      const wide = backend().diffusionHead({ head, x, time, z, outStride: outputs + 5 });
      for (let r = 0; r < m; r++) {
        const row = wide.subarray(r * (outputs + 5), (r + 1) * (outputs + 5));
        expectSameBits(row.subarray(0, outputs), actual.subarray(r * outputs, (r + 1) * outputs));
        expect([...row.subarray(outputs)]).toEqual(Array(5).fill(Number.NaN));
      }
      for (let r = 0; r < m; r++) {
        const alone = backend().diffusionHead({
          head,
          x: rowsOf(x, r, 1),
          time: time.slice(r, r + 1),
          z: rowsOf(z, r, 1),
        });
        expectSameBits(alone, actual.subarray(r * outputs, (r + 1) * outputs), `row ${r} alone`);
      }
    })();
  });
});

const STEPS: Record<string, (n: number) => DiffusionStep[]> = {
  ddpm: (n) => addon.ddpmSteps(1000, n),
  flow: (n) => addon.flowSteps(1000, n),
};

/** diffusion_sample composed of diffusion_head, noise by name, and the update in float64. */
function compose(
  backend: Backend,
  head: Head,
  z: Matrix,
  steps: DiffusionStep[],
  tokens: DiffusionToken[],
) {
  const out = new Float64Array(tokens.length * head.channels);
  tokens.forEach((token, i) => {
    const start = addon.noise(token.seed, token.cell, head.channels);
    let x = Float64Array.from(start, (v) => (head.flow ? token.temperature * v : v));
    const run = (row: number, time: number) =>
      Float64Array.from(
        backend.diffusionHead({
          head,
          x: { data: Float32Array.from(x), rows: 1, cols: head.channels },
          time: Float32Array.of(time),
          z: rowsOf(z, row, 1),
        }),
      );
    steps.forEach((step, s) => {
      const noise = step.noise ? addon.noise(token.seed, token.cell, head.channels, s) : undefined;
      const empty = token.zEmpty < 0 ? undefined : run(token.zEmpty, step.time);
      x = referenceStep(head, step, steps.length, token, x, run(token.z, step.time), empty, noise);
      x = Float64Array.from(Float32Array.from(x));
    });
    out.set(x, i * head.channels);
  });
  return out;
}

function randomTokens(random: Random, count: number, rows: number): DiffusionToken[] {
  return Array.from({ length: count }, () => ({
    z: random.integer(rows),
    zEmpty: random.integer(3) === 0 ? -1 : random.integer(rows),
    guidance: 1 + 3 * random.uniform(),
    temperature: 0.8 + 0.4 * random.uniform(),
    x0Limit: random.integer(4) === 0 ? 50 : 1 + 2 * random.uniform(),
    seed: (BigInt(random.bits()) << 32n) | BigInt(random.bits()),
    cell: random.integer(4096),
  }));
}

describeBackends("diffusion_sample", (backend) => {
  test.each(SHAPES)(
    "is the composition of its parts: $type width $width channels $channels flow $flow",
    (shape) => {
      withRandom((random) => {
        const head = randomHead(random, shape);
        const z = random.matrix(6, shape.condition, 1, shape.condition + 2);
        // Few steps: a random head amplifies differences. The estimate of the clean token at the first,
        // x0 = 2e4 (x - eps), is held by x0Limit, which is why every token has one.
        const steps = STEPS[shape.flow ? "flow" : "ddpm"]!(3);
        const tokens = randomTokens(random, 5, 6);
        const actual = backend().diffusionSample({ head, z, steps, tokens });
        const expected = compose(backend(), head, z, steps, tokens);
        // An element whose estimate is not held at a limit carries 2e4 roundings of x and eps, of which
        // coef_x0 lets a third into x.
        const amplified = steps.reduce((s, step) => s + step.recipm1 * step.coefX0, 1);
        let scale = 1;
        for (const v of expected) scale = Math.max(scale, Math.abs(v));
        expectClose(actual, expected, 32 * UNIT_ROUNDOFF * amplified * scale);
      })();
    },
  );

  test("no steps beyond one, no guidance: the single step's mean", () => {
    withRandom((random) => {
      const head = randomHead(random, SHAPES[0]);
      const z = random.matrix(1, 32);
      const token = {
        ...randomTokens(random, 1, 1)[0]!,
        zEmpty: -1,
        x0Limit: Number.POSITIVE_INFINITY,
      };
      const steps = addon.ddpmSteps(1000, 1);
      const actual = backend().diffusionSample({ head, z, steps, tokens: [token] });
      expectClose(actual, compose(backend(), head, z, steps, [token]), 1e-5);
    })();
  });

  test("a token has the same bits alone, among others, and in any order", () => {
    withRandom((random) => {
      for (const shape of SHAPES) {
        const head = randomHead(random, shape);
        const z = random.matrix(9, shape.condition);
        const steps = STEPS[shape.flow ? "flow" : "ddpm"]!(4);
        const tokens = randomTokens(random, 11, 9);
        const all = backend().diffusionSample({ head, z, steps, tokens });
        const reversed = backend().diffusionSample({
          head,
          z,
          steps,
          tokens: [...tokens].reverse(),
        });
        tokens.forEach((token, i) => {
          const c = head.channels;
          const row = all.subarray(i * c, (i + 1) * c);
          const at = tokens.length - 1 - i;
          expectSameBits(reversed.subarray(at * c, (at + 1) * c), row, "reversed");
          expectSameBits(
            backend().diffusionSample({ head, z, steps, tokens: [token] }),
            row,
            "alone",
          );
        });
      }
    })();
  });

  test("nothing to do", () => {
    const head = randomHead(new Random(1), SHAPES[0]);
    const z = new Random(2).matrix(1, 32);
    const steps = addon.ddpmSteps(1000, 2);
    expect(backend().diffusionSample({ head, z, steps, tokens: [] }).length).toBe(0);
  });
});

test("more steps and tokens than modulations are held for", () => {
  // 128 rows x 512 floats x 300 steps are more than twice what is held at a time, so that threads meet
  // again between chunks.
  const random = new Random(5);
  const shape = {
    channels: 4,
    condition: 8,
    width: 64,
    depth: 2,
    flow: false,
    type: "f32",
  } as const;
  const head = randomHead(random, shape);
  const z = random.matrix(128, shape.condition);
  const steps = addon.ddpmSteps(1000, 300);
  const tokens = randomTokens(random, 64, 128).map((token, i) => ({
    ...token,
    z: i,
    zEmpty: 127 - i,
  }));
  const isa = instructionSets.at(-1)!;
  const one = withBackend({ isa, threads: 1 }, (b) =>
    b.diffusionSample({ head, z, steps, tokens }),
  );
  for (const threads of [2, 3]) {
    withBackend({ isa, threads }, (b) => {
      expectSameBits(b.diffusionSample({ head, z, steps, tokens }), one, `${threads} threads`);
      const few = b.diffusionSample({ head, z, steps, tokens: tokens.slice(3, 5) });
      expectSameBits(few, one.subarray(3 * 4, 5 * 4), "two of them");
    });
  }
});

test("more rows than one run takes", () => {
  // (3 * 0 + 2) * 1024 floats of modulations a row: 4096 rows at most, so 5000 go in two runs.
  const random = new Random(6);
  const shape = {
    channels: 2,
    condition: 1,
    width: 1024,
    depth: 0,
    flow: true,
    type: "f32",
  } as const;
  const head = randomHead(random, shape);
  const z = random.matrix(5000, 1);
  const x = random.matrix(5000, 2);
  const time = Float32Array.from({ length: 5000 }, (_, i) => i % 1000);
  withBackend({ isa: instructionSets.at(-1)!, threads: 2 }, (b) => {
    const all = b.diffusionHead({ head, x, time, z });
    for (const r of [0, 4095, 4096, 4999]) {
      const alone = b.diffusionHead({
        head,
        x: rowsOf(x, r, 1),
        time: time.slice(r, r + 1),
        z: rowsOf(z, r, 1),
      });
      expectSameBits(alone, all.subarray(2 * r, 2 * r + 2), `row ${r}`);
    }
  });
});

test("the same on every instruction set, and bit for bit on any number of threads", () => {
  const random = new Random(3);
  for (const shape of SHAPES) {
    const head = randomHead(random, shape);
    const z = random.matrix(4, shape.condition);
    const x = random.matrix(4, shape.channels);
    const time = Float32Array.of(999, 500, 3, 0);
    expectSameEverywhere((b) => b.diffusionHead({ head, x, time, z }), 1e-5);
    const tokens = randomTokens(random, 9, 4);
    // An Euler step amplifies nothing; the ancestral first one by coef_x0 * 2e4 (see above).
    const steps = STEPS[shape.flow ? "flow" : "ddpm"]!(4);
    expectSameEverywhere(
      (b) => b.diffusionSample({ head, z, steps, tokens }),
      shape.flow ? 1e-5 : 2e-2,
    );
  }
});

// ---- the fixtures ----

interface DrawInput {
  name: string;
  task: string;
  seed: number;
  guidance: number[];
  head_steps: number[];
}
interface Expectations {
  inputs: DrawInput[];
  sampling: { image: { steps: number; temperature: number; x0_limit?: number } };
}

describe.each([
  { fixture: "unifluid-tiny", flow: false },
  { fixture: "unifluid-flow-tiny", flow: true },
])("$fixture", ({ fixture, flow }) => {
  const expected = fixtureTensors(fixture);
  const head = headOf(fixtureTensors(fixture, "model.safetensors"), flow);
  const matrix = (name: string): Matrix => {
    const [rows, cols] = expected.get(name).shape as [number, number];
    return { data: expected.floats(name), rows, cols };
  };

  describeBackends("network", (backend) => {
    test("noise and variance, or velocity", () => {
      const out = backend().diffusionHead({
        head,
        x: matrix("head.noise"),
        time: Float32Array.from(expected.get("head.t").data),
        z: matrix("head.z"),
      });
      const names = flow ? ["head.eps"] : ["head.eps", "head.v"];
      const c = head.channels;
      names.forEach((name, k) => {
        const values = expected.floats(name);
        const largest = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
        const width = names.length * c;
        const mine = values.map((_, i) => out[Math.floor(i / c) * width + k * c + (i % c)]!);
        expectClose(mine, values, 1e-5 * largest);
      });
    });

    test.each([
      ["sampler.unlimited", Number.POSITIVE_INFINITY],
      ["sampler.limit2", 2],
    ] as const)("%s: sampling with given noise", (name, x0Limit) => {
      const [z, zEmpty] = [matrix("sampler.z"), matrix("sampler.z_empty")];
      const noise = expected.get("sampler.step_noise");
      const count = noise.shape[0]!;
      const steps = STEPS[flow ? "flow" : "ddpm"]!(count);
      const c = head.channels;
      const token = { guidance: 2.5, temperature: 0.9, x0Limit };
      const start = expected.floats("head.noise").map((v) => (flow ? v * token.temperature : v));
      let x: Matrix = { data: start, rows: z.rows, cols: c };
      steps.forEach((step, s) => {
        const time = new Float32Array(z.rows).fill(step.time);
        const outputs = flow ? c : 2 * c;
        const rows = (m: Matrix) => ({
          data: backend().diffusionHead({ head, x, time, z: m }),
          rows: m.rows,
          cols: outputs,
        });
        const [conditioned, empty] = [rows(z), rows(zEmpty)];
        const next = new Float32Array(x.data.length);
        for (let r = 0; r < z.rows; r++) {
          const at = (s * z.rows + r) * c;
          const drawn = step.noise ? noise.data.subarray(at, at + c) : undefined;
          const row = referenceStep(
            head,
            step,
            count,
            token,
            rowOf(x, r),
            rowOf(conditioned, r),
            rowOf(empty, r),
            drawn,
          );
          next.set(row, r * c);
        }
        x = { ...x, data: next };
      });
      const values = expected.floats(name);
      const largest = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      expectClose(x.data, values, 1e-3 * largest);
    });

    const { inputs, sampling } = fixtureJson<Expectations>(fixture);
    const draws = inputs.filter(({ task }) => task === "generate" || task === "edit");
    test.each(draws)("$name: every token from its condition", ({ name, seed, guidance }) => {
      const z = matrix(`${name}.z`);
      const zEmpty = matrix(`${name}.z_empty`);
      const order = expected.get(`${name}.order`).data;
      const both = Float32Array.from([...z.data, ...zEmpty.data]);
      const tokens = guidance.map(
        (g, k): DiffusionToken => ({
          z: k,
          zEmpty: z.rows + k,
          guidance: g,
          temperature: sampling.image.temperature,
          x0Limit: sampling.image.x0_limit ?? Number.POSITIVE_INFINITY,
          seed: BigInt(seed),
          cell: order[k]!,
        }),
      );
      const drawn = backend().diffusionSample({
        head,
        z: { data: both, rows: 2 * z.rows, cols: z.cols },
        steps: STEPS[flow ? "flow" : "ddpm"]!(sampling.image.steps),
        tokens,
      });
      const values = expected.floats(`${name}.tokens`);
      const largest = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      const c = head.channels;
      tokens.forEach(({ cell }, k) => {
        expectClose(
          drawn.subarray(k * c, (k + 1) * c),
          values.subarray(cell * c, (cell + 1) * c),
          1e-3 * largest,
        );
      });
    });
  });
});
