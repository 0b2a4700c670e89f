/** The server as OpenAI's own client sees it. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import OpenAI, { toFile } from "openai";
import { UniFluid } from "../../lib/index";
import { idle, type RunningServer, startServer } from "../support/server";

const photo = join(__dirname, "../fixtures/shapes-64/expected/caption0.png");
const dataUrl = `data:image/png;base64,${readFileSync(photo).toString("base64")}`;

let model: UniFluid;
let server: RunningServer;
let client: OpenAI;
beforeAll(async () => {
  model = await UniFluid.load("shapes-64");
  server = await startServer(model, { apiKeys: ["sesame"] });
  client = new OpenAI({ apiKey: "sesame", baseURL: `${server.url}/v1`, maxRetries: 0 });
});
afterAll(async () => {
  await server.app.close();
  await model.dispose();
});

/** What OpenAI's types do not know. */
const extra = (fields: Record<string, unknown>) => fields as object;

test("draws the image of a seed", async () => {
  const options = { seed: 7, steps: 4, guidance: 1.5, temperature: 0.7 };
  const answer = await client.images.generate({
    prompt: "a red circle",
    model: "shapes-64",
    ...extra(options),
  });
  const drawn = await model.generate("a red circle", options);
  expect(answer.data).toEqual([{ b64_json: (await drawn.toBuffer()).toString("base64"), seed: 7 }]);
  expect(answer.created).toBeGreaterThan(1.7e9);
});

test("draws several, with seeds that count up, in other formats", async () => {
  const answer = await client.images.generate({
    prompt: "a red circle",
    n: 3,
    size: "64x64" as "auto",
    output_format: "webp",
    ...extra({ seed: "18446744073709551614", steps: 1 }),
  });
  const seeds = answer.data!.map((image) => (image as { seed?: unknown }).seed);
  expect(seeds).toEqual(["18446744073709551614", "18446744073709551615", 0]);
  for (const { b64_json } of answer.data!) {
    const bytes = Buffer.from(b64_json!, "base64");
    expect(bytes.subarray(8, 12).toString()).toBe("WEBP");
  }
});

test("a seed that was not given is told, and draws the same again", async () => {
  const first = await client.images.generate({ prompt: "a star", ...extra({ steps: 2 }) });
  const { seed } = first.data![0] as { seed?: number };
  const again = await client.images.generate({ prompt: "a star", ...extra({ steps: 2, seed }) });
  expect(again.data![0]!.b64_json).toBe(first.data![0]!.b64_json);
});

test("streams partial images, then the whole one", async () => {
  const stream = await client.images.generate({
    prompt: "a red circle",
    stream: true,
    partial_images: 3,
    // Slow enough for each picture to be there before the next is due.
    ...extra({ seed: 7, steps: 200, order: "random" }),
  });
  const events = [];
  for await (const event of stream) events.push(event);
  expect(events.map(({ type }) => type)).toEqual([
    "image_generation.partial_image",
    "image_generation.partial_image",
    "image_generation.partial_image",
    "image_generation.completed",
  ]);
  expect(
    events.map((event) => ("partial_image_index" in event ? event.partial_image_index : null)),
  ).toEqual([0, 1, 2, null]);
  const drawn = await model.generate("a red circle", { seed: 7, steps: 200, order: "random" });
  expect(events.at(-1)!.b64_json).toBe((await drawn.toBuffer()).toString("base64"));
  const places = events.map((event) => (event as { unifluid?: { position: number } }).unifluid);
  expect(places.map((place) => place!.position)).toEqual([3, 7, 11, 15]);
  expect(new Set(events.map(({ b64_json }) => b64_json)).size).toBe(4);
});

test("streams every cell where it is asked to, as pictures of how the drawing stands", async () => {
  const stream = await client.images.generate({
    prompt: "a red circle",
    stream: true,
    partial_images: 16,
    ...extra({ seed: 7, steps: 200, order: "random" }),
  });
  const places = [];
  for await (const event of stream) {
    const { unifluid } = event as object as {
      unifluid: { cell: number; drawn: number[]; position: number };
    };
    expect(unifluid.drawn).toHaveLength(unifluid.position + 1);
    expect(unifluid.drawn.at(-1)).toBe(unifluid.cell);
    places.push(unifluid);
  }
  // A machine that is busy with other things may leave some out.
  expect(places.length).toBeGreaterThan(8);
  const positions = places.map(({ position }) => position);
  expect(positions).toEqual([...new Set(positions)].sort((a, b) => a - b));
  expect(new Set(places.at(-1)!.drawn).size).toBe(16);
});

