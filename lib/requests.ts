/**
 * Requests to the native engine as promises and async iterators: events find the call that waits for them,
 * and a signal, a `break` or `dispose` frees the sequence.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { onAbort, underEach } from "./abort.js";
import { DisposedError, fromNative, QueueFullError } from "./errors.js";
import type { NativeEvent, NativeModel, NativeRequest } from "./native.js";

export type DoneEvent = Extract<NativeEvent, { type: "done" }>;
/** What a stream passes on: its last event is `done`. */
export type StreamEvent = Exclude<NativeEvent, { type: "error" }>;

interface Listener {
  event(event: StreamEvent): void;
  /** Nothing follows. `atOnce`: what was not yet taken is not wanted any more. */
  fail(error: unknown, atOnce: boolean): void;
}

/** What becomes of requests that find the queue full of others: `wait` tries again until there is room. */
export type WhenFull = "refuse" | "wait";

/** Milliseconds until what was refused is tried again: the first, and the longest after doubling. */
const FIRST_WAIT = 10;
const LONGEST_WAIT = 500;

/** A request under way. */
interface Ticket {
  /** Ends the request, if it has not ended; its listener hears no more. */
  cancel(): void;
}

/**
 * Those that somebody waits for. The engine holds them weakly, so that a model that was dropped without `dispose`
 * can be collected; but a call whose model was dropped must still come to its end.
 */
const awaited = new Set<Requests>();

/** Passes events on, without keeping their receiver. Not a method, whose closure could hold `this`. */
function deliverTo(receiver: WeakRef<Requests>): (events: NativeEvent[]) => void {
  return (events) => receiver.deref()?.deliver(events);
}

export class Requests {
  private readonly listeners = new Map<number, Listener>();
  private native: NativeModel | undefined;
  private disposal: Promise<void> | undefined;
  /** What is under way before it becomes a request. */
  private readonly preparing = new Set<AbortController>();

  /** Give this to `loadModel`, which keeps it as long as the model is there; it keeps nothing. */
  readonly onEvents = deliverTo(new WeakRef(this));

  /** What the engine sends. */
  deliver(events: readonly NativeEvent[]): void {
    for (const event of events) {
      const listener = this.listeners.get(event.id);
      if (!listener) continue; // cancelled a moment ago
      if (event.type === "done" || event.type === "error") this.forget(event.id);
      if (event.type === "error") listener.fail(fromNative(event), false);
      else listener.event(event);
    }
  }

  private expect(id: number, listener: Listener): void {
    this.listeners.set(id, listener);
    awaited.add(this);
  }

  /** Whether the request was still waited for. */
  private forget(id: number): boolean {
    const known = this.listeners.delete(id);
    if (this.listeners.size === 0) awaited.delete(this);
    return known;
  }

  attach(native: NativeModel): void {
    this.native = native;
  }

  /** The model, unless it was disposed. */
  model(): NativeModel {
    if (!this.native || this.disposal) throw new DisposedError();
    return this.native;
  }

  /**
   * Does what comes before a request, above all the reading of images, under a signal that aborts when the call's
   * does and when the model is disposed.
   */
  async prepare<T>(work: (signal: AbortSignal) => Promise<T>, signal?: AbortSignal): Promise<T> {
    this.model();
    const end = new AbortController();
    this.preparing.add(end);
    try {
      return await underEach([signal, end.signal], work);
    } finally {
      this.preparing.delete(end);
    }
  }

  /** Runs requests together. If one fails the others are cancelled. */
  async runAll(
    requests: readonly NativeRequest[],
    signal?: AbortSignal,
    whenFull: WhenFull = "refuse",
  ): Promise<DoneEvent[]> {
    for (let wait = FIRST_WAIT; ; wait = Math.min(2 * wait, LONGEST_WAIT)) {
      try {
        return await this.runNow(requests, signal);
      } catch (error) {
        if (whenFull === "refuse" || !(error instanceof QueueFullError)) throw error;
      }
      const waited = (ends: AbortSignal) =>
        sleep(wait, undefined, { signal: ends }).catch(() => Promise.reject(ends.reason));
      await this.prepare(waited, signal);
    }
  }

  private async runNow(
    requests: readonly NativeRequest[],
    signal: AbortSignal | undefined,
  ): Promise<DoneEvent[]> {
    const tickets: Ticket[] = [];
    try {
      const results = requests.map(
        (request) =>
          new Promise<DoneEvent>((resolve, reject) => {
            const listener: Listener = {
              event: (event) => {
                if (event.type === "done") resolve(event);
              },
              fail: reject,
            };
            tickets.push(this.open(request, signal, listener));
          }),
      );
      return await Promise.all(results);
    } finally {
      for (const ticket of tickets) ticket.cancel();
    }
  }

  async run(request: NativeRequest, signal?: AbortSignal): Promise<DoneEvent> {
    const [done] = await this.runAll([request], signal);
    return done!;
  }

  /** A request's events as they come, the last one `done`. Leaving the loop cancels it. */
  async *stream(
    request: NativeRequest,
    signal?: AbortSignal,
  ): AsyncGenerator<StreamEvent, void, undefined> {
    // A sequence's length is bounded, and so is this queue.
    const queue: StreamEvent[] = [];
    let failure: { error: unknown } | undefined;
    let wake = () => {};
    const ticket = this.open(request, signal, {
      event: (event) => {
        queue.push(event);
        wake();
      },
      fail: (error, atOnce) => {
        if (atOnce) queue.length = 0;
        failure = { error };
        wake();
      },
    });
    try {
      for (;;) {
        const event = queue.shift();
        if (event) {
          yield event;
          if (event.type === "done") return;
        } else if (failure) {
          throw failure.error;
        } else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    } finally {
      ticket.cancel();
    }
  }

  private open(
    request: NativeRequest,
    signal: AbortSignal | undefined,
    listener: Listener,
  ): Ticket {
    const native = this.model();
    signal?.throwIfAborted();
    let id: number | undefined;
    const abort = () => {
      ticket.cancel();
      listener.fail(signal?.reason, true);
    };
    let unhook = () => {};
    const ticket: Ticket = {
      cancel: () => {
        unhook();
        if (id !== undefined && this.forget(id)) native.cancel(id);
      },
    };
    // What can fail comes first: a request that was submitted must be one that somebody can end.
    if (signal) unhook = onAbort(signal, abort);
    try {
      id = native.submit(request);
    } catch (failure) {
      unhook();
      throw fromNative(failure);
    }
    this.expect(id, listener);
    return ticket;
  }

  /** Ends the engine; whoever waits gets a `DisposedError`. */
  dispose(): Promise<void> {
    this.disposal ??= this.end();
    return this.disposal;
  }

  private async end(): Promise<void> {
    const listeners = [...this.listeners.values()];
    this.listeners.clear();
    awaited.delete(this);
    for (const listener of listeners) listener.fail(new DisposedError(), true);
    for (const controller of this.preparing) controller.abort(new DisposedError());
    const { native } = this;
    this.native = undefined;
    await native?.dispose().catch((failure) => {
      throw fromNative(failure);
    });
  }
}
