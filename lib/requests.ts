/**
 * Requests to the native engine as promises and async iterators: events find the call that waits for them,
 * and a signal, a `break` or `dispose` frees the sequence.
 */

import { setMaxListeners } from "node:events";
import { DisposedError, fromNative } from "./errors.js";
import type { NativeEvent, NativeModel, NativeRequest } from "./native.js";

export type DoneEvent = Extract<NativeEvent, { type: "done" }>;
/** What a stream passes on: its last event is `done`. */
export type StreamEvent = Exclude<NativeEvent, { type: "error" }>;

interface Listener {
  event(event: StreamEvent): void;
  /** Nothing follows. `atOnce`: what was not yet taken is not wanted any more. */
  fail(error: unknown, atOnce: boolean): void;
}

/** A request under way. */
interface Ticket {
  /** Ends the request, if it has not ended; its listener hears no more. */
  cancel(): void;
}

export class Requests {
  private readonly listeners = new Map<number, Listener>();
  private native: NativeModel | undefined;
  private disposal: Promise<void> | undefined;

  /** Give this to `loadModel`. */
  readonly onEvents = (events: NativeEvent[]): void => {
    for (const event of events) {
      const listener = this.listeners.get(event.id);
      if (!listener) continue; // cancelled a moment ago
      if (event.type === "done" || event.type === "error") this.listeners.delete(event.id);
      if (event.type === "error") listener.fail(fromNative(event), false);
      else listener.event(event);
    }
  };

  attach(native: NativeModel): void {
    this.native = native;
  }

  /** The model, unless it was disposed. */
  model(): NativeModel {
    if (!this.native || this.disposal) throw new DisposedError();
    return this.native;
  }

  /** Runs requests together. If one fails the others are cancelled. */
  async runAll(requests: readonly NativeRequest[], signal?: AbortSignal): Promise<DoneEvent[]> {
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
    let id: number;
    try {
      id = native.submit(request);
    } catch (failure) {
      throw fromNative(failure);
    }
    const abort = () => {
      ticket.cancel();
      listener.fail(signal?.reason, true);
    };
    const unhook = () => signal?.removeEventListener("abort", abort);
    const ticket: Ticket = {
      cancel: () => {
        unhook();
        if (this.listeners.delete(id)) native.cancel(id);
      },
    };
    if (signal) {
      // One signal may stop many requests; Node would take that for a leak.
      setMaxListeners(0, signal);
      signal.addEventListener("abort", abort, { once: true });
    }
    this.listeners.set(id, listener);
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
    for (const listener of listeners) listener.fail(new DisposedError(), true);
    const { native } = this;
    this.native = undefined;
    await native?.dispose().catch((failure) => {
      throw fromNative(failure);
    });
  }
}