test("edits an image, also as a stream", async () => {
  const image = async () => toFile(readFileSync(photo), "photo.png", { type: "image/png" });
  const body = { prompt: "make it blue", ...extra({ seed: 5, steps: 100 }) };
  const answer = await client.images.edit({ image: await image(), ...body });
  const edited = await model.edit(photo, "make it blue", { seed: 5, steps: 100 });
  const expected = (await edited.toBuffer()).toString("base64");
  expect(answer.data![0]!.b64_json).toBe(expected);
  const listed = await client.images.edit({ image: [await image()], ...body });
  expect(listed.data![0]!.b64_json).toBe(expected);
  const events = [];
  const stream = await client.images.edit({
    image: await image(),
    ...body,
    stream: true,
    partial_images: 1,
  });
  for await (const event of stream) events.push(event);
  expect(events.map(({ type }) => type)).toEqual([
    "image_edit.partial_image",
    "image_edit.completed",
  ]);
  expect(events.at(-1)!.b64_json).toBe(expected);
});

const ask = (text: string): OpenAI.ChatCompletionMessageParam => ({
  role: "user",
  content: [
    { type: "text", text },
    { type: "image_url", image_url: { url: dataUrl } },
  ],
});

test("answers a question about an image, and describes one without a question", async () => {
  const answer = await client.chat.completions.create({
    model: "shapes-64",
    messages: [{ role: "system", content: "Be brief." }, ask("how many objects are there?")],
  });
  const [choice] = answer.choices;
  expect(choice!.message).toMatchObject({
    role: "assistant",
    content: await model.answer(photo, "how many objects are there?"),
  });
  expect(choice!.finish_reason).toBe("stop");
  expect(answer.usage).toEqual({
    prompt_tokens: expect.any(Number),
    completion_tokens: model.tokenize(choice!.message.content!).length,
    total_tokens: expect.any(Number),
  });
  // <bos>, the template with its line break, the question, and the image.
  const { prompt_tokens, completion_tokens, total_tokens } = answer.usage!;
  const asked = model.tokenize("answer en how many objects are there?\n").length;
  expect(prompt_tokens).toBe(1 + asked + model.info.vision!.rows);
  expect(total_tokens).toBe(prompt_tokens + completion_tokens);
  const caption = await client.chat.completions.create({ model: "shapes-64", messages: [ask("")] });
  expect(caption.choices[0]!.message.content).toBe(await model.caption(photo));
  // A later question is about the image shown before.
  const later = await client.chat.completions.create({
    model: "shapes-64",
    messages: [
      ask(""),
      { role: "assistant", content: "something" },
      { role: "user", content: "what color is the background?" },
    ],
  });
  expect(later.choices[0]!.message.content).toBe(
    await model.answer(photo, "what color is the background?"),
  );
});

