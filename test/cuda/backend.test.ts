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

/** What every backend takes of its limit, for staging. */
const STAGING = 4 << 20;

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
  withBackend({ ...f32, maxMemory: STAGING + (1 << 20) }, (backend) => {
    const free = backend.available();
    expect(free).toBe(1 << 20);
    expect(backend.allocateAndRelease([0, 1, 63, 4095, 100_000])).toEqual(Array(5).fill(0));
    expect(backend.available()).toBe(free);
    const refused = expect.objectContaining({
      code: "INSUFFICIENT_MEMORY",
      message: expect.stringMatching(
        /bytes of GPU memory for caches and activations but \d+ are available/,
      ),
    });
    expect(() => backend.allocateAndRelease([1 << 19, 1 << 19, 1])).toThrow(refused);
    expect(() => backend.allocateAndRelease([2 ** 53])).toThrow(refused);
    expect(backend.available()).toBe(free);
  });
});

test("what the driver takes counts: whole pages of 2 MiB for blocks of more than 1 MiB", () => {
  const MiB = 1 << 20;
  withBackend({ ...f32, maxMemory: STAGING + 8 * MiB }, (backend) => {
    const blocks = (count: number, size: number) => Array<number>(count).fill(size);
    backend.allocateAndRelease(blocks(8, MiB));
    backend.allocateAndRelease(blocks(4, 1.5 * MiB));
    backend.allocateAndRelease(blocks(2, 2 * MiB + 1));
    for (const sizes of [blocks(9, MiB), blocks(5, 1.5 * MiB), blocks(3, 2 * MiB + 1)])
      expect(() => backend.allocateAndRelease(sizes)).toThrow(
        expect.objectContaining({ code: "INSUFFICIENT_MEMORY" }),
      );
    expect(backend.resizeScratch(7 * MiB)).toBe(8 * MiB);
    expect(backend.available()).toBe(0);
  });
});

/** Bytes that a backend opened now could have. */
const free = () => withBackend(f32, (backend) => backend.available());

test("what is kept for reuse counts as held, and is given back before more is taken", () => {
  const before = free();
  withBackend({ ...f32, maxMemory: STAGING + (1 << 20) }, (backend) => {
    const opened = free();
    // Sizes of which no two can share a block, twelve MiB one after another.
    for (let i = 0; i < 24; i++) {
      backend.allocateAndRelease([(16 - (i % 8)) << 16]);
      expect(opened - free()).toBeLessThanOrEqual(1 << 20);
    }
    expect(backend.available()).toBe(1 << 20);
  });
  expect(free()).toBe(before);
});

/** Attention over `rows` rows, which rotates that many queries in scratch: 256 bytes each. */
const attend = (backend: Backend, rows: number, cache?: number) => {
  const random = new Random(4);
  const headDim = 64;
  const matrix = () => random.matrix(rows, headDim);
  return backend.attention({
    q: matrix(),
    k: matrix(),
    v: matrix(),
    ...{ heads: 1, kvHeads: 1, headDim, scale: 1, ropeTheta: 100, firstPosition: 0 },
    spans: [{ firstRow: 0, rows, index: 0, prefixEnd: 0, cache }],
  });
};

