/** Curves of a report: exact while a run is short, means of stretches of steps later. */
import { Curve } from "../../lib/train/curve";
import { History } from "../../lib/train/history";

function curveOf(count: number): Curve {
  const curve = new Curve();
  for (let step = 1; step <= count; step++) curve.add(step, step);
  return curve;
}

test("a short curve has every value", () => {
  const points = curveOf(300).points(300);
  expect(points).toEqual(Array.from({ length: 300 }, (_, i) => ({ step: i + 1, value: i + 1 })));
  expect(new Curve().points(300)).toEqual([]);
});

test.each([1000, 8193, 100_000, 1_000_003])(
  "a curve of %i steps has means of stretches",
  (count) => {
    const points = curveOf(count).points(360);
    expect(points.length).toBeGreaterThan(170);
    expect(points.length).toBeLessThanOrEqual(360);
    let before = 0;
    for (const { step, value } of points) {
      // The mean of the steps from the one behind the last point to this one.
      expect(value).toBeCloseTo((before + 1 + step) / 2, 6);
      before = step;
    }
    expect(before).toBe(count);
  },
);

test("a history takes no more memory the longer it is, and knows the last line", () => {
  const history = new History();
  const line = { examplesPerSecond: 1, seconds: 1, gradientNorm: 1, learningRate: 1 };
  for (let step = 1; step <= 50_000; step++)
    history.add({
      ...line,
      step,
      examples: 2 * step,
      imageLoss: step,
      textLoss: step % 2 ? null : 3,
      byTask: { generate: 1, edit: 2 },
    });
  expect(history.last).toMatchObject({ step: 50_000, examples: 100_000 });
  const curves = history.curves([{ step: 10, psnr: 20 }]);
  expect(curves.map(([title]) => title)).toEqual([
    "image loss",
    "text loss",
    "PSNR of reconstructions, dB",
    "loss of edit",
    "loss of generate",
    "gradient norm",
    "learning rate",
  ]);
  // Eight thousand stretches of a curve at most.
  expect(JSON.stringify(history).length).toBeLessThan(6 * 8192 * 60);
  expect(curves[1]![1].points(1)).toEqual([{ step: 50_000, value: 3 }]);
});
