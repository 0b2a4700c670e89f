/** The losses of training and their gradients, and what the diffusion loss starts from. */
import { expectGradients, matrix, type Vector } from "../support/gradients";
import { expectClose, UNIT_ROUNDOFF, withRandom } from "../support/numbers";
import { describeBackends } from "../support/ops";

const { abs, exp, floor, log, max, min, PI, sqrt, tanh, cos, sin } = Math;

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
