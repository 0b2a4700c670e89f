/** When a loss counts as exploded. */
import { type LossScale, Watch, Watches } from "../../lib/train/watch";
import { Random } from "../support/numbers";

const diverged = { code: "TRAINING_DIVERGED" };
/** As trainers have them. */
const IMAGE = { chance: 2, explosion: 10 };
const TEXT = { chance: Math.log(480), explosion: 2.5 };

/** Losses about `usual`, by up to a factor of 2. */
function quiet(watch: Watch, random: Random, steps: number, usual: number): void {
  for (let step = 1; step <= steps; step++)
    watch.see(step, usual * 2 ** (2 * random.uniform() - 1));
}

test("a loss that stays ten times as high has exploded, and is named with its step", () => {
  const watch = new Watch("image loss", IMAGE);
  quiet(watch, new Random(1), 200, 0.1);
  for (let step = 201; step < 205; step++) {
    watch.see(step, 3);
    expect(watch.highSince).toBe(201);
  }
  expect(() => watch.see(205, 3)).toThrow(expect.objectContaining(diverged));
  const other = new Watch("image loss", IMAGE);
  quiet(other, new Random(1), 200, 0.1);
  for (let step = 201; step < 205; step++) other.see(step, 2 ** (step - 200));
  expect(() => other.see(205, 64)).toThrow(
    /step 205: the image loss exploded: 64\.00, where 0\.\d+ was usual/,
  );
});

test("a few high steps, or steps without such tokens between, are none", () => {
  const watch = new Watch("text loss", TEXT);
  const random = new Random(2);
  for (let round = 0; round < 20; round++) {
    quiet(watch, random, 20, 0.5);
    for (let step = 0; step < 4; step++) watch.see(step, 50);
    watch.see(4, Number.NaN);
    expect(watch.highSince).toBe(0);
  }
  quiet(watch, random, 1, 0.5);
  expect(watch.highSince).toBeUndefined();
});

test("nor are single wrong words where most steps have none", () => {
  const watch = new Watch("text loss", TEXT);
  const random = new Random(3);
  // A third of the steps have a wrong word, so that five of them in a row come every few hundred steps.
  for (let step = 1; step <= 20_000; step++)
    watch.see(step, random.uniform() < 1 / 3 ? 0.05 + 0.05 * random.uniform() : 0.002);
});

test("what rises slowly is followed, until it is far above what a model has that knows nothing", () => {
  const watch = new Watch("image loss", IMAGE);
  const rise = (step: number) => 0.01 * 1.005 ** step;
  const end = Math.ceil(Math.log(20 / 0.01) / Math.log(1.005));
  for (let step = 1; step < end + 4; step++) watch.see(step, rise(step));
  expect(watch.highSince).toBe(end);
  expect(() => watch.see(end + 4, rise(end + 4))).toThrow(expect.objectContaining(diverged));
});

/** The step at which the losses, from step 1, count as exploded. */
function explosion(name: string, scale: LossScale, losses: readonly number[]): number | undefined {
  const watch = new Watch(name, scale);
  for (const [i, loss] of losses.entries())
    try {
      watch.see(i + 1, loss);
    } catch (error) {
      expect(error).toMatchObject(diverged);
      return i + 1;
    }
  return undefined;
}

test("a fresh model's loss that runs away is caught within a few steps", () => {
  expect(explosion("image loss", IMAGE, [1.98, 665, 5e5, 2e11, 2e12, 1e14])).toBe(6);
  // Where each step's loss is but a few times the last one's, what has been seen is no measure.
  const factor = Array.from({ length: 30 }, (_, i) => 1.98 * 3 ** i);
  expect(explosion("image loss", IMAGE, factor)).toBe(8);
  // Capped logits bound the loss of text.
  const text = [6.3, 17.7, 20.8, 16.4, 17.5, 17, 17.6];
  expect(explosion("text loss", TEXT, text)).toBe(6);
});

