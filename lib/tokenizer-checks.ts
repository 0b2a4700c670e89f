/**
 * What a `tokenizer.json` must be before the tokenizers library gets it: the library takes much of what it does not
 * understand for something else, and would tokenize wrongly. What is refused here as malformed is refused by the
 * reference implementation too, Hugging Face's tokenizers in Rust, when it reads the file or at the first text that
 * needs it; some of what the reference can do and the library cannot is refused as not supported.
 */

import { isObject, show } from "./checkpoint/fields.js";
import { TokenizerMismatchError } from "./errors.js";

/** As deep as the reference's JSON reader goes. */
const MAX_DEPTH = 128;

/** An entry of `added_tokens`, as far as it is checked. */
interface Added {
  content: string;
  id: number;
}

interface Vocabulary {
  ids: Map<string, number>;
  /** By id. */
  tokens: string[];
}

/** Throws `TokenizerMismatchError`, which names the file by `where`, unless a tokenizer can be made of it. */
export function checkTokenizer(json: unknown, where: string, vocabSize: number): void {
  new Checker(where, vocabSize).check(json);
}

class Checker {
  constructor(
    private readonly where: string,
    private readonly vocabSize: number,
  ) {}

  check(json: unknown): void {
    if (!isObject(json)) this.wrong("an object", "the file", json);
    this.checkParts(json);
    const { model, added_tokens: added } = json;
    if (!isObject(model)) this.wrong("an object", "model", model);
    const vocab = this.vocabulary(model.vocab);
    const own = this.added(vocab, added);
    const known = (token: string) => vocab.ids.has(token) || own.has(token);
    switch (model.type) {
      case "BPE":
        // A file may say "", which is none.
        if (model.continuing_subword_prefix)
          this.unsupported("model.continuing_subword_prefix", model.continuing_subword_prefix);
        this.checkUnknown(model.unk_token, known);
        this.checkMerges(model, vocab.ids);
        break;
      case "WordPiece":
        if (typeof model.unk_token !== "string") {
          this.wrong("a string", "model.unk_token", model.unk_token);
        }
        this.checkUnknown(model.unk_token, known);
        break;
      case "Unigram":
        if (!Array.isArray(model.vocab)) this.wrong("a list", "model.vocab", model.vocab);
        if (model.byte_fallback) this.unsupported("model.byte_fallback of Unigram", true);
        this.checkUnknownId(model.unk_id, vocab.ids.size);
        break;
      default:
        this.wrong('"BPE", "Unigram" or "WordPiece"', "model.type", model.type);
    }
  }

  private fail(reason: string): never {
    throw new TokenizerMismatchError(`${this.where}: ${reason}`);
  }

  private wrong(expected: string, name: string, found: unknown): never {
    this.fail(`expected ${expected} for ${name} but found ${show(found)}`);
  }

  /** Of what the library would do otherwise than the reference. */
  private unsupported(name: string, found: unknown): never {
    this.fail(`${name} is not supported but found ${show(found)}`);
  }

  /** Tokens to ids, of `{ token: id }`, or of Unigram's list of `[token, score]`; and the tokens by id. */
  private vocabulary(vocab: unknown): Vocabulary {
    const ids = new Map<string, number>();
    const tokens: string[] = [];
    const add = (token: unknown, id: unknown) => {
      if (typeof token !== "string") this.wrong("strings", "the tokens of model.vocab", token);
      this.checkId(token, id);
      const twin = tokens[id];
      if (twin !== undefined) {
        this.fail(`tokens ${show(twin)} and ${show(token)} of model.vocab both have id ${id}`);
      }
      ids.set(token, id);
      tokens[id] = token;
    };
    if (Array.isArray(vocab)) {
      for (const [id, entry] of vocab.entries()) add(Array.isArray(entry) ? entry[0] : entry, id);
    } else if (isObject(vocab)) {
      for (const token of Object.keys(vocab)) add(token, vocab[token]);
    } else {
      this.wrong("an object", "model.vocab", vocab);
    }
    return { ids, tokens };
  }

