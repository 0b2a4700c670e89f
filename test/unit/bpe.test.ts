/** Tokenizers that are learned: what merges are made, what any text becomes, and what cannot be learned from. */
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { countWords, SPACE, wordsOf } from "../../lib/bpe/corpus";
import { type LearnedVocabulary, learnVocabulary } from "../../lib/bpe/learn";
import { FIXED_TOKENS, tokenizerJson, trainTokenizer } from "../../lib/bpe/tokenizer-files";
import { initCheckpoint } from "../../lib/init/init";
import { Random } from "../../lib/philox";
import { writeDataset } from "../../lib/scenes/dataset";
import { Tokenizer } from "../../lib/tokenizer";
import reference from "../fixtures/tokenizer/learned.json";
import { TINY_MODEL } from "../support/training";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "bpe-"));
});
afterEach(() => rm(folder, { recursive: true }));

const file = async (name: string, content: string | Uint8Array) => {
  await writeFile(join(folder, name), content);
  return join(folder, name);
};
const wordCounts = (...words: [string, number][]) => new Map(words);
const learnedFrom = async (text: string, size: number) =>
  learnVocabulary(await countWords([await file("text.txt", text)]), size);
const tokenizerOf = (learned: LearnedVocabulary) =>
  Tokenizer.parse(tokenizerJson(learned), "it", FIXED_TOKENS + learned.tokens.length);

test("a byte order mark is no part of the first text", async () => {
  const record = JSON.stringify({ task: "caption", image: "a.png", text: "red" });
  const words = async (name: string, content: string) => [
    ...(await countWords([await file(name, `\uFEFF${content}`)])).keys(),
  ];
  expect(await words("a.txt", "red star")).toEqual(["red", `${SPACE}star`, "\n"]);
  expect(await words("a.jsonl", record)).toContain("red");
});

test("a line ends in LF or CRLF, and no carriage return is part of a text", async () => {
  const words = async (content: string) => [...(await countWords([await file("a.txt", content)]))];
  const lines = ["a dog", "", "a cat"];
  expect(await words(lines.join("\r\n"))).toEqual(await words(lines.join("\n")));
  expect(await words("red\r\n")).toEqual([
    ["red", 1],
    ["\n", 1],
  ]);
});