test("scratch and staging are within the limit", () => {
  // Tensors of 1 MiB, and as much scratch for queries and keys.
  const rows = 1000;
  const held = (4 * rows * 64 + 2 * rows * 64) * 4;
  withBackend({ ...f32, maxMemory: STAGING + 2 * held }, (backend) => {
    const before = backend.available();
    expect(attend(backend, rows)).toHaveLength(rows * 64);
    expect(backend.available()).toBeLessThanOrEqual(before - 2 * rows * 256);
  });
  withBackend({ ...f32, maxMemory: STAGING + held - (1 << 18) }, (backend) => {
    expect(() => attend(backend, rows)).toThrow(
      expect.objectContaining({
        code: "INSUFFICIENT_MEMORY",
        message: expect.stringMatching(/GPU memory for an operation's scratch but \d+ are/),
      }),
    );
    // What there was stays, and the backend works.
    expect(attend(backend, 10)).toHaveLength(640);
  });
  expect(() => new addon.TestBackend({ ...f32, maxMemory: STAGING - 1 })).toThrow(
    expect.objectContaining({
      code: "INSUFFICIENT_MEMORY",
      message: expect.stringMatching(/4194304 bytes of GPU memory for staging but 4194303 are/),
    }),
  );
});

test("an operation's scratch takes memory that is kept for reuse", () => {
  const [total, mebibyte] = [64 << 20, 1 << 20];
  simulate({ memory: total });
  withBackend(f32, (backend) => {
    backend.allocateAndRelease([backend.available() - 4 * mebibyte]);
    // Another owner leaves room for the tensors, of 1 MiB together, but not for 1 MiB of scratch beside them. A
    // backend takes 4 MiB, and offers half of what so small a device has left.
    const left = 2 * free() + 4 * mebibyte;
    simulate({ memory: total - left + 1.5 * mebibyte });
    expect(attend(backend, 1000)).toHaveLength(64_000);
  });
});

test("two models of one process: neither takes the other's shared memory away", () => {
  const random = new Random(12);
  // Heads whose kernel needs more shared memory than is given unasked, one more than the other.
  const run = (backend: Backend, headDim: number) => {
    const rows = () => random.matrix(4, headDim);
    const spans = [{ firstRow: 0, rows: 4, index: 0, prefixEnd: 0 }];
    const sizes = { heads: 1, kvHeads: 1, headDim, scale: 1 };
    return backend.attention({ q: rows(), k: rows(), v: rows(), ...sizes, spans });
  };
  withBackend(f32, (large) =>
    withBackend(f32, (small) => {
      run(large, 700);
      run(small, 500);
      expect(run(large, 700)).toHaveLength(2800);
    }),
  );
});

test("a step runs without a graph where there is no memory for one", () => {
  const random = new Random(3);
  const x = random.matrix(5, 48);
  const weight = random.floats(48);
  const run = () =>
    withBackend(f32, (backend) => backend.repeat({ x: { ...x, data: x.data.slice() }, weight }, 6));
  const { out } = run();
  simulate({ fail: "graphs" });
  const captures = addon.simulationCaptures(simulatedLibrary);
  const without = run();
  expect(without.graphs).toBe(0);
  expectSameBits(without.out, out);
  // To capture takes time, and is not tried again at once.
  expect(addon.simulationCaptures(simulatedLibrary)).toBe(captures + 1);
});

test("steps are graphs again a while after there was no memory for one", () => {
  const random = new Random(3);
  const step = { x: random.matrix(5, 48), weight: random.floats(48) };
  withBackend(f32, (backend) => {
    simulate({ fail: "graphs" });
    expect(backend.repeat(step, 3).graphs).toBe(0);
    simulate();
    expect(backend.repeat(step, 10).graphs).toBe(0);
    expect(backend.repeat(step, 300).graphs).toBeGreaterThan(10);
  });
});

// Attention appends keys and values in its first launch.
test.each([1, 2])(
  "launch %d, which finds no memory, is no fault: it and what is behind it come later",
  (shortage) => {
    const refused = expect.objectContaining({
      code: "INSUFFICIENT_MEMORY",
      message: expect.stringMatching(/launching a kernel: out of memory/),
    });
    const rows = 3;
    withBackend(f32, (backend) => {
      const [first, second] = [0, 1].map(() => backend.createCache(1, rows, 64));
      const right = attend(backend, rows, first);
      simulate({ shortage });
      for (let i = 0; i < 3; i++) expect(() => attend(backend, rows, second)).toThrow(refused);
      simulate();
      const { keys, values } = backend.readCache(second!);
      expectSameBits(keys, backend.readCache(first!).keys);
      expectSameBits(values, backend.readCache(first!).values);
      expectSameBits(attend(backend, rows), right);
    });
  },
);

test("a graph that finds no memory to be launched is done without", () => {
  const random = new Random(3);
  const step = { x: random.matrix(5, 48), weight: random.floats(48) };
  const right = withBackend(f32, (backend) => backend.repeat(step, 3).out);
  withBackend(f32, (backend) => {
    // A list launch by launch, of four, and two graphs: the latter is refused.
    const at = 4 + 4 + 1 + 1;
    simulate({ shortage: at });
    expectSameBits(backend.repeat(step, 3).out, right);
    expect(backend.graphs()).toBe(1);
  });
});

test("a capture that fails is ended, or the device's memory could not be freed", () => {
  const before = free();
  const backend = new addon.TestBackend(f32);
  try {
    simulate({ fail: "captures" });
    const random = new Random(3);
    const step = { x: random.matrix(5, 48), weight: random.floats(48) };
    expect(() => backend.repeat(step, 2)).toThrow(
      expect.objectContaining({ code: "DEVICE_ERROR" }),
    );
  } finally {
    backend.close();
  }
  simulate();
  expect(free()).toBe(before);
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

test.each(["launches", "waits"] as const)("a fault that %s tell of stays", (fail) => {
  const x = new Random(1).matrix(3, 8);
  const compute = (backend: Backend) =>
    backend.softCap({ x: { ...x, data: x.data.slice() }, cap: 2 });
  const right = withBackend(f32, compute);
  const backend = new addon.TestBackend(f32);
  try {
    simulate({ fail });
    expect(() => compute(backend)).toThrow(
      expect.objectContaining({
        code: "DEVICE_ERROR",
        message: expect.stringMatching(/CUDA error while .*UNIFLUID_SIMT_FAIL/),
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
