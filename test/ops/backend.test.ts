/** Backends themselves: what they run on, how many threads, how much memory. */
import { Random } from "../support/numbers";
import {
  addon,
  backendCases,
  instructionSets,
  simulatedLibrary,
  withBackend,
} from "../support/ops";

test("the plainest instruction set is always there", () => {
  expect(instructionSets.length).toBeGreaterThan(0);
  expect(addon.instructionSets()[0]!.supported).toBe(true);
});

test("says what it is", () => {
  for (const isa of instructionSets)
    for (const threads of [1, 2])
      withBackend({ isa, threads }, (backend) => {
        const plural = threads > 1 ? "s" : "";
        expect(backend.description()).toBe(`cpu ${isa}, ${threads} thread${plural}`);
      });
  for (const [compute, type] of [
    ["f32", "float32"],
    ["bf16", "bfloat16"],
  ] as const)
    withBackend({ library: simulatedLibrary, compute }, (backend) => {
      expect(backend.description()).toBe(`cuda:0 simulated, compute capability 8.6, ${type}`);
    });
});

test("without a name, the best instruction set", () => {
  withBackend({ threads: 1 }, (backend) => {
    expect(backend.description()).toBe(`cpu ${instructionSets.at(-1)}, 1 thread`);
  });
});

test.each([
  { options: { isa: "mmx", threads: 1 }, message: /mmx/ },
  { options: { threads: 0 }, message: /0/ },
  { options: { threads: -3 }, message: /-3/ },
  { options: { threads: 100000 }, message: /100000/ },
])("refuses $options", ({ options, message }) => {
  expect(() => new addon.TestBackend(options)).toThrow(
    expect.objectContaining({ code: "INVALID_ARGUMENT", message: expect.stringMatching(message) }),
  );
});

test("memory is aligned to cache lines, whatever the size", () => {
  withBackend({ threads: 1 }, (backend) => {
    expect(backend.allocateAndRelease([0, 1, 63, 64, 65, 4095, 1e6])).toEqual(Array(7).fill(0));
  });
});

test("memory beyond the limit is refused, and what was taken before is given back", () => {
  withBackend({ threads: 1, maxMemory: 1 << 20 }, (backend) => {
    const free = backend.available();
    expect(free).toBe(1 << 20);
    const half = 1 << 19;
    const refused = expect.objectContaining({ code: "INSUFFICIENT_MEMORY" });
    expect(() => backend.allocateAndRelease([half, half, 1])).toThrow(refused);
    expect(() => backend.allocateAndRelease([2 ** 20 + 1])).toThrow(refused);
    expect(() => backend.allocateAndRelease([2 ** 53])).toThrow(refused);
    expect(backend.available()).toBe(free);
    backend.allocateAndRelease([half, half]);
    expect(backend.available()).toBe(free);
  });
});

test("without a limit, what the system can give", () => {
  withBackend({ threads: 1 }, (backend) => {
    expect(backend.available()).toBeGreaterThan(0);
    expect(() => backend.allocateAndRelease([2 ** 52])).toThrow(
      expect.objectContaining({ code: "INSUFFICIENT_MEMORY" }),
    );
  });
});

test("many backends, each used by turns", () => {
  const x = new Random(1).matrix(20, 33);
  const backends = backendCases.map(({ options }) => new addon.TestBackend(options));
  try {
    const first = backends.map((backend) => backend.softCap({ x, cap: 2 }));
    const second = backends.map((backend) => backend.softCap({ x, cap: 2 }));
    expect(second).toEqual(first);
  } finally {
    for (const backend of backends) backend.close();
  }
});

test("a closed backend refuses", () => {
  const backend = new addon.TestBackend({ threads: 2 });
  backend.close();
  backend.close();
  expect(() => backend.softCap({ x: new Random(1).matrix(1, 1), cap: 1 })).toThrow(/closed/);
});
