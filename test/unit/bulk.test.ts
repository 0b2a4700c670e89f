/** Runs over iterables: bounded, in any order or in that of the items, and left at any point. */

import events from "node:events";
import { type BulkOptions, bulkSettings, runAll } from "../../lib/bulk";
import { DisposedError } from "../../lib/errors";

const settings = (options: BulkOptions & { signal?: AbortSignal } = {}) =>
  bulkSettings(options, 3, ["signal"]).settings;
const tick = (ms = 0) => new Promise((resolve) => setTimeout(resolve, ms));

/** A call that ends when it is told to, or when it is given up. */
class Calls {
  readonly waiting = new Map<
    number,
    { resolve: (v: string) => void; reject: (e: unknown) => void }
  >();
  most = 0;
  aborted: number[] = [];
  readonly call = (_item: number, index: number, signal: AbortSignal): Promise<string> =>
    new Promise<string>((resolve, reject) => {
      this.waiting.set(index, { resolve, reject });
      this.most = Math.max(this.most, this.waiting.size);
      signal.addEventListener("abort", () => {
        if (!this.waiting.has(index)) return;
        this.aborted.push(index);
        this.end(index, new Error("given up"));
      });
    });
  end(index: number, failure?: Error): void {
    const { resolve, reject } = this.waiting.get(index)!;
    this.waiting.delete(index);
    if (failure) reject(failure);
    else resolve(`r${index}`);
  }
}

async function* counting(count: number, seen: { taken: number; closed: boolean }) {
  try {
    for (let i = 0; i < count; i++) {
      seen.taken++;
      yield i;
    }
  } finally {
    seen.closed = true;
  }
}

test("results come as they finish, and by index where asked", async () => {
  for (const ordered of [false, true]) {
    const calls = new Calls();
    const run = runAll([10, 11, 12], calls.call, settings({ ordered }));
    const first = run.next();
    await tick();
    calls.end(2);
    calls.end(0);
    await tick();
    calls.end(1);
    const rest = [(await first).value, (await run.next()).value, (await run.next()).value];
    expect(rest.map((r) => r?.index)).toEqual(ordered ? [0, 1, 2] : [2, 0, 1]);
    expect(rest[0]).toEqual(
      ordered ? { index: 0, item: 10, value: "r0" } : { index: 2, item: 12, value: "r2" },
    );
    expect((await run.next()).done).toBe(true);
  }
});

test("no more than the concurrency is taken, whatever the reader does", async () => {
  const seen = { taken: 0, closed: false };
  const run = runAll(counting(1000, seen), async (item) => item, settings({ concurrency: 5 }));
  await run.next();
  await tick(20);
  // The reader took one and went away: five more may be under way or done.
  expect(seen.taken).toBeLessThanOrEqual(6);
  let count = 1;
  for await (const result of run) {
    count++;
    expect(seen.taken - count).toBeLessThanOrEqual(5);
    expect(result.value).toBe(result.index);
  }
  expect(count).toBe(1000);
  expect(seen.closed).toBe(true);
});

test("the concurrency is used", async () => {
  const calls = new Calls();
  const run = runAll([0, 1, 2, 3, 4], calls.call, settings({ concurrency: 4 }));
  const next = run.next();
  await tick();
  expect([...calls.waiting.keys()]).toEqual([0, 1, 2, 3]);
  for (let i = 0; i < 5; i++) {
    calls.end(i);
    await tick();
    if (i === 0) await next;
    else await run.next();
    await tick();
  }
  expect(calls.most).toBe(4);
  expect((await run.next()).done).toBe(true);
});

test("a failure is a result, and the run goes on", async () => {
  const run = runAll(
    ["a", "b", "c"],
    async (item) => {
      if (item === "b") throw new Error("no b");
      return item.toUpperCase();
    },
    settings(),
  );
  const results = [];
  for await (const result of run) results.push(result);
  expect(results).toEqual([
    { index: 0, item: "a", value: "A" },
    { index: 1, item: "b", error: new Error("no b") },
    { index: 2, item: "c", value: "C" },
  ]);
});

test("an error is an Error: another reason of an item's signal is its cause", async () => {
  const reasons = ["enough", undefined, new DOMException("late", "TimeoutError"), new Error("no")];
  const run = runAll(reasons, (reason) => Promise.reject(reason), settings({ ordered: true }));
  const errors: Error[] = [];
  for await (const { error, value } of run) {
    // The compiler knows from one of the two what the other is.
    if (error === undefined) value satisfies never;
    else errors.push(error);
  }
  expect(errors.slice(0, 2)).toEqual([
    expect.objectContaining({ code: "CANCELLED", cause: "enough" }),
    expect.objectContaining({ code: "CANCELLED", cause: undefined }),
  ]);
  expect(errors[0]!.message).toContain('"enough"');
  expect(errors[2]).toBe(reasons[2]);
  expect(errors[3]).toBe(reasons[3]);
});

