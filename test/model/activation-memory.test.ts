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
