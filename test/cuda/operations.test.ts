/** Operations on the simulated CUDA library in bfloat16, and the invariance of their rows. */
import { compare } from "../support/cuda-cases";
import { Random } from "../support/numbers";
import { addon, type Backend, expectSameBits, simulatedLibrary } from "../support/ops";
import { families } from "./cases";

let cuda: Backend;
let cpu: Backend;
beforeAll(() => {
  cuda = new addon.TestBackend({ library: simulatedLibrary, compute: "bf16" });
  cpu = new addon.TestBackend({ threads: 1 });
});
afterAll(() => {
  cuda.close();
  cpu.close();
});

describe.each(Object.entries(families))("%s", (_, { cases, invariants }) => {
  const simulated = cases.filter((c) => !c.deviceOnly);
  test.each(simulated.map((c) => [c.name, c] as const))("%s", (_name, c) => {
    const { seed } = new Random();
    const { error, tolerance, where } = compare(c, cuda, cpu, () => new Random(seed));
    if (!(error <= tolerance))
      throw new Error(
        `off by ${error} units where ${tolerance} are allowed, seed ${seed}, ${where}`,
      );
  });
  if (invariants.length > 0)
    test.each(invariants.map((c) => [c.name, c] as const))("invariant: %s", (_name, c) => {
      const { seed } = new Random();
      const { whole, alone } = c.run(cuda, new Random(seed));
      expectSameBits(alone, whole, `seed ${seed}`);
    });
});
