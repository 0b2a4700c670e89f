/** The estimate that `unifluid info` gives, against what the engine allocates. */

import { estimateActivations } from "../../lib/activation-memory.js";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint.js";
import { estimateMemory } from "../../lib/memory.js";
import { UniFluid } from "../../lib/model.js";

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
