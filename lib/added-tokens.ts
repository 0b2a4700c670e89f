/**
 * Cuts added tokens (`<bos>`, runs of newlines, ...) out of a text before the rest is tokenized, as the
 * reference tokenizers do: at the leftmost place the longest token wins.
 */

export interface AddedToken {
  id: number;
  content: string;
  /** Counts only between characters that are no part of a word. */
  single_word?: boolean;
  /** Takes the whitespace before it along. */
  lstrip?: boolean;
  /** Takes the whitespace after it along. */
  rstrip?: boolean;
}

/** A token, or text that is yet to be tokenized. */
export type Section = { token: AddedToken } | { text: string };

export class AddedTokenSplitter {
  private readonly byContent: ReadonlyMap<string, AddedToken>;
  private readonly pattern: RegExp | undefined;

  /** @param tokens With their contents as they stand in the texts that `split` gets. */
  constructor(tokens: readonly AddedToken[]) {
    this.byContent = new Map(tokens.map((token) => [token.content, token]));
    // Alternatives are tried in order: the longest first.
    const contents = [...this.byContent.keys()].sort((a, b) => b.length - a.length);
    const escaped = contents.map((text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
    this.pattern = escaped.length > 0 ? new RegExp(escaped.join("|"), "g") : undefined;
  }

  split(text: string): Section[] {
    const sections: Section[] = [];
    let done = 0;
    for (const match of this.pattern ? text.matchAll(this.pattern) : []) {
      const token = this.byContent.get(match[0])!;
      let start = match.index;
      let end = start + match[0].length;
      if (start < done) continue; // within whitespace that the last token took along
      if (token.single_word && !standsAlone(text, start, end)) continue;
      if (token.lstrip) start = done + text.slice(done, start).trimEnd().length;
      if (token.rstrip) end = text.length - text.slice(end).trimStart().length;
      if (start > done) sections.push({ text: text.slice(done, start) });
      sections.push({ token });
      done = end;
    }
    if (done < text.length) sections.push({ text: text.slice(done) });
    return sections;
  }
}

function standsAlone(text: string, start: number, end: number): boolean {
  return (
    !/[\p{L}\p{N}\p{M}_]$/u.test(text.slice(0, start)) &&
    !/^[\p{L}\p{N}\p{M}_]/u.test(text.slice(end))
  );
}
