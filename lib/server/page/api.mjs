/** The server's routes, as the page uses them: relative to it, since a proxy may put the server under any path. */

/** What the server refused, in its own words. */
export class ApiError extends Error {
  constructor(status, { message, code } = {}) {
    super(message ?? `the server answered ${status}`);
    this.status = status;
    this.code = code;
  }
}

async function ask(path, { key, ...init } = {}) {
  const headers = { ...init.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...init, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ApiError(response.status, body.error);
}

/** Events of a stream, parsed: the data of each. */
async function* events(response) {
  let rest = "";
  for await (const text of chunks(response.body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const line = block.split("\n").find((each) => each.startsWith("data: "));
      if (!line || line === "data: [DONE]") continue;
      const data = JSON.parse(line.slice(6));
      if (data.error) throw new ApiError(0, data.error);
      yield data;
    }
  }
}

/** Not every browser can loop over a stream yet. */
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** The model that the server has: its name, its tasks and its defaults. */
export async function model(key) {
  const { data } = await (await ask("v1/models", { key })).json();
  return data[0];
}

/** Draws, as events of partial images and then the whole. */
export async function* draw(prompt, settings, { key, signal }) {
  const response = await ask("v1/images/generations", {
    key,
    signal,
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt, stream: true, ...settings }),
  });
  yield* events(response);
}

/** Edits an image, a Blob, likewise. */
export async function* edit(image, prompt, settings, { key, signal }) {
  const body = new FormData();
  body.set("image", image, "image");
  for (const [name, value] of Object.entries({ prompt, stream: true, ...settings })) {
    body.set(name, String(value));
  }
  yield* events(await ask("v1/images/edits", { key, signal, method: "POST", body }));
}

/** What the model writes about an image, a data URL: an answer, or a caption where there is no question. */
export async function* read(image, question, name, { key, signal }) {
  const content = [{ type: "image_url", image_url: { url: image } }];
  if (question) content.unshift({ type: "text", text: question });
  const response = await ask("v1/chat/completions", {
    key,
    signal,
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: name, stream: true, messages: [{ role: "user", content }] }),
  });
  for await (const chunk of events(response)) {
    const text = chunk.choices[0]?.delta?.content;
    if (text) yield text;
  }
}
