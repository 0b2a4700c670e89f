/** Text as it is written: tokens to pieces of text. */

import type { StreamEvent } from "./requests.js";
import type { Tokenizer } from "./tokenizer.js";

// Unicode's white space and the four information separators: what the reference strips.
const SPACE = `[\\p{White_Space}${String.fromCharCode(0x1c)}-${String.fromCharCode(0x1f)}]`;
const LEADING = new RegExp(`^${SPACE}+`, "u");
const TRAILING = new RegExp(`${SPACE}+$`, "u");

/** A text without white space around it. */
export function strip(text: string): string {
  return text.replace(LEADING, "").replace(TRAILING, "");
}

/** Strips a text that comes in pieces. */
class StreamStripper {
  private started = false;
  private held = "";

  /** What of the text so far surely stays. */
  push(piece: string): string {
    let text = this.held + piece;
    if (!this.started) text = text.replace(LEADING, "");
    this.started ||= text !== "";
    const kept = text.replace(TRAILING, "");
    this.held = text.slice(kept.length);
    return kept;
  }
}

/** How a text ended. */
export interface TextEnd {
  /** Tokens written, not counting the one that ended it. */
  newTokens: number;
  /** Whether the model, not the limit, ended the text. */
  stopped: boolean;
}

/** What a text stream returns. */
export interface WrittenText extends TextEnd {
  /** Rows of the prompt: its tokens, `<bos>` included, and its image's rows. */
  promptTokens: number;
}

/** Pieces of the text of a request's token events; joined they are the whole text. Returns how it ended. */
export async function* textPieces(
  events: AsyncGenerator<StreamEvent>,
  tokenizer: Tokenizer,
  stripped: boolean,
): AsyncGenerator<string, TextEnd, undefined> {
  const tokens = tokenizer.stream();
  const stripper = new StreamStripper();
  const settle = (text: string) => (stripped ? stripper.push(text) : text);
  let end: TextEnd = { newTokens: 0, stopped: false };
  for await (const event of events) {
    if (event.type === "done") {
      end = { newTokens: event.tokens?.length ?? 0, stopped: event.stopped ?? false };
    }
    if (event.type !== "token") continue;
    const piece = settle(tokens.push(event.token));
    if (piece) yield piece;
  }
  const last = settle(tokens.end());
  if (last) yield last;
  return end;
}