test("a trained model that loses what it knew in its first steps is caught as well", () => {
  expect(explosion("image loss", IMAGE, [0.13, 0.14, 0.4, 2.5, 3, 3.5, 3, 4])).toBe(8);
  expect(explosion("text loss", TEXT, [0.001, 0.002, 3, 7, 8, 7, 8, 9])).toBe(8);
});

test("a rate that warms up may undo some of a trained model's skill", () => {
  const random = new Random(5);
  const rise = (from: number, to: number) =>
    Array.from({ length: 90 }, (_, i) => {
      const usual = i < 20 ? from + ((to - from) * i) / 20 : to;
      return usual * 2 ** (2 * random.uniform() - 1);
    });
  expect(explosion("image loss", IMAGE, rise(0.13, 0.19))).toBeUndefined();
  expect(explosion("text loss", TEXT, rise(0.0003, 0.08))).toBeUndefined();
});

test("first steps too far that are made up for are no explosion", () => {
  // A rate of 0.1 without a warm-up.
  const losses = [1.81, 2.06, 2.46, 3.99, 42.1, 64.1, 5.68, 12.5, 9.55, 3.23, 4.1, 2.15, 1.96];
  expect(explosion("image loss", IMAGE, losses)).toBeUndefined();
  // A loss may begin above what chance would have: parts of other models that do not fit yet.
  const high = Array.from({ length: 50 }, (_, i) => 40 - 0.5 * i);
  expect(explosion("text loss", TEXT, high)).toBeUndefined();
});

test("after a stop a loss is judged as if there had been none", () => {
  const random = new Random(4);
  const before = Array.from({ length: 150 }, () => 0.1 * 2 ** (2 * random.uniform() - 1));
  const watch = new Watch("image loss", IMAGE);
  for (const [i, loss] of [...before, Number.NaN].entries()) watch.follow(i + 1, loss);
  for (let step = 152; step < 156; step++) watch.see(step, 3);
  expect(() => watch.see(156, 3)).toThrow(expect.objectContaining(diverged));
  // Also where it stopped among high ones.
  const within = new Watch("image loss", IMAGE);
  for (const [i, loss] of [...before, 3, 3, 3, 3].entries()) within.follow(i + 1, loss);
  expect(within.highSince).toBe(151);
  expect(() => within.see(155, 3)).toThrow(expect.objectContaining(diverged));
});

test("once what is measured has changed, the last losses are no measure, but what a model knows nothing by is", () => {
  const watch = new Watch("image loss", IMAGE);
  quiet(watch, new Random(6), 150, 0.01);
  watch.forget();
  for (let step = 151; step < 251; step++) watch.see(step, 1);
  expect(watch.highSince).toBeUndefined();
  // It has a history of its own by now.
  for (let step = 251; step < 255; step++) watch.see(step, 11);
  expect(() => watch.see(255, 11)).toThrow(/11\.00, where 1\.000 was usual/);
  const ruined = new Watch("image loss", IMAGE);
  quiet(ruined, new Random(6), 150, 0.01);
  ruined.forget();
  for (let step = 151; step < 155; step++) ruined.see(step, 21);
  expect(() => ruined.see(155, 21)).toThrow(
    /step 155: the image loss exploded: 21\.00, where 0\.0/,
  );
});

test("a loss that is high as what is measured changes stays in doubt, with the others", () => {
  const watches = new Watches({ a: IMAGE, b: IMAGE });
  for (let step = 1; step <= 150; step++) watches.see(step, { a: 0.01, b: 0.01 });
  watches.see(151, { a: 0.01, b: 3 });
  watches.forget();
  for (let step = 152; step < 155; step++) watches.see(step, { a: 0.5, b: 3 });
  expect(watches.high).toEqual([
    { name: "a", since: 152 },
    { name: "b", since: 151 },
  ]);
  expect(() => watches.see(155, { a: 0.5, b: 3 })).toThrow(/step 155: the b exploded/);
});
