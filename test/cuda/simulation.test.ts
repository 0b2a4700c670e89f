/** The simulated CUDA itself: it must catch what a device would let pass, and find no fault in what is right. */
import { addon } from "../support/ops";

const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8];

/** What the error must name. A grid barrier that is missing shows in the results of some order of blocks. */
const FOUND: Record<string, RegExp | "results"> = {
  "missing __syncthreads": /without a barrier|nothing wrote/,
  "missing __syncthreads before the next writes": /without a barrier/,
  "missing __syncwarp": /without a barrier|nothing wrote/,
  "divergent barrier": /divergent barrier/,
  "barrier at two places": /divergent barrier: .*defects\.cpp:\d+, another at defects\.cpp:\d+/,
  "divergent shuffle": /lanes that have ended/,
  "shuffles at two places": /at different operations: defects\.cpp:\d+ and defects\.cpp:\d+/,
  "a copy that nobody waits for": /a cp\.async that it did not wait for/,
  "missing cp.async wait": /before the wait of a copy/,
  "missing barrier after a cp.async wait": /without a barrier|before the wait|nothing wrote/,
  "out-of-bounds shared read": /out of bounds: element 64 of 64/,
  "out-of-bounds shared write": /out of bounds: element \d+ of 64/,
  "more shared memory than the launch has": /the launch has 512 bytes and the kernel takes 1024/,
  "shared memory that nothing wrote": /nothing wrote/,
  "missing grid barrier": "results",
  "divergent grid barrier": /waits at grid\.h:\d+ for what nobody posts/,
  "missing wait for a bulk copy": /before the wait of a copy/,
  "bytes that never come": /waits at .* for what nobody posts/,
  "missing wait for an arrival of copies": /before the wait of a copy|nothing wrote/,
  "missing wait for a free place": /write before an earlier copy was waited for/,
  "a place freed before it is read": /read before the wait of a copy/,
  "missing barrier of a part": /without a barrier|nothing wrote/,
  "divergent barrier of a part": /divergent barrier/,
  "a copy over what a product reads": /write while a product may read/,
  "missing fence of the asynchronous proxy": /without a fence of the asynchronous proxy/,
  "missing barrier before a product": /without a barrier|nothing wrote/,
  "missing fence before a product": /without a fence of its warpgroup/,
  "missing wait for a product": /a product that it did not wait for/,
  "accumulators before the wait": "results",
  "different products of a warpgroup": /different products/,
  "half of a warpgroup": /divergent barrier/,
  "missing wait for inputs": /ended without a wait for its inputs/,
  "missing post": /waits at exchange\.h:\d+ for what nobody posts/,
};

test("every defect has its expectation", () => {
  expect(addon.simulationDefects()).toEqual(Object.keys(FOUND).sort());
});

describe.each(Object.entries(FOUND))("%s", (name, found) => {
  test.each(SEEDS)("the right kernel passes, seed %d", (seed) => {
    expect(addon.runDefect(name, false, seed)).toEqual({ error: "", right: true });
  });

  if (found === "results")
    test("is seen in some order of threads", () => {
      const outcomes = SEEDS.map((seed) => addon.runDefect(name, true, seed));
      expect(outcomes.some(({ right }) => !right)).toBe(true);
    });
  else
    test.each(SEEDS)("is caught, seed %d", (seed) => {
      expect(addon.runDefect(name, true, seed).error).toMatch(found);
    });
});
