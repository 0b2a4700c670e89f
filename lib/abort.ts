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
  const offs = sources.map((signal) => onAbort(signal, () => controller.abort(signal.reason)));
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
