import { getEventListeners } from "node:events";
import type { NativeRequest } from "../../lib/native";
import { signalOption } from "../../lib/options";
import { Requests, type StreamEvent } from "../../lib/requests";
import { FakeNative } from "../support/fake-native";

const request: NativeRequest = {
  kind: "score",
  prefix: { tokens: Int32Array.of(2) },
  suffix: new Int32Array(0),
};

function start() {
  const requests = new Requests();
  const native = new FakeNative(requests.onEvents);
  requests.attach(native);
  return { requests, native };
}

const token = (value: number) => ({ type: "token", token: value }) as const;
const done = { type: "done" } as const;

describe("a promise", () => {
  test("is settled by its own done event", async () => {
    const { requests, native } = start();
    const [first, second] = [requests.run(request), requests.run(request)];
    const logits = Float32Array.of(1);
    native.send(2, { ...done, logits });
    native.send(1, done);
    expect((await second).logits).toBe(logits);
    await first;
    expect(native.cancelled).toEqual([]);
  });

  test("rejects with the class of an error event", async () => {
    const { requests, native } = start();
    const promise = requests.run(request);
    native.send(1, { type: "error", code: "INSUFFICIENT_MEMORY", message: "full" });
    await expect(promise).rejects.toMatchObject({
      name: "InsufficientMemoryError",
      code: "INSUFFICIENT_MEMORY",
      message: "full",
    });
  });

  test("rejects where the request is refused at once", async () => {
    const { requests, native } = start();
    native.refusal = { code: "INVALID_ARGUMENT", message: "no" };
    await expect(requests.run(request)).rejects.toMatchObject({ code: "INVALID_OPTION" });
  });
});

describe("what comes before a request", () => {
  const never = (signal: AbortSignal) =>
    new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));

  test("ends by the call's signal, which keeps no listener", async () => {
    const { requests } = start();
    const controller = new AbortController();
    const preparing = requests.prepare(never, controller.signal);
    controller.abort(new Error("enough"));
    await expect(preparing).rejects.toThrow("enough");
    expect(getEventListeners(controller.signal, "abort")).toHaveLength(0);
    const { signal } = new AbortController();
    expect(await requests.prepare(async () => 5, signal)).toBe(5);
    expect(getEventListeners(signal, "abort")).toHaveLength(0);
  });

  test("ends with the model", async () => {
    const { requests } = start();
    const preparing = requests.prepare(never);
    await requests.dispose();
    await expect(preparing).rejects.toMatchObject({ code: "DISPOSED" });
    await expect(requests.prepare(never)).rejects.toMatchObject({ code: "DISPOSED" });
  });

  test("of several parts ends with the first that fails", async () => {
    const { requests } = start();
    let ended = false;
    const work = async (signal: AbortSignal) => {
      const slow = never(signal).catch(() => {
        ended = true;
      });
      await Promise.all([slow, Promise.reject(new Error("broken"))]);
    };
    await expect(requests.prepare(work)).rejects.toThrow("broken");
    await Promise.resolve();
    expect(ended).toBe(true);
  });
});

describe("several together", () => {
  test("come in the order of the requests", async () => {
    const { requests, native } = start();
    const all = requests.runAll([request, request]);
    native.send(2, { ...done, tokens: Int32Array.of(2) });
    native.send(1, { ...done, tokens: Int32Array.of(1) });
    expect((await all).map(({ tokens }) => tokens![0])).toEqual([1, 2]);
    expect(await requests.runAll([])).toEqual([]);
  });

  test("end when one fails", async () => {
    const { requests, native } = start();
    const all = requests.runAll([request, request, request]);
    native.send(1, done);
    native.send(2, { type: "error", code: "NUMERICAL_ERROR", message: "NaN" });
    await expect(all).rejects.toMatchObject({ code: "NUMERICAL_ERROR" });
    expect(native.cancelled).toEqual([3]);
  });

  test("end when one is refused", async () => {
    const { requests, native } = start();
    const submit = native.submit.bind(native);
    native.submit = (r) => {
      if (native.requests.length === 1) throw { code: "INSUFFICIENT_MEMORY", message: "full" };
      return submit(r);
    };
    await expect(requests.runAll([request, request])).rejects.toMatchObject({
      code: "INSUFFICIENT_MEMORY",
    });
    expect(native.cancelled).toEqual([1]);
  });
});

