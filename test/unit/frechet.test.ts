/** Fréchet distances of distributions whose distance is known. */
import { Matrix } from "ml-matrix";
import {
  asReference,
  type FeatureStatistics,
  frechetDistance,
  pooled,
  statisticsOf,
} from "../../lib/evaluate/frechet";
import { withRandom } from "../support/numbers";

const distance = async (a: FeatureStatistics, b: FeatureStatistics, signal?: AbortSignal) =>
  frechetDistance(a, await asReference(b, signal), signal);

const normal = (mean: number[], covariance: number[][]) => ({
  mean,
  covariance: new Matrix(covariance),
});

test("of normal distributions by hand", async () => {
  const a = normal(
    [0, 0],
    [
      [1, 0],
      [0, 4],
    ],
  );
  expect(await distance(a, a)).toBeCloseTo(0, 12);
  // Variances along the same axes: differences of standard deviations.
  const b = normal(
    [3, -1],
    [
      [9, 0],
      [0, 0],
    ],
  );
  expect(await distance(a, b)).toBeCloseTo(9 + 1 + 4 + 4, 12);
  // Axes that differ, by scipy.linalg.sqrtm in float64.
  const c = normal(
    [1, 2],
    [
      [2, 0.6],
      [0.6, 1],
    ],
  );
  const d = normal(
    [0, 2.5],
    [
      [1.5, -0.4],
      [-0.4, 0.7],
    ],
  );
  expect(await distance(c, d)).toBeCloseTo(1.7018306139371, 10);
  expect(await distance(d, c)).toBeCloseTo(1.7018306139371, 10);
});

// By numpy in float64, from the singular values of the centred features' products instead of covariances:
// np.linalg.svd((p - p.mean(0)) @ (q - q.mean(0)).T / np.sqrt((len(p) - 1) * (len(q) - 1)))[1].sum()
// is the trace of the root.
test.each([
  [200, 12.396293362265553],
  [10, 43.9949992281602],
])("of %p pictures of 24 features to 300 others, by numpy", async (n, expected) => {
  const cloud = (pictures: number, phase: number, offset: number) =>
    Array.from({ length: pictures }, (_, i) =>
      Array.from(
        { length: 24 },
        (_, j) =>
          Math.sin((i + 1) * (j + phase) * 0.37) * (1 + 0.1 * j) + offset * Math.cos(0.2 * j),
      ),
    );
  const [a, b] = [statisticsOf(cloud(n, 2, 0)), statisticsOf(cloud(300, 5, 0.3))];
  expect(await distance(a, b)).toBeCloseTo(expected, 5);
  expect(await distance(b, a)).toBeCloseTo(expected, 5);
});

test(
  "does not see how features are turned",
  withRandom(async (random) => {
    const width = 12;
    const cloud = (scale: number) =>
      Array.from({ length: 40 }, () => [...random.floats(width, scale)]);
    const [a, b] = [cloud(1), cloud(2)];
    // A reflection: I - 2 v v^T / |v|^2.
    const v = [...random.floats(width)];
    const square = v.reduce((sum, x) => sum + x * x, 0);
    const turn = (x: number[]) => {
      const dot = x.reduce((sum, e, i) => sum + e * v[i]!, 0);
      return x.map((e, i) => e - (2 * dot * v[i]!) / square);
    };
    const straight = await distance(statisticsOf(a), statisticsOf(b));
    const turned = await distance(statisticsOf(a.map(turn)), statisticsOf(b.map(turn)));
    expect(turned / straight).toBeCloseTo(1, 8);
  }),
);

test(
  "covariances of fewer pictures than features are taken as they are",
  withRandom(async (random) => {
    const width = 30;
    const few = Array.from({ length: 5 }, () => [...random.floats(width)]);
    const statistics = statisticsOf(few);
    expect(await distance(statistics, statistics)).toBeLessThan(1e-6);
    const shifted = statisticsOf(few.map((x) => x.map((e) => e + 0.5)));
    expect(await distance(statistics, shifted)).toBeCloseTo(width * 0.25, 5);
  }),
);

test("a single picture has no spread", async () => {
  const one = statisticsOf([[1, 2]]);
  expect(one.covariance.to2DArray()).toEqual([
    [0, 0],
    [0, 0],
  ]);
  expect(await distance(one, one)).toBe(0);
  const spread = normal(
    [1, 5],
    [
      [2, 1],
      [1, 3],
    ],
  );
  expect(await distance(one, spread)).toBeCloseTo(9 + 2 + 3, 12);
  expect(await distance(spread, one)).toBeCloseTo(9 + 2 + 3, 12);
});

test("rows are pooled to their mean", () => {
  expect(pooled(Float32Array.of(1, 2, 3, 5, 6, 10), 3)).toEqual([3, 4, 6.5]);
  const { mean, covariance } = statisticsOf([
    [1, 2],
    [3, 6],
  ]);
  expect([mean, covariance.to2DArray()]).toEqual([
    [2, 4],
    [
      [2, 4],
      [4, 8],
    ],
  ]);
});

test("an abort is heard between its steps", async () => {
  const one = statisticsOf([[1, 2]]);
  const reference = await asReference(one, undefined);
  const whileWaiting = (work: (signal: AbortSignal) => Promise<unknown>) => {
    const controller = new AbortController();
    setImmediate(() => controller.abort(new Error("enough")));
    return expect(work(controller.signal)).rejects.toThrow("enough");
  };
  await whileWaiting((signal) => asReference(one, signal));
  await whileWaiting((signal) => frechetDistance(one, reference, signal));
});