describe("learning", () => {
  test("makes the merges of the reference trainer, in its order", async () => {
    // It took the carriage return in the text for a character; read from a file, it would be an end of a line.
    const counts = new Map<string, number>();
    for (const line of reference.text.split(/(?<=\n)/))
      for (const word of wordsOf(line)) counts.set(word, (counts.get(word) ?? 0) + 1);
    const { tokens, merges } = await learnVocabulary(counts, reference.size);
    expect(merges).toEqual(reference.merges);
    expect(tokens.slice(0, reference.alphabet.length)).toEqual(reference.alphabet);
    expect(tokens).toHaveLength(reference.size);
    expect(new Set(tokens).size).toBe(tokens.length);
  });

  test("takes the most frequent pair, of equal ones the one of the lowest characters", async () => {
    const { tokens, merges } = await learnVocabulary(
      wordCounts(["aab", 5], ["bc", 5], ["cab", 4], ["xyz", 1]),
      12,
    );
    expect(tokens.slice(0, 6)).toEqual(["a", "b", "c", "x", "y", "z"]);
    // ab 9 times; then aab and bc 5 times each, where a comes before b; cab 4 times; xyz too seldom.
    expect(merges).toEqual([
      ["a", "b"],
      ["a", "ab"],
      ["b", "c"],
      ["c", "ab"],
    ]);
    expect(tokens.slice(6)).toEqual(["ab", "aab", "bc", "cab"]);
  });

  test("counts runs of one character as they are merged", async () => {
    const { merges } = await learnVocabulary(wordCounts(["aaaaa", 2]), 10);
    expect(merges).toEqual([
      ["a", "a"],
      // Both pairs of aa, aa, a occur twice.
      ["aa", "a"],
      ["aa", "aaa"],
    ]);
  });

  test("gives half of the room to characters, the most frequent", async () => {
    const { tokens } = await learnVocabulary(wordCounts(["abcd", 1], ["abc", 1], ["ab", 7]), 4);
    expect(tokens).toEqual(["a", "b", "ab"]);
    expect((await learnVocabulary(wordCounts(["ab", 7]), 1)).tokens).toEqual(["a"]);
  });

  test("does not depend on the order of the words", async () => {
    const words = [...(await countWords([await file("text.txt", reference.text)]))];
    const learned = await learnVocabulary(new Map(words), 500);
    expect(await learnVocabulary(new Map(words.reverse()), 500)).toEqual(learned);
  });

  test("counts as if each merge counted all words anew", async () => {
    // Few characters: pairs overlap, and one token is reached in several ways.
    const random = new Random(3n, 7, 0);
    const words = Array.from({ length: 60 }, (_, i): [string, number] => {
      const characters = Array.from({ length: 1 + random.below(30) }, () =>
        random.pick([..."aabc"]),
      );
      return [`${characters.join("")}${i % 7}`, 1 + random.below(4)];
    });
    const { tokens, merges } = await learnVocabulary(new Map(words), 150);
    expect(merges.length).toBeGreaterThan(100);
    const spelled = [...new Map(words)].map(([word, count]) => ({ parts: [...word], count }));
    for (const [left, right] of merges) {
      const counts = new Map<string, number>();
      for (const { parts, count } of spelled)
        for (let i = 0; i + 1 < parts.length; i++) {
          const pair = `${parts[i]} ${parts[i + 1]}`;
          counts.set(pair, (counts.get(pair) ?? 0) + count);
        }
      const place = (pair: string) => pair.split(" ").map((token) => tokens.indexOf(token));
      const [best] = [...counts].sort(([p, m], [q, n]) => {
        const [[a, b], [c, d]] = [place(p), place(q)];
        return n - m || a! - c! || b! - d!;
      });
      expect(`${left} ${right}`).toBe(best![0]);
      for (const word of spelled) {
        const out: string[] = [];
        for (const part of word.parts) {
          if (part === right && out.at(-1) === left) {
            out[out.length - 1] = `${left}${right}|`;
          } else out.push(part);
        }
        word.parts = out.map((part) => part.replace("|", ""));
      }
    }
  });

  test("takes no longer for text without spaces", async () => {
    // Long words have most pairs, and each merge changes few of them; to count all for each would take minutes.
    const random = new Random(4n, 7, 0);
    const words = Array.from({ length: 400 }, (): [string, number] => [
      Array.from({ length: 800 }, () => random.pick([..."abcdefgh"])).join(""),
      1,
    ]);
    expect((await learnVocabulary(new Map(words), 3000)).merges).toHaveLength(3000 - 8);
  });

  test("hears a signal between merges", async () => {
    const words = new Map(Array.from({ length: 5000 }, (_, i) => [`w${i ** 3}`, 2]));
    const controller = new AbortController();
    setTimeout(() => controller.abort(new Error("enough")), 50);
    await expect(learnVocabulary(words, 100_000, controller.signal)).rejects.toThrow("enough");
  });
});

