/** The CUDA backend itself: steps as graphs, memory, and a device that fails. */
import { Random } from "../support/numbers";
import {
  addon,
  type Backend,
  expectSameBits,
  simulate,
  simulatedLibrary,
  withBackend,
} from "../support/ops";

const f32 = { library: simulatedLibrary, compute: "f32" } as const;

afterEach(() => simulate());

test("a step that comes again runs as a graph, with the same results", () => {
  const random = new Random(3);
  const x = random.matrix(5, 48);
  const weight = random.floats(48);
  const one = (backend: Backend, steps: number) =>
    backend.repeat({ x: { ...x, data: x.data.slice() }, weight }, steps);
  const once = withBackend(f32, (backend) => {
    let { data } = x;
    for (let i = 0; i < 6; i++) data = backend.repeat({ x: { ...x, data }, weight }, 1).out;
    return data;
  });
  withBackend(f32, (backend) => {
    const { out, graphs } = one(backend, 6);
    // The first time it is issued launch by launch, the second time captured.
    expect(graphs).toBe(5);
    expectSameBits(out, once);
  });
});

test("memory is aligned, reused, and refused beyond the limit", () => {
  withBackend({ ...f32, maxMemory: 1 << 20 }, (backend) => {
    const free = backend.available();
    expect(free).toBe(1 << 20);
    expect(backend.allocateAndRelease([0, 1, 63, 4095, 100_000])).toEqual(Array(5).fill(0));
    expect(backend.available()).toBe(free);
    const refused = expect.objectContaining({
      code: "INSUFFICIENT_MEMORY",
      message: expect.stringMatching(/bytes of GPU memory but \d+ are available/),
    });
    expect(() => backend.allocateAndRelease([1 << 19, 1 << 19, 1])).toThrow(refused);
    expect(() => backend.allocateAndRelease([2 ** 53])).toThrow(refused);
    expect(backend.available()).toBe(free);
  });
});

test("what other owners of the device have taken is refused at its allocation", () => {
  simulate({ memory: 32 << 20 });
  withBackend(f32, (backend) => {
    const free = backend.available();
    simulate({ memory: 1 << 20 });
    expect(() => backend.allocateAndRelease([4 << 20])).toThrow(
      expect.objectContaining({ code: "INSUFFICIENT_MEMORY" }),
    );
    simulate({ memory: 32 << 20 });
    expect(backend.allocateAndRelease([4 << 20])).toEqual([0]);
    expect(backend.available()).toBe(free);
  });
});

test("a fault stays: the backend says so and must be made anew", () => {
  const x = new Random(1).matrix(3, 8);
  const compute = (backend: Backend) =>
    backend.softCap({ x: { ...x, data: x.data.slice() }, cap: 2 });
  const right = withBackend(f32, compute);
  const backend = new addon.TestBackend(f32);
  try {
    simulate({ fail: true });
    expect(() => compute(backend)).toThrow(
      expect.objectContaining({
        code: "DEVICE_ERROR",
        message: expect.stringMatching(/the GPU failed .*UNIFLUID_SIMT_FAIL/),
      }),
    );
    simulate();
    expect(() => compute(backend)).toThrow(
      expect.objectContaining({
        code: "DEVICE_ERROR",
        message: expect.stringMatching(/loaded again/),
      }),
    );
  } finally {
    backend.close();
  }
  expectSameBits(withBackend(f32, compute), right);
});

test("a library that is none, and a machine without a GPU", () => {
  expect(() => new addon.TestBackend({ ...f32, library: "/no/such.so" })).toThrow(
    expect.objectContaining({
      code: "DEVICE_ERROR",
      message: expect.stringMatching(/cannot be opened/),
    }),
  );
  expect(() => new addon.TestBackend({ ...f32, library: "libm.so.6" })).toThrow(
    expect.objectContaining({
      code: "DEVICE_ERROR",
      message: expect.stringMatching(/another version/),
    }),
  );
  simulate({ devices: 0 });
  expect(() => new addon.TestBackend(f32)).toThrow(
    expect.objectContaining({
      code: "DEVICE_ERROR",
      message: expect.stringMatching(/no CUDA-capable/),
    }),
  );
});

test("products of warpgroups that round otherwise are not used", () => {
  const bf16 = { library: simulatedLibrary, compute: "bf16" } as const;
  const random = new Random(11);
  const x = random.matrix(130, 64);
  const weight = { ...random.matrix(72, 64), type: "f32" } as const;
  const run = (end: RegExp) =>
    withBackend(bf16, (backend) => {
      expect(backend.description()).toMatch(end);
      return backend.linear({ x, weight });
    });
  const expected = run(/bfloat16$/);
  simulate({ capability: 90 });
  expectSameBits(run(/bfloat16, wgmma$/), expected);
  simulate({ capability: 90, rounding: true });
  expectSameBits(run(/bfloat16, no wgmma: it rounds otherwise here$/), expected);
});
