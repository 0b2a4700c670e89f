/** The estimate that `unifluid info` gives, against what the engine allocates. */

import { join } from "node:path";
import { estimateActivations } from "../../lib/activation-memory.js";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint.js";
import { estimateMemory } from "../../lib/memory.js";
import { UniFluid } from "../../lib/model.js";
import { FIXTURES } from "../support/fixtures.js";
import { expectSameBits } from "../support/ops.js";

test("activations of shapes-64 are about what is estimated", async () => {
  await using model = await UniFluid.load("shapes-64", { threads: 2 });
  const checkpoint = await readCheckpoint(model.info.directory);
  // Enough together to fill a step of the decoder with prompts.
  const prompts = Array<string>(16).fill("a large red circle left of a small blue square");
  const images = await model.generate(prompts, { seed: 1, steps: 1 });
  await model.caption(images, { maxNewTokens: 1 });
  const { allocatedBytes } = model.stats();
  const activations = allocatedBytes - estimateMemory(checkpoint).copied;
  const estimate = estimateActivations(checkpoint);
  // The engine allocates blocks that double, and keeps them.
  expect(activations).toBeGreaterThan(estimate / 2);
  expect(activations).toBeLessThan(estimate * 2);
});

/** What decoding a large picture leaves in the workspace must not be what a drawing lacks from then on. */
test.each([12, 13, 14, 15])(
  "after %d rows of tokens were decoded, a drawing has room",
  async (side) => {
    const directory = join(FIXTURES, "unifluid-tiny");
    await using model = await UniFluid.load(directory, { device: "cpu", maxMemory: 3_200_000 });
    const prompt = `a large red circle ${"and a small blue square ".repeat(6)}`;
    const before = await model.generateLatents(prompt, { seed: 1, steps: 2 });
    const channels = model.info.image!.tokenChannels;
    // The largest may themselves find no room.
    await model.decodeLatents(new Float32Array(side * side * channels)).catch(() => undefined);
    expectSameBits(await model.generateLatents(prompt, { seed: 1, steps: 2 }), before);
  },
);

describe.each([2.4e6, 3.3e6, 4.4e6, 5.2e6])("within %d bytes", (maxMemory) => {
  const load = () => UniFluid.load("shapes-64", { device: "cpu", threads: 2, maxMemory });
  const outcome = (work: Promise<unknown>) =>
    work.then(
      () => "done",
      ({ code }) => code as string,
    );
  const image = { pixels: new Uint8Array(3), width: 1, height: 1 };
  const write = (model: UniFluid) => model.complete("a", { maxNewTokens: 200, temperature: 1 });

  test("what runs on a fresh model runs after any other request", async () => {
    const requests: ((model: UniFluid) => Promise<unknown>)[] = [
      write,
      (model) => model.generate("a red circle", { seed: 1, steps: 2 }),
      (model) => model.edit(image, "make it blue", { seed: 1, steps: 2 }),
      (model) => model.caption(image, { maxNewTokens: 2 }),
      (model) => model.encodeImage(image),
      (model) => model.logits({ tokens: new Array(64).fill(5) }),
    ];
    const fresh: string[] = [];
    for (const request of requests) {
      await using model = await load();
      fresh.push(await outcome(request(model)));
    }
    await using model = await load();
    // Each after each other.
    for (const before of requests) {
      for (const [i, request] of requests.entries()) {
        await outcome(before(model));
        expect([i, await outcome(request(model))]).toEqual([i, fresh[i]]);
      }
    }
  });

  test("a picture that would find no room is refused before any of it is drawn", async () => {
    await using model = await load();
    const drawn = await outcome(model.generate("a red circle", { seed: 1, steps: 2 }));
    if (drawn !== "done") {
      expect(drawn).toBe("INSUFFICIENT_MEMORY");
      expect(model.stats().rows).toBe(0);
    }
  });

  test("requests of all kinds together end as they do alone", async () => {
    await using model = await load();
    const both = [
      () => write(model),
      () => model.generate("a red circle", { seed: 1, steps: 2 }),
      () => model.caption(image, { maxNewTokens: 2 }),
    ];
    const alone: string[] = [];
    for (const request of both) alone.push(await outcome(request()));
    const together = await Promise.all(
      [0, 1, 2, 3, 4].flatMap(() => both.map((request) => outcome(request()))),
    );
    expect(together).toEqual([0, 1, 2, 3, 4].flatMap(() => alone));
  });
});
