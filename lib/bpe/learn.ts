/**
 * Byte-pair encoding (Sennrich et al., 2016): of all pairs of neighbours in the words of a text, the most
 * frequent becomes a token, again and again. Pairs are counted once; a merge counts only what it changes.
 */

import { setImmediate } from "node:timers/promises";

/** A word of a text, as characters, and how often it occurs. */
export type WordCounts = ReadonlyMap<string, number>;

export interface LearnedVocabulary {
  /** Single characters first, by code point, then what merges made, the most frequent first. */
  tokens: string[];
  /** The pairs that are merged, in their order. */
  merges: [string, string][];
}

interface Word {
  /** Indices of tokens. */
  symbols: number[];
  count: number;
}

interface Pair {
  left: number;
  right: number;
  count: number;
  /** Indices of words that have it, or had it. */
  words: Set<number>;
}

/** A pair that occurs once saves nothing. */
const LEAST_COUNT = 2;

/**
 * At most `size` tokens: half of them single characters, the most frequent, and the rest pairs. The same words
 * give the same tokens, whatever their order. Throws the signal's reason.
 */
export async function learnVocabulary(
  words: WordCounts,
  size: number,
  signal?: AbortSignal,
): Promise<LearnedVocabulary> {
  const tokens = frequentCharacters(words, Math.ceil(size / 2));
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const parts = inSymbols(words, ids);
  const pairs = new PairTable();
  for (const [at, { symbols, count }] of parts.entries())
    for (let i = 0; i + 1 < symbols.length; i++)
      pairs.count(symbols[i] as number, symbols[i + 1] as number, at, count);
  pairs.settle();
  const merges: [string, string][] = [];
  while (tokens.length < size) {
    // Learning computes on this thread: signals are heard in between.
    await setImmediate();
    signal?.throwIfAborted();
    const best = pairs.takeBest();
    if (!best) break;
    const [left, right] = [tokens[best.left] as string, tokens[best.right] as string];
    merges.push([left, right]);
    // Two ways may lead to one token.
    const joined = left + right;
    const id = ids.get(joined) ?? tokens.length;
    if (id === tokens.length) {
      tokens.push(joined);
      ids.set(joined, id);
    }
    for (const at of best.words) {
      const word = parts[at] as Word;
      word.symbols = join(word, best, id, (left, right, change) =>
        pairs.count(left, right, at, change),
      );
    }
    pairs.settle();
  }
  return { tokens, merges };
}

function frequentCharacters(words: WordCounts, most: number): string[] {
  const counts = new Map<string, number>();
  for (const [word, count] of words)
    for (const character of word) counts.set(character, (counts.get(character) ?? 0) + count);
  const codePoint = (character: string) => character.codePointAt(0) as number;
  return [...counts]
    .sort(([a, m], [b, n]) => n - m || codePoint(a) - codePoint(b))
    .slice(0, most)
    .map(([character]) => character)
    .sort((a, b) => codePoint(a) - codePoint(b));
}

/** Words as indices; where a character is no token, it parts what stands beside it. */
function inSymbols(words: WordCounts, ids: ReadonlyMap<string, number>): Word[] {
  const parts: Word[] = [];
  for (const [word, count] of words) {
    let symbols: number[] = [];
    for (const character of word) {
      const id = ids.get(character);
      if (id !== undefined) {
        symbols.push(id);
        continue;
      }
      if (symbols.length > 1) parts.push({ symbols, count });
      symbols = [];
    }
    if (symbols.length > 1) parts.push({ symbols, count });
  }
  return parts;
}

/**
 * The word's symbols with the pair merged into `id`. Tells how often each pair of neighbours occurs more or less, place
 * by place: long words are not counted anew.
 */
function join(
  { symbols, count }: Word,
  { left, right }: Pair,
  id: number,
  changed: (left: number, right: number, change: number) => void,
): number[] {
  const out: number[] = [];
  for (let i = 0; i < symbols.length; i++) {
    if (symbols[i] !== left || symbols[i + 1] !== right) {
      out.push(symbols[i] as number);
      continue;
    }
    // What stands before is merged already, what comes behind is not yet.
    const [before, behind] = [out.at(-1), symbols[i + 2]];
    changed(left, right, -count);
    if (before !== undefined) {
      changed(before, left, -count);
      changed(before, id, count);
    }
    if (behind !== undefined) {
      changed(right, behind, -count);
      changed(id, behind, count);
    }
    out.push(id);
    i++;
  }
  return out;
}

/** How often each pair of neighbours occurs, and which is the most frequent. */
class PairTable {
  private readonly pairs = new Map<number, Pair>();
  private readonly heap: { pair: Pair; count: number }[] = [];
  /** Pairs that were counted since `settle`. */
  private readonly counted = new Set<Pair>();

  /** A pair occurs so much more often in the word at this index, or less. */
  count(left: number, right: number, at: number, change: number): void {
    const key = left * 2 ** 26 + right;
    let pair = this.pairs.get(key);
    if (!pair) {
      pair = { left, right, count: 0, words: new Set() };
      this.pairs.set(key, pair);
    }
    pair.count += change;
    // Counts that fell are noticed when they are taken.
    if (change < 0) return;
    pair.words.add(at);
    this.counted.add(pair);
  }

  /** Ends a merge: each pair takes its new place once, in however many words it was counted. */
  settle(): void {
    for (const pair of this.counted) this.push(pair);
    this.counted.clear();
  }

  /** The most frequent pair, of equal ones that of the lowest indices; undefined: none occurs twice. */
  takeBest(): Pair | undefined {
    for (let top = this.pop(); top; top = this.pop()) {
      if (top.pair.count === top.count) return top.pair;
      if (top.pair.count < top.count && top.pair.count >= LEAST_COUNT) this.push(top.pair);
    }
    return undefined;
  }

  private before(a: { pair: Pair; count: number }, b: { pair: Pair; count: number }): boolean {
    if (a.count !== b.count) return a.count > b.count;
    return a.pair.left !== b.pair.left ? a.pair.left < b.pair.left : a.pair.right < b.pair.right;
  }

  private push(pair: Pair): void {
    if (pair.count < LEAST_COUNT) return;
    const { heap } = this;
    let at = heap.push({ pair, count: pair.count }) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.before(heap[at]!, heap[parent]!)) break;
      [heap[at], heap[parent]] = [heap[parent]!, heap[at]!];
      at = parent;
    }
  }

  private pop(): { pair: Pair; count: number } | undefined {
    const { heap } = this;
    const top = heap[0];
    const last = heap.pop();
    if (!last || heap.length === 0) return top;
    heap[0] = last;
    for (let at = 0; ; ) {
      let first = at;
      for (const child of [2 * at + 1, 2 * at + 2])
        if (child < heap.length && this.before(heap[child]!, heap[first]!)) first = child;
      if (first === at) return top;
      [heap[at], heap[first]] = [heap[first]!, heap[at]!];
      at = first;
    }
  }
}
