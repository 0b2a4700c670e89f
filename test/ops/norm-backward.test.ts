/** The adaptive layer norm, and the gradients of all norms. */
import {
  difference,
  expectGradients,
  type Inputs,
  matrix,
  type Vector,
  weighted,
} from "../support/gradients";
import { expectClose, UNIT_ROUNDOFF, withRandom } from "../support/numbers";
import {
  type Backend,
  backendCases,
  describeBackends,
  expectSameEverywhere,
  withBackend,
} from "../support/ops";

const { abs, exp, sqrt } = Math;

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

test("gradients have the same bits on any number of threads", () => {
  withRandom((random) => {
    const [x, dout] = [random.matrix(300, 70), random.matrix(300, 70)];
    const [weight, startWeight] = [random.floats(70), new Float32Array(70)];
    const args = { name: "rmsNormBackward", x, weight, eps: 1e-6, dout, startWeight };
    for (const result of ["dx", "dweight"])
      expectSameEverywhere((backend) => backend.training(args)[result]!, 1e-5);
  })();
});

// The first operation of a backend: no scratch is left from one before.
test.each(backendCases)("no rows: $name", ({ options }) => {
  withRandom((random) => {
    const [none, weight, startWeight] = [random.matrix(0, 7), random.floats(7), random.floats(7)];
    const shared = { x: none, dout: none, weight, eps: 1e-6, startWeight };
    const first = <T>(body: (backend: Backend) => T) => withBackend(options, body);
    const rms = first((backend) => backend.training({ name: "rmsNormBackward", ...shared }));
    expect(rms.dweight).toEqual(startWeight);
    const layer = { name: "modulatedNorm", ...shared, bias: weight, startBias: startWeight };
    const { dweight, dbias } = first((backend) => backend.training(layer));
    expect([dweight, dbias]).toEqual([startWeight, startWeight]);
  })();
});
