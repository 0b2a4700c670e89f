/** Examples as sequences: what needs no computing. */
import { type Checkpoint, locateCheckpoint, readCheckpoint } from "../../lib";
import { Random } from "../../lib/philox";
import { prefixRows } from "../../lib/prefixes";
import { parsePreprocessorConfig, toVisionPixels } from "../../lib/preprocess";
import type { Picture, Pictures } from "../../lib/train/pictures";
import { endOfText, Sequences } from "../../lib/train/sequences";
import type { TrainingExample } from "../../lib/train/source";

test.each([
  [[1], 1],
  [[107, 1], 1],
  [[106, 107], 106],
])("of the stop tokens %j a learned text ends in %i", (tokens, end) => {
  expect(endOfText(tokens)).toBe(end);
});

test("what is read of a picture is bit for bit what inference reads", async () => {
  const shapes = await readCheckpoint(await locateCheckpoint("shapes-64"));
  const side = shapes.spec.vision!.imageSize;
  const preprocessor = parsePreprocessorConfig({ image_mean: [0.1, 0.4, 0.7], image_std: 0.3 });
  const pixels = Uint8Array.from({ length: 3 * side * side }, (_, i) => i * 7);
  const pictures = { get: async () => ({ pixels, latents: new Float32Array() }) };
  const sequences = new Sequences({ ...shapes, preprocessor }, { promptDropout: 0 });
  const { visionPixels } = await sequences.of(
    { task: "caption", image: "a.png", prompt: "", text: "a star" },
    pictures as unknown as Pictures,
    new Random(1n, 0, 0),
  );
  const image = { pixels, width: side, height: side };
  const resizer = { resizeImage: () => Promise.reject(new Error("it has the size")) };
  const read = await toVisionPixels(image, preprocessor, resizer, side);
  expect(Buffer.from(visionPixels!.buffer).equals(Buffer.from(read.buffer))).toBe(true);
});

describe("a sequence has room in the model", () => {
  let checkpoint: Checkpoint;
  let sequences: Sequences;
  beforeAll(async () => {
    checkpoint = await readCheckpoint(await locateCheckpoint("shapes-64"));
    sequences = new Sequences(checkpoint, { promptDropout: 0 });
  });
  const limit = () => checkpoint.config!.text.maxPositions;
  const refused = (...parts: (number | string)[]) =>
    expect.objectContaining({
      code: "INVALID_RECORD",
      message: expect.stringMatching(new RegExp(parts.join(".*"))),
    });

  test.each(["generate", "edit"] as const)("with what %s draws", (task) => {
    const made = checkpoint.spec.image!.grid ** 2;
    const prompts = Array.from({ length: limit() }, (_, n) => "!".repeat(n + 1));
    const rows = (prompt: string) => prefixRows(checkpoint, task, prompt);
    const fits = prompts.filter((prompt) => rows(prompt) + made <= limit());
    expect(rows(fits.at(-1)!) + made).toBe(limit());
    sequences.tokensOf({ task, prompt: fits.at(-1)! });
    const long = prompts[fits.length]!;
    expect(() => sequences.tokensOf({ task, prompt: long })).toThrow(
      refused(`prompt takes ${rows(long)} rows`, `image ${made}:`, limit() + 1, `most ${limit()}`),
    );
  });

  test.each(["caption", "answer"] as const)("with what %s writes, and its end", (task) => {
    const prompt = task === "answer" ? "what?" : "";
    const rows = prefixRows(checkpoint, task, prompt);
    const { tokenizer } = checkpoint;
    const one = tokenizer!.encode("!!").length - tokenizer!.encode("!").length;
    expect(one).toBe(1);
    const text = (tokens: number) => "!".repeat(tokens - tokenizer!.encode("!").length + 1);
    const most = limit() - rows - 1;
    expect(sequences.tokensOf({ task, prompt, text: text(most) }).learned).toHaveLength(most);
    expect(() => sequences.tokensOf({ task, prompt, text: text(most + 1) })).toThrow(
      refused(`prompt takes ${rows} rows`, `text ${most + 2}:`, limit() + 1, `most ${limit()}`),
    );
  });

  test("whatever is said of it this time", () => {
    const long = "!".repeat(limit() + 1);
    sequences.expectAll({ task: "generate", said: [{ prompt: "a" }, { prompt: "b" }] });
    expect(() =>
      sequences.expectAll({ task: "generate", said: [{ prompt: "a" }, { prompt: long }] }),
    ).toThrow(refused("prompt takes \\d+ rows"));
    const said = [
      { prompt: "what?", text: "a" },
      { prompt: "what?", text: long },
    ];
    expect(() => sequences.expectAll({ task: "answer", said })).toThrow(refused("text \\d+"));
  });

  test("which an absurdly long text has not", () => {
    const text = "a".repeat(10_000_000);
    for (const example of [
      { task: "generate", prompt: text },
      { task: "caption", prompt: "", text },
    ] as const)
      expect(() => sequences.tokensOf(example)).toThrow(
        refused("characters takes at least \\d+ rows", `most ${limit()}`),
      );
  });
});

