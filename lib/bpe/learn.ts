/**
 * Byte-pair encoding (Sennrich et al., 2016): of all pairs of neighbours in the words of a text, the most
 * frequent becomes a token, again and again. Pairs are counted once; a merge counts anew only the words that it
 * changes.
 */

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
 * give the same tokens, whatever their order.
 */
export function learnVocabulary(words: WordCounts, size: number): LearnedVocabulary {
  const tokens = frequentCharacters(words, Math.ceil(size / 2));
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const parts = inSymbols(words, ids);
  const pairs = new PairTable();
  for (const [at, word] of parts.entries()) pairs.count(word, at, word.count);
  const merges: [string, string][] = [];
  while (tokens.length < size) {
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
      pairs.count(word, at, -word.count);
      word.symbols = join(word.symbols, best, id);
      pairs.count(word, at, word.count);
    }
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

function join(symbols: readonly number[], { left, right }: Pair, id: number): number[] {
  const out: number[] = [];
  for (let i = 0; i < symbols.length; i++) {
    const found = symbols[i] === left && symbols[i + 1] === right;
    out.push(found ? id : (symbols[i] as number));
    if (found) i++;
  }
  return out;
}

/** How often each pair of neighbours occurs, and which is the most frequent. */
class PairTable {
  private readonly pairs = new Map<number, Pair>();
  private readonly heap: { pair: Pair; count: number }[] = [];

  /** Adds `change` for each pair of a word. */
  count({ symbols }: Word, at: number, change: number): void {
    const touched = new Set<Pair>();
    for (let i = 0; i + 1 < symbols.length; i++) {
      const [left, right] = [symbols[i] as number, symbols[i + 1] as number];
      const key = left * 2 ** 26 + right;
      let pair = this.pairs.get(key);
      if (!pair) {
        pair = { left, right, count: 0, words: new Set() };
        this.pairs.set(key, pair);
      }
      pair.count += change;
      if (change > 0) pair.words.add(at);
      touched.add(pair);
    }
    // Counts that fell are noticed when they are taken.
    if (change > 0) for (const pair of touched) this.push(pair);
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