describe("a learned tokenizer", () => {
  let tokenizer: Tokenizer;
  beforeEach(async () => {
    tokenizer = tokenizerOf(await learnedFrom(reference.text, reference.size));
  });

  /** Any characters, those of the learned text more often; U+2581 stands for the space and is none of them. */
  const anyText = (random: Random) => {
    const known = [...reference.text];
    const characters = Array.from({ length: random.below(40) }, () => {
      if (random.chance(0.5)) return random.pick(known);
      const most = random.pick([0x7f, 0x7ff, 0xffff, 0x10ffff]);
      const code = random.below(most + 1);
      return code >= 0xd800 && code < 0xe000 ? "\ufeff" : String.fromCodePoint(code);
    });
    return characters.join("").replaceAll(SPACE, "");
  };

  test("gives any text back", () => {
    const texts = [
      reference.text,
      "",
      " ",
      "\n",
      "  two  spaces \n\n\n",
      "\ufeffmark",
      "\0\x01\x7f",
      "👩‍👩‍👧 e\u0301 \u{10ffff}",
      "<0x41> <pa d>",
    ];
    for (let i = 0; i < 400; i++) texts.push(anyText(new Random(1n, 7, i)));
    for (const text of texts) expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });

  test("gives text it was learned from few tokens, and other text its bytes", () => {
    expect(tokenizer.encode(reference.text).length).toBeLessThan(reference.text.length / 2.4);
    expect(tokenizer.encode("ℵ")).toEqual([...Buffer.from("ℵ")].map((byte) => 4 + byte));
  });

  test("merges within words alone, as it learned", () => {
    const texts = Array.from({ length: 100 }, (_, i) => anyText(new Random(2n, 7, i)));
    for (const text of [reference.text, ...texts]) {
      const words = wordsOf(text).map((word) => word.replaceAll(SPACE, " "));
      expect(words.join("")).toBe(text);
      expect(tokenizer.encode(text)).toEqual(words.flatMap((word) => tokenizer.encode(word)));
    }
  });

  test("begins with the special tokens that init expects", () => {
    expect(tokenizer.encode("<pad><eos><bos><unk>")).toEqual([0, 1, 2, 3]);
    expect(tokenizer.decode([2, ...tokenizer.encode("a"), 1])).toBe("a");
  });
});

