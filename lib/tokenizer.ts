/**
 * Text to token ids and back, as `tokenizer.json` says. The tokenizers library does the work; what it does
 * differently from the reference implementation, whose ids and texts models were trained with, is put
 * right here.
 */

import { readFile } from "node:fs/promises";
import { setImmediate } from "node:timers/promises";
import {
  ByteFallbackDecoder,
  Tokenizer as LibraryTokenizer,
  SequenceDecoder,
} from "@huggingface/tokenizers";
import { type AddedToken, AddedTokenSplitter } from "./added-tokens.js";
import { CheckpointNotFoundError, PromptTooLongError, TokenizerMismatchError } from "./errors.js";
import { checkTokenizer } from "./tokenizer-checks.js";

const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;

/** The byte that a byte-fallback token stands for. */
function byteOf(token: string): number | undefined {
  const hex = BYTE_TOKEN.exec(token)?.[1];
  return hex === undefined ? undefined : Number.parseInt(hex, 16);
}

/**
 * Byte tokens to text as the reference does it: a run of them is the character string it spells in UTF-8, or
 * one U+FFFD for each byte where the run as a whole is not UTF-8. (The library replaces only the bad parts,
 * and drops a leading byte order mark.)
 */
class ByteRunDecoder extends ByteFallbackDecoder {
  private readonly strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

  override decode_chain(tokens: string[]): string[] {
    const out: string[] = [];
    let run: number[] = [];
    const close = () => {
      if (run.length > 0) out.push(this.textOf(run));
      run = [];
    };
    for (const token of tokens) {
      const byte = byteOf(token);
      if (byte !== undefined) {
        run.push(byte);
      } else {
        close();
        out.push(token);
      }
    }
    close();
    return out;
  }

  private textOf(run: number[]): string {
    try {
      return this.strict.decode(Uint8Array.from(run));
    } catch {
      return "\ufffd".repeat(run.length);
    }
  }
}

/** An entry of `added_tokens`. */
interface AddedTokenJson extends AddedToken {
  special?: boolean;
  /** It is looked for in normalized text; absent: unless it is special. */
  normalized?: boolean;
}

interface TokenizerJson {
  model: { type: string; byte_fallback?: boolean; vocab: Record<string, number> };
  pre_tokenizer?: { type: string; behavior?: string } | null;
}

/** Others may take a word as one unknown token, or leave out what they do not know, or spaces. */
function keepsAllOf({ model, pre_tokenizer: pre }: TokenizerJson): boolean {
  if (model.type !== "BPE" || !model.byte_fallback) return false;
  const bytes = Object.keys(model.vocab).filter((token) => BYTE_TOKEN.test(token));
  return bytes.length === 256 && (!pre || (pre.type === "Split" && pre.behavior !== "Removed"));
}

/** A token, or text of a section between added tokens. */
type Part = { id: number } | { text: string; index: number };

export class Tokenizer {
  private readonly special: ReadonlySet<number>;
  /** Of the text as it was given, and of normalized text. */
  private readonly rawSplitter: AddedTokenSplitter;
  private readonly normalizedSplitter: AddedTokenSplitter;
  private longest: number | undefined;

  private constructor(
    private readonly library: LibraryTokenizer,
    private readonly added: readonly AddedTokenJson[],
    /** Every character of a normalized text is in a token: it has no fewer tokens than times that it holds the longest. */
    private readonly keepsAll: boolean,
  ) {
    const { decoder, normalizer } = library;
    this.special = new Set(added.filter((token) => token.special).map((token) => token.id));
    const isRaw = (token: AddedTokenJson) => !(token.normalized ?? !token.special);
    this.rawSplitter = new AddedTokenSplitter(added.filter(isRaw));
    this.normalizedSplitter = new AddedTokenSplitter(
      added
        .filter((token) => !isRaw(token))
        .map((token) => ({ ...token, content: normalizer?.(token.content) ?? token.content })),
    );
    if (decoder instanceof SequenceDecoder) {
      decoder.decoders = decoder.decoders.map((part) =>
        part instanceof ByteFallbackDecoder ? new ByteRunDecoder({ type: "ByteFallback" }) : part,
      );
    } else if (decoder instanceof ByteFallbackDecoder) {
      library.decoder = new ByteRunDecoder({ type: "ByteFallback" });
    }
  }

  /**
   * Reads a `tokenizer.json` whose ids must be below `vocabSize`. Between its steps, of which each takes a second for
   * Gemma's, other work goes on and the signal is looked at.
   */
  static async load(path: string, vocabSize: number, signal?: AbortSignal): Promise<Tokenizer> {
    const turn = async () => {
      await setImmediate();
      signal?.throwIfAborted();
    };
    let text: string;
    try {
      text = await readFile(path, "utf8");
    } catch (cause) {
      throw new CheckpointNotFoundError(`cannot read ${path}: ${(cause as Error).message}`, {
        cause,
      });
    }
    let json: unknown;
    try {
      json = JSON.parse(text);
    } catch (cause) {
      throw new TokenizerMismatchError(`${path}: not JSON: ${(cause as Error).message}`, { cause });
    }
    await turn();
    checkTokenizer(json, path, vocabSize);
    await turn();
    return Tokenizer.ofChecked(json, path);
  }

  /** The tokenizer that parsed JSON describes; `where` names it in errors. */
  static parse(json: unknown, where: string, vocabSize: number): Tokenizer {
    checkTokenizer(json, where, vocabSize);
    return Tokenizer.ofChecked(json, where);
  }