describe("a full queue", () => {
  const full = { code: "QUEUE_FULL", message: "full" };

  test("refuses, or is waited out where that was asked for", async () => {
    const { requests, native } = start();
    native.refusal = full;
    await expect(requests.runAll([request])).rejects.toMatchObject({ code: "QUEUE_FULL" });
    const submit = jest.spyOn(native, "submit");
    const waiting = requests.runAll([request], undefined, "wait");
    while (submit.mock.calls.length < 3) await new Promise((resolve) => setTimeout(resolve, 5));
    native.refusal = undefined;
    while (native.requests.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    native.send(1, done);
    expect(await waiting).toHaveLength(1);
  });

  test("is waited for until a signal, or the end of the model", async () => {
    const { requests, native } = start();
    native.refusal = full;
    const controller = new AbortController();
    const { signal } = controller;
    const given = requests.runAll([request], signal, "wait");
    const other = requests.runAll([request], undefined, "wait");
    await new Promise((resolve) => setImmediate(resolve));
    const reason = new Error("enough");
    controller.abort(reason);
    await expect(given).rejects.toBe(reason);
    expect(getEventListeners(signal, "abort")).toHaveLength(0);
    await requests.dispose();
    await expect(other).rejects.toMatchObject({ code: "DISPOSED" });
  });
});

describe("a signal", () => {
  test("already aborted: nothing is submitted", async () => {
    const { requests, native } = start();
    const reason = new Error("never mind");
    await expect(requests.run(request, AbortSignal.abort(reason))).rejects.toBe(reason);
    const stream = requests.stream(request, AbortSignal.abort(reason));
    await expect(stream.next()).rejects.toBe(reason);
    expect(native.requests).toEqual([]);
  });

  test("rejects with its reason and cancels, once", async () => {
    const { requests, native } = start();
    const controller = new AbortController();
    const promise = requests.runAll([request, request], controller.signal);
    const reason = new Error("enough");
    controller.abort(reason);
    await expect(promise).rejects.toBe(reason);
    expect(native.cancelled).toEqual([1, 2]);
    native.send(1, done); // on its way when it was cancelled
  });

  test("afterwards means nothing", async () => {
    const { requests, native } = start();
    const controller = new AbortController();
    const promise = requests.run(request, controller.signal);
    native.send(1, done);
    await promise;
    controller.abort();
    expect(native.cancelled).toEqual([]);
  });

  test("ends a stream at once, whatever is still queued", async () => {
    const { requests, native } = start();
    const controller = new AbortController();
    const stream = requests.stream(request, controller.signal);
    const first = stream.next();
    native.send(1, token(5), token(6), token(7));
    expect((await first).value).toMatchObject({ token: 5 });
    controller.abort("stop");
    await expect(stream.next()).rejects.toBe("stop");
    expect(native.cancelled).toEqual([1]);
    expect((await stream.next()).done).toBe(true);
  });
});

describe("a signal that is not Node's", () => {
  /** As a polyfill without `reason` and `throwIfAborted` makes it. */
  class Foreign {
    aborted = false;
    readonly listeners = new Set<() => void>();
    addEventListener(_type: string, listener: () => void) {
      this.listeners.add(listener);
    }
    removeEventListener(_type: string, listener: () => void) {
      this.listeners.delete(listener);
    }
    abort() {
      this.aborted = true;
      for (const listener of this.listeners) listener();
    }
  }

  test("rejects and cancels, with one listener for all calls", async () => {
    const { requests, native } = start();
    const foreign = new Foreign();
    const signals = [signalOption(foreign), signalOption(foreign)];
    const promises = signals.map((signal) => requests.run(request, signal));
    expect(foreign.listeners.size).toBe(1);
    foreign.abort();
    for (const promise of promises) {
      await expect(promise).rejects.toMatchObject({ name: "AbortError" });
    }
    expect(native.cancelled).toEqual([1, 2]);
    await expect(requests.run(request, signalOption(foreign))).rejects.toMatchObject({
      name: "AbortError",
    });
    expect(native.requests).toHaveLength(2);
  });

  test("already aborted, also without an event: nothing is submitted", async () => {
    const { requests, native } = start();
    const foreign = new Foreign();
    signalOption(foreign);
    foreign.aborted = true;
    await expect(requests.run(request, signalOption(foreign))).rejects.toMatchObject({
      name: "AbortError",
    });
    expect(native.requests).toEqual([]);
  });

  test("its reason is passed on", async () => {
    const { requests } = start();
    const foreign = Object.assign(new Foreign(), { reason: "enough" });
    const promise = requests.run(request, signalOption(foreign));
    foreign.abort();
    await expect(promise).rejects.toBe("enough");
  });

  test.each([
    ["null", null],
    ["without aborted", { addEventListener() {}, removeEventListener() {} }],
    ["without removeEventListener", { aborted: false, addEventListener() {} }],
    ["what only inherits from AbortSignal", Object.create(AbortSignal.prototype)],
  ])("%s is none", (_name, value) => {
    expect(() => signalOption(value)).toThrow(expect.objectContaining({ code: "INVALID_OPTION" }));
  });

  test("what fails before a request is submitted leaves none", async () => {
    const { requests, native } = start();
    // Not through signalOption: Node's setMaxListeners takes no such object.
    const foreign = { aborted: false, throwIfAborted() {} } as unknown as AbortSignal;
    await expect(requests.run(request, foreign)).rejects.toThrow();
    expect(native.requests).toEqual([]);
  });

  test("a refused request leaves no listener", async () => {
    const { requests, native } = start();
    native.refusal = { code: "INVALID_ARGUMENT", message: "no" };
    const { signal } = new AbortController();
    await expect(requests.run(request, signal)).rejects.toMatchObject({ code: "INVALID_OPTION" });
    expect(getEventListeners(signal, "abort")).toEqual([]);
  });
});

describe("a stream", () => {
  const collect = async (stream: AsyncIterable<StreamEvent>) => {
    const events: StreamEvent[] = [];
    for await (const event of stream) events.push(event);
    return events.map((event) => (event.type === "token" ? event.token : event.type));
  };

  test("passes events on in order and ends with done", async () => {
    const { requests, native } = start();
    const events = collect(requests.stream(request));
    await null;
    native.send(1, token(5));
    await null;
    native.send(1, token(6), token(7), done);
    expect(await events).toEqual([5, 6, 7, "done"]);
    expect(native.cancelled).toEqual([]);
  });

  test("starts when it is read", async () => {
    const { requests, native } = start();
    requests.stream(request);
    expect(native.requests).toEqual([]);
  });

  test("gives what came before an error, then the error", async () => {
    const { requests, native } = start();
    const stream = requests.stream(request);
    const first = stream.next();
    native.send(1, token(5), { type: "error", code: "INTERNAL", message: "broken" });
    expect((await first).value).toMatchObject({ token: 5 });
    await expect(stream.next()).rejects.toMatchObject({ code: "INTERNAL", message: "broken" });
  });

  test("is cancelled when the loop is left", async () => {
    const { requests, native } = start();
    const first = (async () => {
      for await (const event of requests.stream(request)) return event;
      return undefined;
    })();
    native.send(1, token(5));
    expect(await first).toMatchObject({ token: 5 });
    expect(native.cancelled).toEqual([1]);
  });
});

describe("disposal", () => {
  test("rejects what runs and what comes, and happens once", async () => {
    const { requests, native } = start();
    const running = requests.run(request);
    const stream = requests.stream(request);
    const next = stream.next();
    const disposed = expect(running).rejects.toMatchObject({ code: "DISPOSED" });
    await Promise.all([requests.dispose(), requests.dispose()]);
    await disposed;
    await expect(next).rejects.toMatchObject({ code: "DISPOSED" });
    await expect(requests.run(request)).rejects.toMatchObject({ code: "DISPOSED" });
    await expect(requests.stream(request).next()).rejects.toMatchObject({ code: "DISPOSED" });
    expect(() => requests.model()).toThrow(expect.objectContaining({ code: "DISPOSED" }));
    expect(native.disposals).toBe(1);
  });

  test("a failure of the native side is one of ours", async () => {
    const { requests, native } = start();
    native.dispose = () => Promise.reject({ code: "INTERNAL", message: "stuck" });
    await expect(requests.dispose()).rejects.toMatchObject({ name: "InternalError" });
  });
});
