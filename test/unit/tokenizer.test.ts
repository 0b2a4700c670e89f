import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer } from "../../lib/tokenizer";

const fixtures = join(__dirname, "../fixtures");
const readJson = (path: string) => JSON.parse(readFileSync(join(fixtures, path), "utf8"));

interface Cases {
  file: string;
  vocab: number;
  encode: { text: string; ids: number[] }[];
  decode: { ids: number[]; text: string }[];
}

/** Made with the reference tokenizer; see test/fixtures/README.md. */
const cases: Record<string, Cases> = readJson("tokenizer/cases.json");

describe.each(Object.entries(cases))("%s", (_name, { file, vocab, encode, decode }) => {
  const tokenizer = Tokenizer.parse(readJson(file), file, vocab);

  test("ids are the reference's, on texts of many scripts", () => {
    for (const { text, ids } of encode) {
      expect({ text, ids: tokenizer.encode(text) }).toEqual({ text, ids });
    }
  });

  test("texts are the reference's, on any ids", () => {
    for (const { ids, text } of decode) {
      expect({ ids, text: tokenizer.decode(ids) }).toEqual({ ids, text });
    }
  });

  test("a stream's pieces join to the text and never show half a character", () => {
    for (const { ids, text } of [
      ...decode,
      ...encode.map(({ ids }) => ({ ids, text: undefined })),
    ]) {
      const whole = text ?? tokenizer.decode(ids);
      const stream = tokenizer.stream();
      const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
      expect(pieces.join("")).toBe(whole);
      if (!whole.includes("\ufffd")) expect(pieces.join("|")).not.toContain("\ufffd");
      for (const piece of pieces) expect(piece).not.toMatch(/\p{Surrogate}/u);
    }
  });
});

test("a stream gives each word as it comes", () => {
  const { file, vocab } = cases["gemma-tiny"]!;
  const tokenizer = Tokenizer.parse(readJson(file), file, vocab);
  const stream = tokenizer.stream();
  const pieces = tokenizer.encode("a red circle").map((id) => stream.push(id));
  expect(pieces.every((piece) => piece.length > 0)).toBe(true);
  expect(pieces.join("") + stream.end()).toBe("a red circle");
});

test("a stream of byte-level tokens gives each character when its last byte comes", () => {
  const { file, vocab } = cases["byte-level"]!;
  const tokenizer = Tokenizer.parse(readJson(file), file, vocab);
  const pieces = (ids: number[]) => {
    const stream = tokenizer.stream();
    return [...ids.map((id) => stream.push(id)), stream.end()];
  };
  const ids = tokenizer.encode("\u{1f3a8}");
  expect(ids.length).toBe(3);
  expect(pieces(ids)).toEqual(["", "", "\u{1f3a8}", ""]);
  // One that is never finished is settled by what follows.
  const [first] = ids as [number];
  expect(pieces([first, first, first])).toEqual(["", "\ufffd", "\ufffd", "\ufffd"]);
});

test("a signal ends loading, which is not done in one turn of the event loop", async () => {
  const path = join(fixtures, "gemma-tiny/tokenizer.json");
  const reason = new Error("enough");
  await expect(Tokenizer.load(path, 352, AbortSignal.abort(reason))).rejects.toBe(reason);
});

test("a text that cannot fit is refused before it is cut into tokens, and none that fits", async () => {
  const tokenizer = await Tokenizer.load("models/shapes-64/tokenizer.json", 480);
  for (const text of [
    "a red circle",
    "two small green stars",
    "caf\u00e9 \u{1f600}",
    "<eos>".repeat(9),
    "",
  ]) {
    const ids = tokenizer.encode(text);
    expect(tokenizer.encode(text, ids.length)).toEqual(ids);
  }
  expect(() => tokenizer.encode("red ".repeat(10_000), 512)).toThrow(
    expect.objectContaining({
      code: "PROMPT_TOO_LONG",
      message: expect.stringMatching(/text of 40000 characters takes at least \d+ rows/),
    }),
  );
});

