/** When a loss counts as exploded. */
import { Watch } from "../../lib/train/watch";
import { Random } from "../support/numbers";

const diverged = { code: "TRAINING_DIVERGED" };

/** Losses about `usual`, by up to a factor of 2. */
function quiet(watch: Watch, random: Random, steps: number, usual: number): void {
  for (let step = 1; step <= steps; step++)
    watch.see(step, usual * 2 ** (2 * random.uniform() - 1));
}

test("a loss that stays ten times as high has exploded, and is named with its step", () => {
  const watch = new Watch("image loss");
  quiet(watch, new Random(1), 200, 0.1);
  for (let step = 201; step < 205; step++) watch.see(step, 3);
  expect(() => watch.see(205, 3)).toThrow(expect.objectContaining(diverged));
  const other = new Watch("image loss");
  quiet(other, new Random(1), 200, 0.1);
  for (let step = 201; step < 205; step++) other.see(step, 2 ** (step - 200));
  expect(() => other.see(205, 64)).toThrow(
    /step 205: the image loss exploded: 64\.00, where 0\.\d+ was usual/,
  );
});

test("a few high steps, or steps without such tokens between, are none", () => {
  const watch = new Watch("text loss");
  const random = new Random(2);
  for (let round = 0; round < 20; round++) {
    quiet(watch, random, 20, 0.5);
    for (let step = 0; step < 4; step++) watch.see(step, 50);
    watch.see(4, Number.NaN);
  }
});

test("nor are single wrong words where most steps have none", () => {
  const watch = new Watch("text loss");
  const random = new Random(3);
  // A third of the steps have a wrong word, so that five of them in a row come every few hundred steps.
  for (let step = 1; step <= 20_000; step++)
    watch.see(step, random.uniform() < 1 / 3 ? 0.05 + 0.05 * random.uniform() : 0.002);
});

test("what rises slowly is followed", () => {
  const watch = new Watch("image loss");
  for (let step = 1; step <= 2000; step++) watch.see(step, 1.005 ** step);
});

test("nothing is judged before there are steps enough to know what is usual", () => {
  const watch = new Watch("text loss");
  for (const [i, loss] of [0.002, 0.05, 0.06, 0.07, 0.05, 0.06, 0.05, 0.06].entries())
    watch.see(i + 1, loss);
});

test("after a stop a loss is judged as if there had been none", () => {
  const random = new Random(4);
  const before = Array.from({ length: 150 }, () => 0.1 * 2 ** (2 * random.uniform() - 1));
  const watch = new Watch("image loss", [...before, Number.NaN]);
  for (let step = 152; step < 156; step++) watch.see(step, 3);
  expect(() => watch.see(156, 3)).toThrow(expect.objectContaining(diverged));
});