describe("texts", () => {
  test("of manifests are what a model reads and writes", async () => {
    const lines = [
      { task: "generate", image: "a.png", prompt: ["p1", "p2"] },
      { task: "caption", image: "a.png", text: "c" },
      { task: "answer", image: "a.png", questions: [{ question: "q", answer: "r" }] },
      { task: "edit", image: "a.png", target: "b.png", instruction: "i" },
    ];
    const text = lines.map((line) => JSON.stringify(line)).join("\n\n");
    const counts = await countWords([await file("a.jsonl", text)]);
    const expected = new Map<string, number>();
    const texts = ["draw p1\n", "draw p2\n", "caption en\n", "c", "answer en q\n", "r", "edit i\n"];
    for (const word of texts.flatMap(wordsOf)) expected.set(word, (expected.get(word) ?? 0) + 1);
    expect(counts).toEqual(expected);
  });

  test("of a long manifest do not hold up a signal until its end", async () => {
    const line = JSON.stringify({ task: "caption", image: "a.png", text: "c" });
    const path = await file("long.jsonl", `${line}\n`.repeat(3000));
    const controller = new AbortController();
    setImmediate(() => controller.abort(new Error("enough")));
    await expect(countWords([path], controller.signal)).rejects.toThrow("enough");
  });

  test("of shards are those of the manifests with the same records", async () => {
    const tasks = ["caption", "answer"] as const;
    const options = { count: 10, seed: 1n, tasks };
    await writeDataset(join(folder, "plain"), options);
    await writeDataset(join(folder, "shards"), { ...options, shards: 1 });
    const manifests = tasks.map((task) => join(folder, "plain", `${task}.jsonl`));
    const shards = tasks.map((task) => join(folder, "shards", `${task}-000000.tar`));
    const counts = await countWords(manifests);
    expect(counts.get(`${SPACE}background`)).toBeGreaterThan(9);
    expect(await countWords(shards)).toEqual(counts);
    await truncate(shards[0]!, 2000);
    await expect(countWords(shards)).rejects.toMatchObject({
      code: "INVALID_RECORD",
      message: expect.stringMatching(
        /caption-000000\.tar: sample 0 \(000000\): the archive is damaged/,
      ),
    });
  });

  test("of files end their lines alike, with and without a last newline", async () => {
    const counts = await countWords([await file("a.txt", "a b\na"), await file("b.txt", "a\n")]);
    expect(counts).toEqual(
      new Map([
        ["a", 3],
        [`${SPACE}b`, 1],
        ["\n", 3],
      ]),
    );
  });

  test("that JSON can hold and UTF-8 cannot are spelled with U+FFFD", () => {
    expect(wordsOf("a \ud800!")).toEqual(["a", `${SPACE}\ufffd!`]);
  });

  test.each<[string, string, string | Uint8Array, string, RegExp]>([
    [
      "that is not UTF-8",
      "a.txt",
      Uint8Array.of(65, 0xff, 66),
      "TRAINING_DATA",
      /a\.txt: it is not UTF-8/,
    ],
    [
      "that ends in half a character",
      "a.txt",
      Uint8Array.of(65, 0xe2, 0x96),
      "TRAINING_DATA",
      /it is not UTF-8/,
    ],
    ["that is empty", "a.txt", "", "TRAINING_DATA", /no text in .*a\.txt/],
    [
      "with a broken record",
      "a.jsonl",
      '{"task": "caption", "image": "a", "text": "b"}\n{"task"',
      "INVALID_RECORD",
      /a\.jsonl: record 1 \(line 2\): not JSON/,
    ],
    [
      "with a record of no task",
      "a.jsonl",
      '{"text": "b"}',
      "INVALID_RECORD",
      /record 0 \(line 1\): task/,
    ],
  ])("a file %s is told, and nothing is written", async (_, name, content, code, message) => {
    const path = await file(name, content);
    await expect(trainTokenizer([path], 300, join(folder, "out"))).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    expect(await readdir(folder)).toEqual([name]);
  });

  test("a file that is not there, and a folder that is, are told", async () => {
    const path = join(folder, "none.txt");
    await expect(trainTokenizer([path], 300, join(folder, "out"))).rejects.toMatchObject({
      code: "TRAINING_DATA",
      message: expect.stringContaining("none.txt"),
    });
    await expect(trainTokenizer([path], 300, folder)).rejects.toMatchObject({
      code: "INVALID_OPTION",
    });
  });
});

test("init takes a learned tokenizer, and the same texts give the same files", async () => {
  await writeDataset(join(folder, "data"), { count: 40, seed: 1n });
  const manifests = ["generate", "caption", "answer", "edit"].map((task) =>
    join(folder, "data", `${task}.jsonl`),
  );
  const made = await trainTokenizer(manifests, 400, join(folder, "words"));
  expect(made.tokens).toBe(400);
  await trainTokenizer(manifests, 400, join(folder, "again"));
  for (const name of ["tokenizer.json", "tokenizer_config.json"])
    expect(await readFile(join(folder, "again", name))).toEqual(
      await readFile(join(folder, "words", name)),
    );
  await writeFile(join(folder, "model.yaml"), stringify(TINY_MODEL));
  const init = (config: string, out: string) =>
    initCheckpoint(join(folder, config), join(folder, out), {
      seed: 1n,
      tokenizer: join(folder, "words"),
      vae: "shapes-64",
    });
  const { tokenizer } = await init("model.yaml", "start");
  const prompt = "draw a large red circle on a pink background\n";
  const ids = tokenizer!.encode(prompt);
  expect(ids.length).toBeLessThan(15);
  expect(tokenizer!.decode(ids)).toBe(prompt);
  const text_config = { ...TINY_MODEL.text_config, vocab_size: 399 };
  await writeFile(join(folder, "small.yaml"), stringify({ ...TINY_MODEL, text_config }));
  await expect(init("small.yaml", "small")).rejects.toMatchObject({ code: "TOKENIZER_MISMATCH" });
});
