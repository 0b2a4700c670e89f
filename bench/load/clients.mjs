// The clients of the load: good ones, which check every answer, and all sorts of bad ones.
import { request as httpRequest } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { KEY } from "./service.mjs";

/** An answer that is not what it must be. */
export class WrongAnswer extends Error {}

/** Random numbers of a seed (mulberry32), so that a run can be repeated. */
export function randomness(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    below: (limit) => next() * limit,
    pick: (list) => list[Math.floor(next() * list.length)],
  };
}

const GENERATIONS = "/v1/images/generations";
const EDITS = "/v1/images/edits";
const CHAT = "/v1/chat/completions";

function expectEqual(received, expected, what) {
  if (received === expected) return;
  const show = (value) => String(JSON.stringify(value)).slice(0, 60);
  throw new WrongAnswer(`${what}: expected ${show(expected)} but received ${show(received)}`);
}

/** Data of server-sent events; an event `error` is thrown, `[DONE]` left out. */
function eventsOf(text) {
  return [...text.matchAll(/^data: (.*)$/gm)].flatMap(([, data]) => {
    if (data === "[DONE]") return [];
    const event = JSON.parse(data);
    if (event.error) throw new WrongAnswer(`a stream failed: ${data.slice(0, 200)}`);
    return [event];
  });
}

/**
 * Kinds of requests. Each sends one and says how it went: "right", "refused" (429, which is allowed when the
 * queue is full), "rejected" (a bad request, as it must be) or "gone" (the client went away, as it meant to).
 * Throws `WrongAnswer`.
 */
