/**
 * Operations on the simulated CUDA library in bfloat16, and the invariance of their rows. What Hopper has kernels of
 * its own for runs on a simulated Hopper too, and the diffusion head and the decoder's steps with so many processors that
 * each has few columns.
 */
import { type CudaCase, compare, type Invariant } from "../support/cuda-cases";
import { Random } from "../support/numbers";
import { addon, type Backend, expectSameBits, simulate, simulatedLibrary } from "../support/ops";
import { families, WARPGROUP_FAMILIES } from "./cases";

let cpu: Backend;
beforeAll(() => {
  cpu = new addon.TestBackend({ threads: 1 });
});
afterAll(() => cpu.close());

describe.each([
  { device: "8.6", capability: 86, processors: 4, of: Object.keys(families), wgmma: false },
  { device: "9.0", capability: 90, processors: 4, of: WARPGROUP_FAMILIES, wgmma: true },
  // Steps at once take more processors than the others need.
  { device: "9.0, 17 processors", capability: 90, processors: 17, of: ["decoder"], wgmma: true },
  {
    device: "9.0, 22 processors",
    capability: 90,
    processors: 22,
    of: ["decoder"],
    // Nothing else differs from 17.
    only: "products of several slots",
    wgmma: true,
  },
  {
    device: "8.6, 33 processors",
    capability: 86,
    processors: 33,
    of: ["diffusion_few"],
    wgmma: false,
  },
])("compute capability $device", ({ capability, processors, of, only = "", wgmma }) => {
  const isRun = ({ name, deviceOnly }: CudaCase | Invariant) => !deviceOnly && name.includes(only);
  beforeAll(() => simulate({ capability, processors }));
  afterAll(() => simulate());

  describe.each(of)("%s", (family) => {
    const { cases, invariants, training } = families[family]!;
    let cuda: Backend;
    beforeAll(() => {
      const compute = training ? "f32" : "bf16";
      cuda = new addon.TestBackend({ library: simulatedLibrary, compute });
    });
    afterAll(() => cuda.close());

    test("uses the products of warpgroups where there are any", () => {
      const used = training ? ", wgmma in training" : ", wgmma";
      expect(cuda.description().endsWith(used)).toBe(wgmma);
    });

    const simulated = cases.filter(isRun);
    test.each(simulated.map((c) => [c.name, c] as const))("%s", (_name, c) => {
      const { seed } = new Random();
      const { error, tolerance, where } = compare(c, cuda, cpu, () => new Random(seed));
      if (!(error <= tolerance))
        throw new Error(
          `off by ${error} units where ${tolerance} are allowed, seed ${seed}, ${where}`,
        );
    });
    const companies = invariants.filter(isRun);
    if (companies.length > 0)
      test.each(companies.map((c) => [c.name, c] as const))("invariant: %s", (_name, c) => {
        const { seed } = new Random();
        const { whole, alone } = c.run(cuda, new Random(seed));
        expectSameBits(alone, whole, `seed ${seed}`);
      });
  });
});
