/** Work that signals give up. They may be shared by thousands of calls, and keep no listener of one that is over. */

import { setMaxListeners } from "node:events";

/** Calls `abort` when the signal aborts, until the function that is returned is called. */
export function onAbort(signal: AbortSignal, abort: () => void): () => void {
  // One signal may stop many calls; Node would take that for a leak.
  setMaxListeners(0, signal);
  signal.addEventListener("abort", abort, { once: true });
  return () => signal.removeEventListener("abort", abort);
}

/** What the work comes to, or the signal's reason as soon as it aborts: the work is then left to itself. */
export async function orAborted<T>(
  work: () => Promise<T>,
  signal: AbortSignal | undefined,
): Promise<T> {
  if (!signal) return work();
  signal.throwIfAborted();
  let off = () => {};
  const aborted = new Promise<never>((_, reject) => {
    off = onAbort(signal, () => reject(signal.reason));
  });
  try {
    return await Promise.race([work(), aborted]);
  } finally {
    off();
  }
}

/** Aborts the controller when the signal does, until the function that is returned is called. */
export function follow(controller: AbortController, signal: AbortSignal): () => void {
  if (signal.aborted) controller.abort(signal.reason);
  return onAbort(signal, () => controller.abort(signal.reason));
}

/**
 * Runs work under one signal that aborts when any of several does. `AbortSignal.any` would hold on to what it made
 * as long as its sources live.
 */
export async function underEach<T>(
  signals: readonly (AbortSignal | undefined)[],
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const sources = signals.filter((signal) => signal !== undefined);
  const controller = new AbortController();
  for (const signal of sources) signal.throwIfAborted();
  const offs = sources.map((signal) => follow(controller, signal));
  try {
    return await work(controller.signal);
  } catch (error) {
    // Of several things that were begun together one has failed: the others are not wanted any more.
    controller.abort(error);
    throw error;
  } finally {
    for (const off of offs) off();
  }
}

/**
 * A generator whose work is aborted as soon as it is left. By themselves `return` and `throw`, which `Readable.from`
 * calls when its reader is gone, wait until a `next` that is pending has its value.
 */
export function leavable<T, R>(
  make: (work: AbortController) => AsyncGenerator<T, R, undefined>,
): AsyncGenerator<T, R, undefined> {
  const work = new AbortController();
  let left = false;
  const leave = () => {
    left = true;
    work.abort();
  };
  const generator = make(work);
  const { next, return: end, throw: fail } = generator;
  return Object.assign(generator, {
    next: async (): Promise<IteratorResult<T, R>> => {
      try {
        return await next.call(generator);
      } catch (error) {
        if (left) return { done: true, value: undefined as R };
        throw error;
      }
    },
    return: (value: R) => {
      leave();
      return end.call(generator, value);
    },
    throw: (error: unknown) => {
      leave();
      return fail.call(generator, error);
    },
  });
}
