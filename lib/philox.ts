/**
 * Randomness by name, in TypeScript: Philox4x32-10 (Salmon et al., 2011) keyed by a seed and what is drawn, so
 * that any scene of a data set, any weight of a fresh model and any batch of a run can be drawn again without
 * what came before it.
 */

/** The high 32 bits of a product of two 32-bit numbers, the first of which is in halves. */
function highProduct(ah: number, al: number, b: number): number {
  const bl = b & 0xffff;
  const bh = b >>> 16;
  const middle = ah * bl + ((al * bl) >>> 16);
  const rest = al * bh + (middle & 0xffff);
  return ah * bh + Math.floor(middle / 0x10000) + Math.floor(rest / 0x10000);
}

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;

export type Counter = readonly [number, number, number, number];

/**
 * Writes the four words of one counter under the key (k0, k1). It runs for every other weight of a fresh model, hundreds
 * of millions of times: no BigInt and no array is made.
 */
function drawWords(
  words: Uint32Array,
  k0: number,
  k1: number,
  c0: number,
  c1: number,
  c2: number,
  c3: number,
): void {
  for (let round = 0; round < 10; round++) {
    const high0 = highProduct(M0 >>> 16, M0 & 0xffff, c0);
    const high1 = highProduct(M1 >>> 16, M1 & 0xffff, c2);
    const low0 = Math.imul(M0, c0);
    const low1 = Math.imul(M1, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + 0x9e3779b9) | 0;
    k1 = (k1 + 0xbb67ae85) | 0;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

const halves = (key: bigint): [number, number] => [
  Number(BigInt.asIntN(32, key)),
  Number(BigInt.asIntN(32, key >> 32n)),
];

/** The four words of one counter under one key. */
export function philox(key: bigint, counter: Counter): [number, number, number, number] {
  const words = new Uint32Array(4);
  drawWords(words, ...halves(key), ...counter);
  return [...words] as [number, number, number, number];
}

/** The last counter word: keeps these draws apart from those of the model (spec section 7). */
const TAG = 0x5ce7e5;

export class Random {
  private readonly words = new Uint32Array(4);
  /** Of them; they are used from the last to the first. */
  private left = 0;
  private block = 0;
  private readonly k0: number;
  private readonly k1: number;

  /** `stream` and `index` name what is drawn: the split of a data set and the scene in it. */
  constructor(
    seed: bigint,
    private readonly stream: number,
    private readonly index: number,
  ) {
    [this.k0, this.k1] = halves(seed);
  }

  /** In [0, 1), 32 bits fine. */
  next(): number {
    if (this.left === 0) {
      drawWords(this.words, this.k0, this.k1, this.block++, this.index, this.stream, TAG);
      this.left = 4;
    }
    return (this.words[--this.left] as number) / 2 ** 32;
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