export function makeClients({ url, references, random }) {
  const { draws, edits, texts, photo, bomb } = references;
  const authorization = `Bearer ${KEY}`;
  const json = { authorization, "content-type": "application/json" };
  const dataUrl = (bytes) => `data:image/png;base64,${bytes.toString("base64")}`;

  /** The response, or undefined where the queue was full. Whatever else is not 200 is wrong. */
  async function send(path, init) {
    const response = await fetch(url + path, { method: "POST", ...init });
    if (response.status === 429) {
      if (!response.headers.has("retry-after")) throw new WrongAnswer("429 without Retry-After");
      await response.arrayBuffer();
      return undefined;
    }
    if (response.status !== 200) {
      throw new WrongAnswer(`${path}: status ${response.status}: ${await response.text()}`);
    }
    return response;
  }
  const sendJson = (path, body, init = {}) =>
    send(path, { headers: json, body: JSON.stringify(body), ...init });

  const chatBody = (question, extra = {}) => ({
    ...extra,
    messages: [
      {
        role: "user",
        content: [
          ...(question === "" ? [] : [{ type: "text", text: question }]),
          { type: "image_url", image_url: { url: dataUrl(photo) } },
        ],
      },
    ],
  });

  async function checkDrawing(response, images, count) {
    const { data } = await response.json();
    expectEqual(data.length, count, "images");
    for (const [i, { b64_json }] of data.entries()) expectEqual(b64_json, images[i], "a picture");
    return "right";
  }

  /** A request through a connection of its own, so that it can be read and dropped as one likes. */
  function open(path, body) {
    const headers = { ...json, "content-length": Buffer.byteLength(body) };
    const client = httpRequest(url + path, { method: "POST", headers, agent: false });
    client.on("error", () => {});
    return client;
  }

  async function rejected(expected, path, init) {
    const response = await fetch(url + path, { method: "POST", headers: json, ...init });
    const { error } = await response.json();
    // A full queue may be told before the mistake is.
    if (response.status === 429) return "refused";
    expectEqual(response.status, expected, `the status of a bad request (${error?.code})`);
    if (typeof error.code !== "string") throw new WrongAnswer("an error without a code");
    return "rejected";
  }

  const MALFORMED = [
    () => rejected(400, GENERATIONS, { body: '{"prompt":' }),
    () => rejected(400, GENERATIONS, { body: '{"prompt":"a","__proto__":{"n":9}}' }),
    () => rejected(422, GENERATIONS, { body: "[]" }),
    () => rejected(422, GENERATIONS, { body: '{"prompt":"a","steps":-1}' }),
    () => rejected(422, GENERATIONS, { body: '{"prompt":"a","n":1e999}' }),
    () =>
      rejected(422, GENERATIONS, { body: `{"prompt":${"[".repeat(10_000)}${"]".repeat(10_000)}}` }),
    () => rejected(422, GENERATIONS, { body: JSON.stringify({ prompt: "x".repeat(5000) }) }),
    () => rejected(404, GENERATIONS, { body: '{"prompt":"a","model":"another"}' }),
    () =>
      rejected(415, GENERATIONS, { body: "a", headers: { ...json, "content-type": "text/plain" } }),
    () =>
      rejected(401, GENERATIONS, { body: "{}", headers: { ...json, authorization: "Bearer no" } }),
    () => rejected(404, "/v1/images", { body: "{}" }),
    () =>
      rejected(422, CHAT, { body: JSON.stringify({ messages: [{ role: "user", content: "a" }] }) }),
    () => {
      const messages = [
        {
          role: "user",
          content: [{ type: "image_url", image_url: { url: "http://127.0.0.1/a.png" } }],
        },
      ];
      return rejected(422, CHAT, { body: JSON.stringify({ messages }) });
    },
    () => {
      const form = new FormData();
      form.set("prompt", "a");
      form.set("image", new Blob([bomb]), "../../bomb.png");
      return rejected(413, EDITS, { body: form, headers: { authorization } });
    },
    () => {
      const form = new FormData();
      form.set("prompt", "a");
      form.set("image", new Blob(["no picture"]), "a.png");
      return rejected(422, EDITS, { body: form, headers: { authorization } });
    },
  ];

  return {
    "one image": async () => {
      const { body, images } = random.pick(draws);
      const response = await sendJson(GENERATIONS, body);
      return response ? checkDrawing(response, images, 1) : "refused";
    },
    "two images": async () => {
      const { body, images } = random.pick(draws);
      const response = await sendJson(GENERATIONS, { ...body, n: 2 });
      return response ? checkDrawing(response, images, 2) : "refused";
    },
    "image, streamed": async () => {
      const { body, images } = random.pick(draws);
      const partial_images = Math.floor(random.below(8));
      const response = await sendJson(GENERATIONS, { ...body, stream: true, partial_images });
      if (!response) return "refused";
      const events = eventsOf(await response.text());
      expectEqual(events.at(-1)?.type, "image_generation.completed", "the last event");
      expectEqual(events.at(-1).b64_json, images[0], "a streamed picture");
      return "right";
    },
    edit: async () => {
      const { body, image } = random.pick(edits);
      const form = new FormData();
      for (const [name, value] of Object.entries(body)) form.set(name, String(value));
      form.set("image", new Blob([photo]), "photo.png");
      const response = await send(EDITS, { headers: { authorization }, body: form });
      return response ? checkDrawing(response, [image], 1) : "refused";
    },
    "caption or answer": async () => {
      const { question, text } = random.pick(texts);
      const response = await sendJson(CHAT, chatBody(question));
      if (!response) return "refused";
      const { choices } = await response.json();
      expectEqual(choices[0].message.content, text, "a text");
      return "right";
    },
    "text, streamed": async () => {
      const { question, text } = random.pick(texts);
      const response = await sendJson(CHAT, chatBody(question, { stream: true }));
      if (!response) return "refused";
      const chunks = eventsOf(await response.text());
      const pieces = chunks.map(({ choices }) => choices[0]?.delta.content ?? "");
      expectEqual(pieces.join(""), text, "a streamed text");
      return "right";
    },
    cancelled: async () => {
      const { body, images } = random.pick(draws);
      const signal = AbortSignal.timeout(1 + Math.floor(random.below(150)));
      try {
        const response = await sendJson(GENERATIONS, body, { signal });
        return response ? await checkDrawing(response, images, 1) : "refused";
      } catch (error) {
        if (signal.aborted && !(error instanceof WrongAnswer)) return "gone";
        throw error;
      }
    },
    "stream left in its middle": async () => {
      const body = { ...random.pick(draws).body, stream: true, partial_images: 64, steps: 50 };
      const response = await sendJson(GENERATIONS, body);
      if (!response) return "refused";
      const reader = response.body.getReader();
      await reader.read();
      await reader.cancel();
      return "gone";
    },
    "slow reader": async () => {
      const { body, images } = random.pick(draws);
      const text = JSON.stringify({ ...body, stream: true, partial_images: 64 });
      const client = open(GENERATIONS, text).end(text);
      const response = await new Promise((resolve, reject) => {
        client.once("response", resolve).once("error", reject);
      });
      await sleep(random.below(500));
      let received = "";
      for await (const chunk of response) {
        received += chunk;
        await sleep(random.below(10));
      }
      if (response.statusCode === 429) return "refused";
      expectEqual(response.statusCode, 200, "the status for a slow reader");
      expectEqual(eventsOf(received).at(-1)?.b64_json, images[0], "a slowly read picture");
      return "right";
    },
    "dropped in its body": async () => {
      const text = JSON.stringify(random.pick(draws).body);
      const client = open(GENERATIONS, text);
      client.write(text.slice(0, 1 + Math.floor(random.below(text.length - 1))));
      await sleep(random.below(50));
      client.destroy();
      return "gone";
    },
    "dropped after its body": async () => {
      const text = JSON.stringify({ ...random.pick(draws).body, n: 2, steps: 50 });
      const client = open(GENERATIONS, text).end(text);
      await sleep(random.below(200));
      client.destroy();
      return "gone";
    },
    malformed: () => random.pick(MALFORMED)(),
    oversized: async () => {
      const body = JSON.stringify({ prompt: "x".repeat(1_500_000) });
      try {
        return await rejected(413, GENERATIONS, { body });
      } catch (error) {
        // The server need not read to the end what it has refused.
        if (error instanceof WrongAnswer) throw error;
        return "rejected";
      }
    },
  };
}

/** How often each kind comes, in parts. */
export const MIX = {
  "one image": 6,
  "two images": 2,
  "image, streamed": 4,
  edit: 3,
  "caption or answer": 6,
  "text, streamed": 4,
  cancelled: 4,
  "stream left in its middle": 2,
  "slow reader": 2,
  "dropped in its body": 2,
  "dropped after its body": 2,
  malformed: 6,
  oversized: 1,
};
