/** Sequences that wait, leave early or do not fit. */

import { join } from "node:path";
import { UniFluid } from "../../lib/index";

const tiny = join(__dirname, "..", "fixtures", "unifluid-tiny");
const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => "resolved",
    (error: { code?: string }) => error.code,
  );

/** Waits until the engine holds nothing any more; fails after some seconds. */
async function idle(model: UniFluid): Promise<void> {
  for (let i = 0; i < 500; i++) {
    const { running, waiting, sequenceBytes } = model.stats();
    if (running === 0 && waiting === 0 && sequenceBytes === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`still busy: ${JSON.stringify(model.stats())}`);
}

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
  const controller = new AbortController();
  const running = [1, 2, 3].map((seed) => model.generateLatents("a circle", { seed, steps: 20 }));
  const waiting = model.generate("a star", { steps: 20, signal: controller.signal });
  controller.abort();
  await expect(waiting).rejects.toMatchObject({ name: "AbortError" });
  await Promise.all(running);
  await idle(model);
});

test("leaving a stream early frees its sequence", async () => {
  for await (const progress of model.generateStream("a red circle", { steps: 50 })) {
    if (progress.done >= 2) break;
  }
  await idle(model);
});

test("streams tell every cell once, in the order of the seed", async () => {
  const seen: number[] = [];
  let total = 0;
  for await (const progress of model.generateStream("a red circle", { seed: 7, steps: 2 })) {
    total = progress.total;
    seen.push(progress.done);
  }
  expect(total).toBe(16);
  expect(seen.at(-1)).toBe(16);
});

test("dispose rejects what runs and everything after it", async () => {
  const other = await UniFluid.load(tiny);
  const drawing = codeOf(other.generate("a red circle", { steps: 1000 }));
  await other.dispose();
  expect(await drawing).toBe("DISPOSED");
  expect(await codeOf(other.generate("a red circle"))).toBe("DISPOSED");
  expect(await codeOf(other.caption(new Uint8Array(4)))).toBe("DISPOSED");
  await other.dispose();
});

test("a model under too small a budget is refused, and says what it needs", async () => {
  await expect(UniFluid.load(tiny, { maxMemory: 1000 })).rejects.toMatchObject({
    code: "INSUFFICIENT_MEMORY",
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
