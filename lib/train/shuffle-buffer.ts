/**
 * A shuffle of what comes in a row: as many records as the buffer holds wait, and each draw takes one of them at
 * random. With room for all of them that is a uniform shuffle.
 */
import type { Random } from "../philox.js";

export class ShuffleBuffer<T> {
  /** What waits, in an order that later draws depend on. */
  readonly items: T[] = [];

  constructor(
    private readonly size: number,
    private readonly random: Random,
  ) {}

  get full(): boolean {
    return this.items.length >= this.size;
  }

  push(item: T): void {
    this.items.push(item);
  }

  /** One of those that wait; undefined where none does. Takes one random number. */
  take(): T | undefined {
    if (this.items.length === 0) return undefined;
    const at = this.random.below(this.items.length);
    const taken = this.items[at] as T;
    const last = this.items.pop() as T;
    if (at < this.items.length) this.items[at] = last;
    return taken;
  }
}