test("where words may become one unknown token, no text is refused by its length", () => {
  const vocab = { "<unk>": 0, a: 1, "##b": 2 };
  const model = { type: "WordPiece", unk_token: "<unk>", max_input_chars_per_word: 100, vocab };
  const decoder = { type: "WordPiece", prefix: "##", cleanup: false };
  const json = {
    added_tokens: [],
    model,
    pre_tokenizer: { type: "WhitespaceSplit" },
    decoder,
    normalizer: null,
    post_processor: null,
  };
  const tokenizer = Tokenizer.parse(json, "here", 3);
  const text = `a ${"x".repeat(500)} a${" ".repeat(500)}`;
  expect(tokenizer.encode(text, 3)).toEqual([1, 0, 1]);
});

describe("what does not fit is refused", () => {
  const good = readJson("gemma-tiny/tokenizer.json");
  const code = (json: unknown, vocab = 352): string | undefined => {
    try {
      Tokenizer.parse(json, "tokenizer.json", vocab);
    } catch (error) {
      return (error as { code?: string }).code;
    }
    return undefined;
  };

  test("ids beyond the vocabulary", () => {
    expect(code(good)).toBeUndefined();
    expect(code(good, 351)).toBe("TOKENIZER_MISMATCH");
    const added = { ...good, added_tokens: [...good.added_tokens, { id: 999, content: "x" }] };
    expect(code(added)).toBe("TOKENIZER_MISMATCH");
    expect(() => Tokenizer.parse(good, "f.json", 300)).toThrow(
      /f\.json: token ".*" has id 3\d\d but/,
    );
  });

  test.each([
    ["nothing", null],
    ["a list", []],
    ["no model", { added_tokens: [] }],
    ["no vocabulary", { ...good, model: { type: "BPE" } }],
    ["a broken id", { ...good, model: { ...good.model, vocab: { a: -1 } } }],
    ["an unknown kind of model", { ...good, model: { ...good.model, type: "Nonsense" } }],
    ["no kind of model", { ...good, model: { ...good.model, type: undefined } }],
    ["words alone", { ...good, model: { ...good.model, type: "WordLevel" } }],
    ["no merges", { ...good, model: { ...good.model, merges: undefined } }],
    ["merges of the wrong kind", { ...good, model: { ...good.model, merges: 3 } }],
    ["no added tokens", { ...good, added_tokens: undefined }],
    ["an empty added token", { ...good, added_tokens: [{ id: 1, content: "" }] }],
    ["an unknown normalizer", { ...good, normalizer: { type: "Nonsense" } }],
    [
      "an unknown pattern",
      { ...good, normalizer: { type: "Replace", pattern: " ", content: "_" } },
    ],
    ["a decoder without parts", { ...good, decoder: { type: "Sequence", decoders: [null] } }],
    ["an unknown decoder", { ...good, decoder: { type: "Nonsense" } }],
  ])("%s", (_name, json) => {
    expect(code(json)).toBe("TOKENIZER_MISMATCH");
  });

  const model = good.model;
  const withModel = (fields: object) => ({ ...good, model: { ...model, ...fields } });
  const [token] = Object.keys(model.vocab).slice(-1) as [string];
  const id = model.vocab[token];
  const added = (...tokens: object[]) => ({
    ...good,
    added_tokens: [...good.added_tokens, ...tokens],
  });
  test.each<[string, object, RegExp]>([
    [
      "a merge of what is no token",
      withModel({ merges: [["a", "\u2603"], ...model.merges] }),
      /model\.merges has \["a","\u2603"\], but "\u2603" is no token of model\.vocab/,
    ],
    [
      "a merge to what is no token",
      withModel({ merges: ["b q"] }),
      /model\.merges has "b q", but "bq" is no token/,
    ],
    [
      "a merge of three",
      withModel({ merges: ["a b c"] }),
      /texts "a b" for model\.merges .*"a b c"/,
    ],
    [
      "a merge of one",
      withModel({ merges: [["a"]] }),
      /pairs of tokens for model\.merges .*\["a"\]/,
    ],
    [
      "merges of two kinds",
      withModel({ merges: ["\u2581 a", ["\u2581", "b"]] }),
      /for model\.merges/,
    ],
    [
      "an unknown token that is none",
      withModel({ unk_token: "<nothing>" }),
      /a token of the vocabulary for model\.unk_token but found "<nothing>"/,
    ],
    [
      "two tokens of one id",
      withModel({ vocab: { ...model.vocab, "\u2603": id } }),
      new RegExp(`tokens ".*" and "\u2603" of model\\.vocab both have id ${id}`),
    ],
    [
      "an added token with another's id",
      added({ id, content: "\u2603" }),
      new RegExp(`and "\u2603" of added_tokens both have id ${id}`),
    ],
    [
      "a token with two ids",
      added({ id: id - 1, content: token }),
      new RegExp(`has id ${id - 1} in added_tokens but ${id} before`),
    ],
    [
      "marks of pieces that continue a word",
      withModel({ continuing_subword_prefix: "##" }),
      /model\.continuing_subword_prefix is not supported but found "##"/,
    ],
    [
      "bytes for what Unigram does not know",
      {
        ...good,
        added_tokens: [],
        model: { type: "Unigram", vocab: [["a", -1]], byte_fallback: true },
      },
      /model\.byte_fallback of Unigram is not supported but found true/,
    ],
    [
      "punctuation that is not kept together",
      {
        ...good,
        pre_tokenizer: {
          type: "Sequence",
          pretokenizers: [{ type: "Punctuation", behavior: "Isolated" }],
        },
      },
      /behavior of Punctuation other than "Contiguous" is not supported but found "Isolated"/,
    ],
  ])("%s: the message names the file and the thing", (_name, json, message) => {
    expect(code(json)).toBe("TOKENIZER_MISMATCH");
    expect(() => Tokenizer.parse(json, "f.json", 352)).toThrow(message);
    expect(() => Tokenizer.parse(json, "f.json", 352)).toThrow(/^f\.json: /);
  });

  test("what the reference takes is taken", () => {
    const pairs = (model.merges as (string | string[])[]).map((m) =>
      typeof m === "string" ? m.split(" ") : m,
    );
    for (const fields of [
      { merges: pairs },
      { merges: pairs.map((pair) => pair.join(" ")) },
      { ignore_merges: true },
      { unk_token: null },
      { merges: [] },
      { continuing_subword_prefix: "" },
    ]) {
      expect(code(withModel(fields))).toBeUndefined();
    }
    const punctuation = { type: "Punctuation", behavior: "Contiguous" };
    expect(code({ ...good, pre_tokenizer: punctuation })).toBeUndefined();
    // One that the vocabulary has already, under the same id.
    expect(code(added({ id, content: token }))).toBeUndefined();
  });

  test("nesting that no reader goes down to", () => {
    const deep = (depth: number) => JSON.parse("[".repeat(depth) + "]".repeat(depth));
    const message = /^f\.json: expected less than 128 levels of nesting$/;
    for (const json of [
      { ...good, padding: deep(200_000) },
      { ...good, padding: deep(128) },
    ]) {
      expect(() => Tokenizer.parse(json, "f.json", 352)).toThrow(message);
      expect(code(json)).toBe("TOKENIZER_MISMATCH");
    }
    expect(code({ ...good, padding: deep(100) })).toBeUndefined();
    // Where lists of tokens should be it is one of these that is no token.
    for (const fields of [{ merges: deep(200_000) }, { vocab: { a: deep(200_000) } }]) {
      expect(code(withModel(fields))).toBe("TOKENIZER_MISMATCH");
    }
  });

  test("a missing file", async () => {
    await expect(Tokenizer.load(join(fixtures, "none.json"), 1)).rejects.toMatchObject({
      code: "CHECKPOINT_NOT_FOUND",
    });
  });
});