test("streams an answer", async () => {
  const stream = await client.chat.completions.create({
    model: "shapes-64",
    messages: [ask("")],
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let finish: string | null = null;
  let usage: OpenAI.CompletionUsage | null | undefined;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  expect(text).toBe(await model.caption(photo));
  expect(finish).toBe("stop");
  expect(usage?.completion_tokens).toBe(model.tokenize(text).length);
});

test("samples an answer by the temperature and the seed", async () => {
  const answer = await client.chat.completions.create({
    model: "shapes-64",
    temperature: 2,
    seed: 5,
    messages: [ask("")],
  });
  const sampled = await model.caption(photo, { temperature: 2, seed: 5 });
  expect(answer.choices[0]!.message.content).toBe(sampled);
  // Either of them counts.
  expect(sampled).not.toBe(await model.caption(photo));
  expect(sampled).not.toBe(await model.caption(photo, { temperature: 2, seed: 6 }));
});

test("a limit of tokens ends an answer", async () => {
  const answer = await client.chat.completions.create({
    model: "shapes-64",
    max_completion_tokens: 2,
    messages: [ask("")],
  });
  expect(answer.choices[0]!.finish_reason).toBe("length");
  expect(answer.usage!.completion_tokens).toBe(2);
});

test("lists the model", async () => {
  const models = await client.models.list();
  expect(models.data.map(({ id }) => id)).toEqual(["shapes-64"]);
  expect(await client.models.retrieve("shapes-64")).toMatchObject({ object: "model" });
});

describe("errors are those of OpenAI's client", () => {
  test("401", async () => {
    const stranger = new OpenAI({ apiKey: "guess", baseURL: `${server.url}/v1`, maxRetries: 0 });
    const asked = stranger.images.generate({ prompt: "a" });
    await expect(asked).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
    await expect(asked).rejects.toMatchObject({ code: "INVALID_API_KEY" });
  });

  test("404 for another model", async () => {
    const asked = client.images.generate({ prompt: "a", model: "dall-e-3" });
    await expect(asked).rejects.toBeInstanceOf(OpenAI.NotFoundError);
    await expect(asked).rejects.toMatchObject({ code: "MODEL_NOT_FOUND", param: "model" });
  });

  test.each<[string, object, string]>([
    ["a misspelt field", { stepz: 3 }, "INVALID_OPTION"],
    ["another size", { size: "1024x1024" }, "INVALID_OPTION"],
    ["too many images", { n: 11 }, "INVALID_OPTION"],
    ["several when streaming", { n: 2, stream: true }, "INVALID_OPTION"],
    ["a URL instead of data", { response_format: "url" }, "INVALID_OPTION"],
    ["too many steps", { steps: 1001 }, "INVALID_OPTION"],
    ["a guidance out of range", { guidance: 10_001 }, "INVALID_OPTION"],
    ["a seed out of range", { seed: "18446744073709551616" }, "INVALID_OPTION"],
    ["a long prompt", { prompt: "x".repeat(4001) }, "PROMPT_TOO_LONG"],
    ["no prompt", { prompt: "" }, "INVALID_OPTION"],
  ])("422 for %s", async (_name, fields, code) => {
    const asked = client.images.generate({ prompt: "a", ...fields });
    await expect(asked).rejects.toBeInstanceOf(OpenAI.UnprocessableEntityError);
    await expect(asked).rejects.toMatchObject({ code, type: "invalid_request_error" });
  });

  test("422 for a text without an image, and for a broken image", async () => {
    const create = (message: OpenAI.ChatCompletionMessageParam) =>
      client.chat.completions.create({ model: "shapes-64", messages: [message] });
    await expect(create({ role: "user", content: "hello" })).rejects.toMatchObject({
      status: 422,
      code: "UNSUPPORTED_TASK",
    });
    const url = "data:image/png;base64,AAAA";
    await expect(
      create({ role: "user", content: [{ type: "image_url", image_url: { url } }] }),
    ).rejects.toMatchObject({ status: 422, code: "IMAGE_UNDECODABLE" });
  });

  test("422 for more images than the queue can ever hold", async () => {
    const small = await UniFluid.load("shapes-64", { maxSequences: 1, maxQueue: 1 });
    const idle = await startServer(small);
    try {
      const other = new OpenAI({ apiKey: "x", baseURL: `${idle.url}/v1`, maxRetries: 0 });
      const ask = (n: number) => other.images.generate({ prompt: "a", n, ...extra({ steps: 1 }) });
      expect((await ask(2)).data).toHaveLength(2);
      await expect(ask(3)).rejects.toMatchObject({
        status: 422,
        code: "INVALID_OPTION",
        param: "n",
        message: expect.stringContaining("expected at most 2 images but received 3"),
      });
    } finally {
      await idle.app.close();
      await small.dispose();
    }
  });

  test("429 with Retry-After where the queue is full", async () => {
    const small = await UniFluid.load("shapes-64", { maxSequences: 1, maxQueue: 0 });
    const busy = await startServer(small);
    try {
      const other = new OpenAI({ apiKey: "x", baseURL: `${busy.url}/v1`, maxRetries: 0 });
      const controller = new AbortController();
      const held = small.generate("a", { steps: 1000, signal: controller.signal }).catch(() => {});
      const refused = await other.images.generate({ prompt: "a" }).catch((error) => error);
      expect(refused).toBeInstanceOf(OpenAI.RateLimitError);
      expect(refused).toMatchObject({ code: "QUEUE_FULL", type: "rate_limit_error" });
      expect(refused.headers.get("retry-after")).toBe("1");
      controller.abort();
      await held;
      await idle(small);
      // The client tries again by itself.
      const patient = new OpenAI({ apiKey: "x", baseURL: `${busy.url}/v1`, maxRetries: 60 });
      const drawing = small.generate("a", { steps: 100 });
      const answer = await patient.images.generate({ prompt: "a", ...extra({ steps: 1 }) });
      expect(answer.data).toHaveLength(1);
      await drawing;
    } finally {
      await busy.app.close();
      await small.dispose();
    }
  });
});
