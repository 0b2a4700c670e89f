/** How many images are decoded at once: each has all its pixels in memory, whatever its size. */

import { onAbort } from "./abort.js";

/** Lets some work at a time, in the order in which they came. */
export class Semaphore {
  private readonly waiting: (() => void)[] = [];

  constructor(private free: number) {}

  /** Throws the signal's reason where it aborts before there is a place. */
  async run<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted();
    if (this.free > 0) this.free--;
    else await this.turn(signal);
    try {
      return await work();
    } finally {
      // The place is handed on, so that nobody who came later takes it.
      const next = this.waiting.shift();
      if (next) next();
      else this.free++;
    }
  }

  private turn(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      let off = () => {};
      const begin = () => {
        off();
        resolve();
      };
      this.waiting.push(begin);
      if (!signal) return;
      off = onAbort(signal, () => {
        this.waiting.splice(this.waiting.indexOf(begin), 1);
        reject(signal.reason);
      });
    });
  }
}

/** One for all of a process, which shares its memory. Work within never asks for another place. */
export const decoding = new Semaphore(8);