test("tokens of texts are remembered, though not more than fit the memory, however long texts are", async () => {
  const checkpoint = await readCheckpoint(await locateCheckpoint("shapes-64"));
  const { config, tokenizer } = checkpoint;
  const encode = jest.fn((text: string) => Array.from<number>({ length: text.length }).fill(300));
  const sequences = new Sequences(
    {
      ...checkpoint,
      config: { ...config!, text: { ...config!.text, maxPositions: 2 ** 20 } },
      tokenizer: Object.assign(Object.create(tokenizer!), { encode }),
    },
    { promptDropout: 0 },
  );
  const learn = (text: string) => sequences.tokensOf({ task: "caption", prompt: "", text });
  const most = 4_000_000;
  let [tokens, highest] = [0, 0];
  for (let i = 0; i < 50; i++) {
    learn(String(i).padEnd(200_000));
    tokens = 0;
    for (const ids of Reflect.get(sequences, "encoded").values()) tokens += ids.length;
    highest = Math.max(highest, tokens);
  }
  expect(highest).toBeGreaterThan(most / 2);
  expect(highest).toBeLessThanOrEqual(most);
  const calls = encode.mock.calls.length;
  learn("49".padEnd(200_000));
  expect(encode).toHaveBeenCalledTimes(calls);
});

describe("prompts are emptied as often as promptDropout says", () => {
  const picture: Picture = { pixels: new Uint8Array(0), latents: new Float32Array(0) };
  const pictures = { get: async () => picture } as Partial<Pictures> as Pictures;
  const [image, target] = ["a.png", "b.png"];
  const drawings: TrainingExample[] = [
    { task: "generate", image, prompt: "a red circle" },
    { task: "edit", image, target, prompt: "make it blue" },
  ];
  const texts: TrainingExample[] = [
    { task: "caption", image, prompt: "", text: "a red circle" },
    { task: "answer", image, prompt: "how many?", text: "one" },
  ];
  let checkpoint: Checkpoint;
  beforeAll(async () => {
    checkpoint = await readCheckpoint(await locateCheckpoint("shapes-64"));
  });
  const tokensAt = async (promptDropout: number, example: TrainingExample, random: Random) => {
    const sequences = new Sequences(checkpoint, { promptDropout });
    return (await sequences.of(example, pictures, random)).tokens;
  };
  const random = () => new Random(1n, 2, 3);

  test.each(drawings)("at 1 all of $task, at 0 none", async (example) => {
    const { bosToken, templates } = checkpoint.config!;
    const [before, after] = templates[example.task].split(/\{\w+\}/) as [string, string];
    const wanted = (prompt: string) =>
      Int32Array.of(bosToken, ...checkpoint.tokenizer!.encode(before + prompt + after));
    expect(await tokensAt(1, example, random())).toEqual(wanted(""));
    expect(await tokensAt(0, example, random())).toEqual(wanted(example.prompt));
  });

  test.each(texts)("of $task none", async (example) => {
    expect(await tokensAt(1, example, random())).toEqual(await tokensAt(0, example, random()));
  });

  test("at 0.3 that share", async () => {
    const sequences = new Sequences(checkpoint, { promptDropout: 0.3 });
    const [draws, one] = [2000, random()];
    for (const example of drawings) {
      const full = (await tokensAt(0, example, random())).length;
      let emptied = 0;
      for (let i = 0; i < draws; i++)
        if ((await sequences.of(example, pictures, one)).tokens.length < full) emptied++;
      const deviation = Math.sqrt(draws * 0.3 * 0.7);
      expect(Math.abs(emptied - 0.3 * draws)).toBeLessThan(5 * deviation);
    }
  });
});
