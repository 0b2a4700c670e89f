import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { StreamEvent } from "../../lib/requests";
import { strip, textPieces } from "../../lib/text-stream";
import { Tokenizer } from "../../lib/tokenizer";
import { FIXTURES } from "../support/fixtures";

const path = join(FIXTURES, "gemma-tiny/tokenizer.json");
const tokenizer = Tokenizer.parse(JSON.parse(readFileSync(path, "utf8")), path, 352);

async function pieces(ids: number[], stripped: boolean): Promise<string[]> {
  async function* events(): AsyncGenerator<StreamEvent> {
    for (const token of ids) yield { id: 1, type: "token", token };
    yield { id: 1, type: "done" };
  }
  const result: string[] = [];
  for await (const piece of textPieces(events(), tokenizer, stripped)) result.push(piece);
  return result;
}

test("strip takes what the reference takes", () => {
  expect(strip(" \t\n\u00a0\u3000\u001fa b\u0085\u2028 ")).toBe("a b");
  expect(strip("\ufeffa\u200b")).toBe("\ufeffa\u200b");
  expect(strip(" \n")).toBe("");
});

test.each([["  a red circle  "], ["a\n\nb"], ["\n"], [""], ["é 中文 😀 x"], [" 😀 "]])(
  "pieces of %j join to the text, stripped or not",
  async (text) => {
    const ids = tokenizer.encode(text);
    expect((await pieces(ids, false)).join("")).toBe(text);
    const stripped = await pieces(ids, true);
    expect(stripped.join("")).toBe(strip(text));
    expect(stripped).not.toContain("");
  },
);

test.each([
  [Int32Array.of(5, 6, 7), true, { newTokens: 3, stopped: true }],
  [undefined, undefined, { newTokens: 0, stopped: false }],
])("how a text ended is returned", async (tokens, stopped, expected) => {
  async function* events(): AsyncGenerator<StreamEvent> {
    yield { id: 1, type: "done", tokens, stopped };
  }
  expect(await textPieces(events(), tokenizer, true).next()).toEqual({
    done: true,
    value: expected,
  });
});

test("words come one by one", async () => {
  expect((await pieces(tokenizer.encode("a small red circle"), true)).length).toBeGreaterThan(3);
});
