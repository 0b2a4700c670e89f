/**
 * Randomness by name, in TypeScript: Philox4x32-10 (Salmon et al., 2011) keyed by a seed and what is drawn, so
 * that any scene of a data set, any weight of a fresh model and any batch of a run can be drawn again without
 * what came before it.
 */

/** The high 32 bits of a product of two 32-bit numbers. */
function highProduct(a: number, b: number): number {
  const [al, ah, bl, bh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = ah * bl + ((al * bl) >>> 16);
  const rest = al * bh + (middle & 0xffff);
  return (ah * bh + Math.floor(middle / 0x10000) + Math.floor(rest / 0x10000)) >>> 0;
}

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;

export type Counter = readonly [number, number, number, number];

/** The four words of one counter under one key. */
export function philox(key: bigint, counter: Counter): [number, number, number, number] {
  let k0 = Number(key & 0xffffffffn);
  let k1 = Number((key >> 32n) & 0xffffffffn);
  let [c0, c1, c2, c3] = counter.map((word) => word >>> 0) as [number, number, number, number];
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = [highProduct(M0, c0), Math.imul(M0, c0) >>> 0];
    const [high1, low1] = [highProduct(M1, c2), Math.imul(M1, c2) >>> 0];
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0;
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** The last counter word: keeps these draws apart from those of the model (spec section 7). */
const TAG = 0x5ce7e5;

export class Random {
  private words: number[] = [];
  private block = 0;

  /** `stream` and `index` name what is drawn: the split of a data set and the scene in it. */
  constructor(
    private readonly seed: bigint,
    private readonly stream: number,
    private readonly index: number,
  ) {}

  /** In [0, 1), 32 bits fine. */
  next(): number {
    if (this.words.length === 0)
      this.words = philox(this.seed, [this.block++, this.index, this.stream, TAG]);
    return (this.words.pop() as number) / 2 ** 32;
  }

  /** A whole number from 0 to below `n`. */
  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  /** In [low, high). */
  between(low: number, high: number): number {
    return low + (high - low) * this.next();
  }

  /** From the standard normal distribution, by Box and Muller's method. */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.next()));
    return radius * Math.cos(2 * Math.PI * this.next());
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)] as T;
  }
}
