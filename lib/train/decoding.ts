/** How many pictures are decoded at once: each has its file open and all its pixels in memory, whatever its size. */

/** Lets some work at a time, in the order in which they came. */
export class Semaphore {
  private readonly waiting: (() => void)[] = [];

  constructor(private free: number) {}

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.free > 0) this.free--;
    else await new Promise<void>((begin) => this.waiting.push(begin));
    try {
      return await work();
    } finally {
      // The place is handed on, so that nobody who came later takes it.
      const next = this.waiting.shift();
      if (next) next();
      else this.free++;
    }
  }
}

/** One for all sources of a process, which share its memory. Work within never asks for another place. */
export const decoding = new Semaphore(8);
