/**
 * Randomness of a scene, named by a seed, the split and the scene's number: Philox4x32-10 (Salmon et al.,
 * 2011), so that any scene of a data set can be drawn again without those before it.
 */

const M0 = 0xd2511f53n;
const M1 = 0xcd9e8d57n;
const LOW = 0xffffffffn;

/** The four words of one counter under one key. */
export function philox(key: bigint, counter: readonly [number, number, number, number]): number[] {
  let k0 = Number(key & LOW);
  let k1 = Number((key >> 32n) & LOW);
  let [c0, c1, c2, c3] = counter;
  for (let round = 0; round < 10; round++) {
    const p0 = M0 * BigInt(c0 >>> 0);
    const p1 = M1 * BigInt(c2 >>> 0);
    c0 = (Number(p1 >> 32n) ^ c1 ^ k0) >>> 0;
    c1 = Number(p1 & LOW);
    c2 = (Number(p0 >> 32n) ^ c3 ^ k1) >>> 0;
    c3 = Number(p0 & LOW);
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0 >>> 0, c1 >>> 0, c2 >>> 0, c3 >>> 0];
}

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
      this.words = philox(this.seed, [this.block++, this.index, this.stream, 0x5ce7e5]);
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

  chance(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)] as T;
  }
}