  private static ofChecked(json: unknown, where: string): Tokenizer {
    try {
      // The settings of tokenizer_config.json would change texts in ways the reference does not.
      const library = new LibraryTokenizer(json as object, { clean_up_tokenization_spaces: false });
      const { added_tokens: added } = json as { added_tokens: AddedTokenJson[] };
      const tokenizer = new Tokenizer(library, added, keepsAllOf(json as TokenizerJson));
      // The library notices some of what it cannot do only when it is to do it.
      tokenizer.decode([...tokenizer.encode("a b\n\u00e9 \u{1f600}"), 0]);
      return tokenizer;
    } catch (cause) {
      const reason = (cause as Error).message;
      throw new TokenizerMismatchError(`${where}: cannot be used: ${reason}`, { cause });
    }
  }

  /**
   * Token ids of a text, without special tokens around it. The library's parts are put together here: its
   * own way takes text that only normalization made equal to an added token for that token.
   *
   * Throws `PROMPT_TOO_LONG` for a text that must have more than `most`, where that can be told before it is cut into
   * tokens, which takes seconds for a million characters.
   */
  encode(text: string, most = Number.POSITIVE_INFINITY): number[] {
    const { normalizer } = this.library;
    const parts = this.rawSplitter.split(text).flatMap((section, index): Part[] => {
      if ("token" in section) return [{ id: section.token.id }];
      const normalized = normalizer ? normalizer(section.text) : section.text;
      return this.normalizedSplitter
        .split(normalized)
        .map((part) => ("token" in part ? { id: part.token.id } : { text: part.text, index }));
    });
    if (this.keepsAll && most < Number.POSITIVE_INFINITY)
      this.checkLength(parts, text.length, most);
    return parts.flatMap((part) =>
      "id" in part ? part.id : this.encodePlain(part.text, part.index),
    );
  }

  private checkLength(parts: readonly Part[], length: number, most: number): void {
    const least = parts.reduce(
      (sum, part) => sum + ("id" in part ? 1 : Math.ceil(part.text.length / this.longestToken)),
      0,
    );
    if (least <= most) return;
    throw new PromptTooLongError(
      `the text of ${length} characters takes at least ${least} rows, but this model's sequences have at most ` +
        `${most} (max_position_embeddings)`,
    );
  }

  /** Length of the longest token, in UTF-16 units. */
  private get longestToken(): number {
    this.longest ??= [
      ...this.library.model.tokens_to_ids.keys(),
      ...this.added.map(({ content }) => content),
    ].reduce((most, token) => Math.max(most, token.length), 1);
    return this.longest;
  }

  private encodePlain(text: string, section: number): number[] {
    const { model, pre_tokenizer } = this.library;
    const words = pre_tokenizer ? pre_tokenizer(text, { section_index: section }) : [text];
    const ids = model(words).map((token) => model.tokens_to_ids.get(token) ?? model.unk_token_id);
    return ids.filter((id) => id !== undefined); // no unknown token: what it would stand for is dropped
  }

  /** The text of token ids, special tokens left out. */
  decode(ids: Iterable<number>): string {
    const tokens: string[] = [];
    for (const id of ids) {
      const token = this.special.has(id) ? undefined : this.library.id_to_token(id);
      if (token !== undefined) tokens.push(token);
    }
    if (tokens.length === 0) return "";
    const { decoder } = this.library;
    return decoder ? decoder.decode(tokens) : tokens.join(" ");
  }

  /** The token of an id, as the file spells it. */
  token(id: number): string | undefined {
    return this.library.id_to_token(id);
  }

  /** `decode` leaves the token out: it stands for no text. */
  isSpecial(id: number): boolean {
    return this.special.has(id);
  }

  /** Decodes tokens as they come. */
  stream(): TokenStream {
    return new TokenStream(this, (id) => {
      if (this.special.has(id)) return "nothing";
      const token = this.library.id_to_token(id);
      if (token === undefined) return "nothing";
      return byteOf(token) === undefined ? "text" : "byte";
    });
  }
}

/** What stands for a character whose last bytes are missing: it has up to three, each of which may be a token. */
const UNFINISHED = "\ufffd";
const UNFINISHED_TOKENS = 3;

/**
 * Text of tokens that come one by one. The pieces joined are what `decode` makes of all tokens: a run of byte
 * tokens is held back until it has ended, since only then is it known what it spells, and so is a character that
 * tokens of byte-level BPE have cut in two.
 */
export class TokenStream {
  // Tokens whose text is not out yet, behind the last one whose text is: a decoder may treat the first
  // token of a text unlike the others.
  private window: number[] = [];
  private emitted = 0;

  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly kind: (id: number) => "text" | "byte" | "nothing",
  ) {}

  /** The text that the token settles; may be empty. */
  push(id: number): string {
    const kind = this.kind(id);
    if (kind === "nothing") return "";
    this.window.push(id);
    if (kind === "byte") return "";
    const text = this.tokenizer.decode(this.window);
    const held = text.endsWith(UNFINISHED) ? UNFINISHED.length : 0;
    const piece = text.slice(this.emitted, text.length - held);
    this.window = this.window.slice(held > 0 ? -1 - UNFINISHED_TOKENS : -1);
    this.emitted = this.tokenizer.decode(this.window).length - held;
    return piece;
  }

  /** The text held back. */
  end(): string {
    return this.tokenizer.decode(this.window).slice(this.emitted);
  }
}