  /** Takes `added_tokens` into the tokens by id; most are in the vocabulary already. The ids of all of them. */
  private added({ ids, tokens }: Vocabulary, added: unknown): Map<string, number> {
    if (!Array.isArray(added)) this.wrong("a list", "added_tokens", added);
    const own = new Map<string, number>();
    for (const entry of added as unknown[]) {
      if (!isObject(entry) || typeof entry.content !== "string" || entry.content === "") {
        this.wrong("objects with content", "added_tokens", entry);
      }
      const { content, id } = entry as unknown as Added;
      this.checkId(content, id);
      const known = own.get(content) ?? ids.get(content);
      if (known !== undefined && known !== id) {
        this.fail(`token ${show(content)} has id ${id} in added_tokens but ${known} before`);
      }
      const twin = tokens[id];
      if (twin !== undefined && twin !== content) {
        this.fail(`tokens ${show(twin)} and ${show(content)} of added_tokens both have id ${id}`);
      }
      own.set(content, id);
      tokens[id] = content;
    }
    return own;
  }

  private checkId(token: string, id: unknown): asserts id is number {
    if (typeof id !== "number" || !Number.isSafeInteger(id) || id < 0) {
      this.wrong("an integer of at least 0", `the id of ${show(token)}`, id);
    }
    if (id >= this.vocabSize) {
      this.fail(
        `token ${show(token)} has id ${id} but the model's vocabulary has ${this.vocabSize} ids`,
      );
    }
  }

  /** The token of what is in no other; null: what is in none is left out. */
  private checkUnknown(token: unknown, known: (token: string) => boolean): void {
    if (token === undefined || token === null) return;
    if (typeof token !== "string") this.wrong("a string", "model.unk_token", token);
    if (!known(token)) this.wrong("a token of the vocabulary", "model.unk_token", token);
  }

  private checkUnknownId(id: unknown, size: number): void {
    if (id === undefined || id === null) return;
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) >= size) {
      this.wrong(`an id below ${size}, the size of model.vocab,`, "model.unk_id", id);
    }
  }

  /** Merges of two tokens to one, all as `"a b"` or all as `["a", "b"]`. */
  private checkMerges(model: Record<string, unknown>, ids: ReadonlyMap<string, number>): void {
    const { merges } = model;
    if (!Array.isArray(merges)) this.wrong("a list", "model.merges", merges);
    const asPairs = Array.isArray(merges[0]);
    // Gemma's has half a million: nothing is made for a good one but its parts.
    for (const merge of merges as unknown[]) {
      const [left, right] = (asPairs ? pair : halves)(merge) ?? [];
      if (!left || !right) {
        this.wrong(asPairs ? "pairs of tokens" : 'texts "a b"', "model.merges", merge);
      }
      const joined = left + right;
      if (ids.has(left) && ids.has(right) && ids.has(joined)) continue;
      const stranger = [left, right, joined].find((token) => !ids.has(token));
      this.fail(
        `model.merges has ${show(merge)}, but ${show(stranger)} is no token of model.vocab`,
      );
    }
  }

  /**
   * The library takes a pattern that it does not understand for none, and keeps adjacent marks of punctuation together
   * whatever `behavior` says. Walks without recursion, since a file may be nested deeper than the stack.
   */
  private checkParts(json: unknown): void {
    const rest: [value: unknown, depth: number][] = [[json, 0]];
    for (let next = rest.pop(); next; next = rest.pop()) {
      const [value, depth] = next;
      if (typeof value !== "object" || value === null) continue;
      if (depth === MAX_DEPTH) this.fail(`expected less than ${MAX_DEPTH} levels of nesting`);
      const { type, pattern, behavior } = value as Record<string, unknown>;
      if (type === "Punctuation" && behavior !== "Contiguous")
        this.unsupported('behavior of Punctuation other than "Contiguous"', behavior);
      if (pattern !== undefined || type === "Replace" || type === "Split") {
        const { String: text, Regex: regex } = isObject(pattern) ? pattern : {};
        if (typeof (text ?? regex) !== "string") {
          this.wrong("a string or a regular expression", "pattern", pattern);
        }
      }
      for (const [name, child] of Object.entries(value)) {
        if (name !== "vocab" && name !== "merges") rest.push([child, depth + 1]);
      }
    }
  }
}

type Pair = readonly [left: string, right: string];

const pair = (merge: unknown): Pair | undefined =>
  Array.isArray(merge) && merge.length === 2 && merge.every((part) => typeof part === "string")
    ? (merge as unknown as Pair)
    : undefined;

/** Of "a b". Not by `split`, which takes ten times as long. */
function halves(merge: unknown): Pair | undefined {
  if (typeof merge !== "string") return undefined;
  const space = merge.indexOf(" ");
  if (space < 0 || merge.includes(" ", space + 1)) return undefined;
  return [merge.slice(0, space), merge.slice(space + 1)];
}