test("stopOnError throws it, gives up the others and closes the source", async () => {
  const calls = new Calls();
  const seen = { taken: 0, closed: false };
  const run = runAll(counting(9, seen), calls.call, settings({ stopOnError: true }));
  const next = run.next();
  await tick();
  calls.end(1, new Error("no"));
  await expect(next).rejects.toThrow("no");
  expect(calls.aborted.sort()).toEqual([0, 2]);
  expect(seen).toEqual({ taken: 3, closed: true });
});

test("an error that ends the model ends the run", async () => {
  const seen = { taken: 0, closed: false };
  const call = async (_item: number, index: number) => {
    if (index > 0) throw new DisposedError("the model was disposed");
    return "r";
  };
  const run = runAll(counting(1000, seen), call, settings());
  expect((await run.next()).value).toMatchObject({ value: "r" });
  await expect(run.next()).rejects.toMatchObject({ code: "DISPOSED" });
  expect(seen.closed).toBe(true);
  expect(seen.taken).toBeLessThan(10);
});

test("other work gets its turn where all items fail at once", async () => {
  const controller = new AbortController();
  function* endless() {
    for (let i = 0; ; i++) yield i;
  }
  const run = runAll(
    endless(),
    () => Promise.reject(new Error("no")),
    settings({ signal: controller.signal }),
  );
  setTimeout(() => controller.abort(), 1);
  await expect(
    (async () => {
      for await (const _ of run);
    })(),
  ).rejects.toMatchObject({ name: "AbortError" });
});

test("many runs may share one signal", async () => {
  // Node's warning of many listeners is none of jest's process, and some versions cannot read a limit of 0.
  const limited = jest.spyOn(events, "setMaxListeners");
  try {
    const { signal } = new AbortController();
    const run = runAll([1, 2], async (i) => i, settings({ signal }));
    await run.next();
    const limits = limited.mock.calls.filter(([, target]) => target === signal);
    expect(limits.map(([limit]) => limit)).toContain(0);
    await run.return();
  } finally {
    limited.mockRestore();
  }
});

test("leaving the loop gives up what runs and closes the source", async () => {
  const calls = new Calls();
  const seen = { taken: 0, closed: false };
  const run = runAll(counting(9, seen), calls.call, settings());
  const next = run.next();
  await tick();
  calls.end(0);
  expect((await next).value).toMatchObject({ index: 0 });
  await run.return();
  expect(calls.waiting.size).toBe(0);
  expect(seen.closed).toBe(true);
});

test("an abort throws its reason, also while the source has nothing", async () => {
  const controller = new AbortController();
  const reason = new Error("enough");
  const silent: AsyncIterable<number> = {
    [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => {}) }),
  };
  const run = runAll(silent, async (i) => i, settings({ signal: controller.signal }));
  const next = run.next();
  await tick();
  controller.abort(reason);
  await expect(next).rejects.toBe(reason);
  const aborted = settings({ signal: controller.signal });
  await expect(runAll([1], async (i) => i, aborted).next()).rejects.toBe(reason);
  // Nothing is taken of a source, and yet it is closed.
  const source = {
    next: jest.fn(),
    return: jest.fn(async () => ({ done: true as const, value: 0 })),
  };
  const closed = runAll({ [Symbol.asyncIterator]: () => source }, async (i) => i, aborted);
  await expect(closed.next()).rejects.toBe(reason);
  expect([source.next, source.return].map((f) => f.mock.calls.length)).toEqual([0, 1]);
});

test("a source that breaks is told after what came before it", async () => {
  async function* broken() {
    yield 1;
    throw new Error("disk");
  }
  const run = runAll(broken(), async (i) => i, settings());
  expect((await run.next()).value).toMatchObject({ value: 1 });
  await expect(run.next()).rejects.toThrow("disk");
});

test.each<[BulkOptions, string]>([
  [{ concurrency: 0 }, "an integer"],
  [{ concurrency: 1.5 }, "an integer"],
  [{ ordered: 1 as unknown as boolean }, "a boolean for ordered"],
  [{ stopOnError: "x" as unknown as boolean }, "a boolean for stopOnError"],
])("%j is refused", (options, expected) => {
  expect(() => settings(options)).toThrow(expected);
});

test.each([
  ["a string", "abc"],
  ["a number", 5],
  ["nothing", undefined],
])("%s is not a source", async (_name, source) => {
  const run = runAll(source as unknown as string[], async (i) => i, settings());
  await expect(run.next()).rejects.toMatchObject({ code: "INVALID_OPTION" });
});
