/** Sequences that wait, leave early or do not fit. */

import { join } from "node:path";
import { UniFluid } from "../../lib/index";

const tiny = join(__dirname, "..", "fixtures", "unifluid-tiny");

/** Fails after some seconds. */
async function until(
  model: UniFluid,
  condition: (stats: ReturnType<UniFluid["stats"]>) => boolean,
): Promise<void> {
  for (let i = 0; i < 1000; i++) {
    if (condition(model.stats())) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`waited in vain: ${JSON.stringify(model.stats())}`);
}

/** Waits until the engine holds nothing any more. */
const idle = (model: UniFluid) =>
  until(
    model,
    ({ running, waiting, sequenceBytes }) => running + waiting === 0 && sequenceBytes === 0,
  );

let model: UniFluid;
beforeAll(async () => {
  model = await UniFluid.load(tiny, { threads: 2, maxSequences: 3 });
});
afterAll(() => model.dispose());

test("more requests than may run at once all finish", async () => {
  const prompts = Array.from({ length: 12 }, (_, i) => `a circle ${i}`);
  const images = await model.generate(prompts, { seed: 5, steps: 2 });
  expect(images).toHaveLength(12);
  await idle(model);
});

test("an aborted drawing rejects with the signal's reason and frees its sequence", async () => {
  const controller = new AbortController();
  const reason = new Error("enough");
  const drawing = model.generate("a red circle", { steps: 1000, signal: controller.signal });
  setTimeout(() => controller.abort(reason), 5);
  await expect(drawing).rejects.toBe(reason);
  await idle(model);
});

test("aborting a waiting request leaves those that run alone", async () => {
  // Slow enough for the fourth to be seen as it waits.
  const slow = await UniFluid.load("shapes-64", { threads: 1, maxSequences: 3 });
  try {
    const controller = new AbortController();
    const running = [1, 2, 3].map((seed) => slow.generateLatents("a", { seed, steps: 60 }));
    const waiting = slow.generate("a star", { steps: 60, signal: controller.signal });
    const gone = expect(waiting).rejects.toMatchObject({ name: "AbortError" });
    await until(slow, ({ running, waiting }) => running === 3 && waiting === 1);
    controller.abort();
    await gone;
    await Promise.all(running);
    await idle(slow);
  } finally {
    await slow.dispose();
  }
});

test("leaving a stream early frees its sequence", async () => {
  for await (const progress of model.generateStream("a red circle", { steps: 50 })) {
    if (progress.done >= 2) break;
  }
  await idle(model);
});

test("streams tell every cell once, in the order of the seed", async () => {
  const told = async (seed: number) => {
    const cells: number[] = [];
    const options = { seed, steps: 2, order: "random" } as const;
    for await (const { done, total, cell } of model.generateStream("a red circle", options)) {
      cells.push(cell);
      expect([done, total]).toEqual([cells.length, 16]);
    }
    return cells;
  };
  const cells = await told(7);
  expect([...cells].sort((a, b) => a - b)).toEqual(Array.from({ length: 16 }, (_, i) => i));
  expect(await told(7)).toEqual(cells);
  expect(await told(8)).not.toEqual(cells);
});

test("a model under too small a budget is refused, and says what it needs", async () => {
  await expect(UniFluid.load(tiny, { maxMemory: 1000 })).rejects.toMatchObject({
    code: "INSUFFICIENT_MEMORY",
    message: expect.stringMatching(/ takes at least [1-9]\d* MiB .*, but 0 MiB are available$/),
  });
});

test("two models answer at once", async () => {
  const other = await UniFluid.load("shapes-64", { threads: 1 });
  try {
    const [a, b] = await Promise.all([
      model.generate("a red circle", { seed: 1, steps: 2 }),
      other.generate("a red circle", { seed: 1, steps: 2 }),
    ]);
    expect([a.width, b.width]).toEqual([32, 64]);
  } finally {
    await other.dispose();
  }
});
