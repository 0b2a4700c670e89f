/** What a server on a network meets: bodies and headers made to hurt, wrong keys, clients that go away. */

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { type AddressInfo, connect } from "node:net";
import { join } from "node:path";
import { crc32, deflateSync } from "node:zlib";
import { UniFluid } from "../../lib/index";
import { createServer } from "../../lib/server/server";
import { idle, post, type RunningServer, startServer } from "../support/server";

const photo = readFileSync(join(__dirname, "../fixtures/shapes-64/expected/caption0.png"));

let model: UniFluid;
let server: RunningServer;
beforeAll(async () => {
  model = await UniFluid.load("shapes-64");
  server = await startServer(model, {
    maxBodyBytes: 256 * 1024,
    maxPixels: 1_000_000,
    receiveTimeout: 2,
  });
});
afterAll(async () => {
  await server.app.close();
  await model.dispose();
});
afterEach(async () => {
  // Whatever was sent, the server lives and holds nothing.
  await idle(model);
  expect((await fetch(`${server.url}/health`)).status).toBe(200);
});

/** Writes bytes to a connection of its own; what comes back until it is closed. */
function raw(text: string | Buffer, { endAfter }: { endAfter?: number } = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(server.port, "127.0.0.1");
    let received = "";
    socket.on("data", (chunk) => {
      received += chunk;
    });
    socket.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "ECONNRESET" ? resolve(received) : reject(error),
    );
    socket.once("close", () => resolve(received));
    socket.write(text);
    if (endAfter !== undefined) setTimeout(() => socket.destroy(), endAfter);
  });
}

const generation = (body: string | Buffer, headers = "") =>
  `POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n${headers}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;

const generations = () => `${server.url}/v1/images/generations`;
const chat = () => `${server.url}/v1/chat/completions`;
const edits = () => `${server.url}/v1/images/edits`;
const showing = (url: string) => ({
  messages: [{ role: "user", content: [{ type: "image_url", image_url: { url } }] }],
});
const dataUrl = (bytes: Uint8Array) =>
  `data:image/png;base64,${Buffer.from(bytes).toString("base64")}`;

/** A PNG of one colour whose header says `side` x `side`: small as a file, large in memory. */
function bomb(side: number): Buffer {
  const chunk = (type: string, data: Buffer) => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const size = Buffer.alloc(4);
    size.writeUInt32BE(data.length);
    const check = Buffer.alloc(4);
    check.writeUInt32BE(crc32(body));
    return Buffer.concat([size, body, check]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(side, 0);
  header.writeUInt32BE(side, 4);
  header.set([1, 0, 0, 0, 0], 8);
  const rows = Buffer.alloc(side * (1 + Math.ceil(side / 8)));
  return Buffer.concat([
    Buffer.from("89504e470d0a1a0a", "hex"),
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(rows)),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

describe("bodies", () => {
  const deep = (n: number) => `{"prompt":${"[".repeat(n)}${"]".repeat(n)}}`;
  test.each<[string, string, number, string]>([
    ["a body beyond the limit", `{"prompt":"${"x".repeat(300_000)}"}`, 413, "BODY_TOO_LARGE"],
    ["no JSON", "{prompt", 400, "INVALID_JSON"],
    ["nothing", "", 400, "INVALID_JSON"],
    ["a list", "[]", 422, "INVALID_OPTION"],
    ["a number", "5", 422, "INVALID_OPTION"],
    ["null", "null", 422, "INVALID_OPTION"],
    ["lists within lists", deep(100_000), 422, "INVALID_OPTION"],
    ["__proto__", '{"prompt":"a","__proto__":{"n":5}}', 400, "INVALID_JSON"],
    ["constructor", '{"prompt":"a","constructor":{"prototype":{"n":5}}}', 400, "INVALID_JSON"],
    ["a huge number", '{"prompt":"a","n":1e999}', 422, "INVALID_OPTION"],
    ["a number that is none", '{"prompt":"a","steps":"NaN"}', 422, "INVALID_OPTION"],
    ["a list as number", '{"prompt":"a","steps":[1]}', 422, "INVALID_OPTION"],
    ["true as number", '{"prompt":"a","n":true}', 422, "INVALID_OPTION"],
    ["an empty text as number", '{"prompt":"a","guidance":""}', 422, "INVALID_OPTION"],
    ["an object as prompt", '{"prompt":{"toString":"x"}}', 422, "INVALID_OPTION"],
    ["a negative seed", '{"prompt":"a","seed":-1}', 422, "INVALID_OPTION"],
    ["a fractional seed", '{"prompt":"a","seed":1.5}', 422, "INVALID_OPTION"],
    ["an unknown field", '{"prompt":"a","negative_prompt":"b"}', 422, "INVALID_OPTION"],
  ])("%s", async (_name, body, status, code) => {
    const answer = await post(generations(), body);
    expect([answer.status, answer.body.error?.code]).toEqual([status, code]);
  });

  test("null as number is an absent one", async () => {
    const answer = await post(generations(), '{"prompt":"a","steps":1,"n":null,"guidance":null}');
    expect([answer.status, answer.body.data?.length]).toEqual([200, 1]);
  });

  test("so is null for every field but the prompt", async () => {
    const fields =
      "model size response_format output_format stream partial_images quality background moderation style user seed order";
    const nulls = Object.fromEntries(fields.split(" ").map((name) => [name, null]));
    const body = { prompt: "a", steps: 1, ...nulls };
    const answer = await post(generations(), body);
    expect([answer.status, answer.body.data?.length]).toEqual([200, 1]);
    const images = [{ image_url: dataUrl(photo) }];
    const edit = { ...body, images, mask: null, input_fidelity: null };
    expect((await post(edits(), edit)).status).toBe(200);
    const question = { ...showing(dataUrl(photo)), model: null, seed: null, max_tokens: 1 };
    const options = { stream: null, stream_options: { include_usage: null } };
    expect((await post(chat(), { ...question, ...options })).status).toBe(200);
    expect((await post(generations(), { prompt: null })).status).toBe(422);
  });

  test("forms are of a wrong type where JSON is expected", async () => {
    for (const url of [generations(), chat()]) {
      const body = new FormData();
      body.set("prompt", "a");
      body.set("image", new Blob(["x".repeat(100_000)]), "photo.png");
      const response = await fetch(url, { method: "POST", body });
      const { error } = (await response.json()) as { error: { code: string } };
      expect([response.status, error.code]).toEqual([415, "UNSUPPORTED_MEDIA_TYPE"]);
    }
  });

  test("other content types are refused", async () => {
    for (const type of ["text/plain", "application/xml", "application/x-www-form-urlencoded"]) {
      const answer = await post(generations(), "prompt=a", { "content-type": type });
      expect([answer.status, answer.body.error.code]).toEqual([415, "UNSUPPORTED_MEDIA_TYPE"]);
    }
  });

  test("text that is not UTF-8 is drawn as what it is read as, and breaks nothing", async () => {
    const body = Buffer.concat([
      Buffer.from('{"steps":1,"prompt":"a '),
      Buffer.from([0xff, 0xfe, 0xc0, 0x80]),
      Buffer.from('"}'),
    ]);
    const head = generation(body).slice(0, -body.toString().length);
    const answer = await raw(Buffer.concat([Buffer.from(head), body]));
    expect(answer).toMatch(/^HTTP\/1\.1 200 /);
  });
});

describe("headers", () => {
  test.each<[string, string, RegExp]>([
    [
      "two lengths",
      "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\nabcde",
      /^HTTP\/1\.1 400 /,
    ],
    [
      "a length and chunks",
      "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      /^HTTP\/1\.1 400 /,
    ],
    [
      "a huge header",
      `GET /health HTTP/1.1\r\nHost: localhost\r\nX: ${"y".repeat(20_000)}\r\n\r\n`,
      /^HTTP\/1\.1 431 /,
    ],
    ["no HTTP", "hello\r\n\r\n", /^HTTP\/1\.1 400 /],
    [
      "a name that breaks lines",
      "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\nSet-Cookie: b\r\n\r\n",
      /^HTTP\/1\.1 400 /,
    ],
  ])("%s", async (_name, request, answer) => {
    expect(await raw(request)).toMatch(answer);
  });

  test("headers that come too slowly end the connection", async () => {
    const answer = await raw("POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n");
    expect(answer).toMatch(/^(HTTP\/1\.1 408 |$)/);
  });

  test("a body that comes too slowly ends the connection", async () => {
    const answer = await raw(generation(`{"prompt":"${"x".repeat(50)}"}`).slice(0, -20));
    expect(answer).toMatch(/^(HTTP\/1\.1 408 |$)/);
  });

  test("a slow client that never closes its half holds no place", async () => {
    const small = await startServer(model, { maxRequests: 1, receiveTimeout: 1 });
    const head = generation(`{"prompt":"${"x".repeat(50)}"}`).slice(0, -20);
    const socket = connect({ port: small.port, host: "127.0.0.1", allowHalfOpen: true });
    try {
      // What comes is read, and nothing is ever closed.
      socket
        .on("error", () => {})
        .resume()
        .write(head);
      await once(socket, "end");
      const ask = () => post(`${small.url}/v1/images/generations`, { prompt: "a", steps: 1 });
      let answer = await ask();
      for (let i = 0; i < 100 && answer.status === 429; i++) {
        await new Promise((resolve) => setTimeout(resolve, 50));
        answer = await ask();
      }
      expect(answer.status).toBe(200);
    } finally {
      socket.destroy();
      await small.app.close();
    }
  });

  test("answers forbid sniffing, framing and what is not the page's own", async () => {
    const { headers } = await fetch(`${server.url}/`);
    expect(headers.get("x-content-type-options")).toBe("nosniff");
    expect(headers.get("x-frame-options")).toBe("DENY");
    expect(headers.get("content-security-policy")).toContain("default-src 'none'");
    expect(headers.get("access-control-allow-origin")).toBeNull();
  });
});

describe("paths", () => {
  test.each([
    "/page/../../package.json",
    "/page/..%2f..%2fpackage.json",
    "/page/%2e%2e/%2e%2e/package.json",
    "//etc/passwd",
    "/page/....//package.json",
    "/page/%00",
    "/page/page.mjs%00.html",
    "/v1/models/../../package.json",
    "/v1/models/%2e%2e%2fpackage.json",
    "/v1/models/%zz",
    `/v1/models/${"x".repeat(201)}`,
  ])("%s leads nowhere", async (path) => {
    const answer = await raw(
      `GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`,
    );
    expect(answer).toMatch(/^HTTP\/1\.1 (404|400|414) /);
    const [head, body] = answer.split("\r\n\r\n") as [string, string];
    expect(JSON.parse(body)).toEqual({
      error: {
        message: expect.any(String),
        type: "invalid_request_error",
        param: null,
        code: expect.stringMatching(/^(NOT_FOUND|MODEL_NOT_FOUND|BAD_REQUEST)$/),
      },
    });
    expect(head).toMatch(/^x-content-type-options: nosniff\r$/m);
    expect(head).toMatch(/^x-request-id: \S+\r$/m);
    expect(answer).not.toContain('"devDependencies"');
  });
});

describe("images", () => {
  test.each<[string, () => Uint8Array, number, string]>([
    ["none", () => new Uint8Array(0), 422, "IMAGE_EMPTY"],
    ["no image", () => Buffer.from("<html>"), 422, "IMAGE_UNDECODABLE"],
    ["half an image", () => photo.subarray(0, photo.length / 2), 422, "IMAGE_UNDECODABLE"],
    ["100 megapixels in a few bytes", () => bomb(10_000), 413, "IMAGE_TOO_LARGE"],
    ["just above the limit", () => bomb(1001), 413, "IMAGE_TOO_LARGE"],
    [
      "an SVG that names a file",
      () =>
        Buffer.from(
          '<svg xmlns="http://www.w3.org/2000/svg" width="9999" height="9999"><image href="file:///etc/passwd"/></svg>',
        ),
      422,
      "IMAGE_UNDECODABLE",
    ],
    ["a format that is not taken", () => Buffer.from("II*\0 a TIFF"), 422, "IMAGE_UNDECODABLE"],
  ])("%s", async (_name, bytes, status, code) => {
    const asked = await post(chat(), showing(dataUrl(bytes())));
    expect([asked.status, asked.body.error?.code]).toEqual([status, code]);
    const form = new FormData();
    form.set("prompt", "make it blue");
    form.set("image", new Blob([bytes() as Uint8Array<ArrayBuffer>]), "photo.png");
    const edited = await fetch(edits(), { method: "POST", body: form });
    const body = (await edited.json()) as { error?: { code: string } };
    expect([edited.status, body.error?.code]).toEqual([status, code]);
  });

  test.each([
    ["/etc/passwd", "IMAGE_URL_REFUSED"],
    ["file:///etc/passwd", "IMAGE_URL_REFUSED"],
    ["photo.png", "IMAGE_URL_REFUSED"],
    ["http://127.0.0.1/x.png", "IMAGE_URL_REFUSED"],
    ["https://example.com/x.png", "IMAGE_URL_REFUSED"],
    ["ftp://example.com/x.png", "IMAGE_URL_REFUSED"],
    ["data:image/png,notbase64", "IMAGE_UNDECODABLE"],
    ["data:image/png;base64,%%%", "IMAGE_UNDECODABLE"],
  ])("%s is not read", async (url, code) => {
    const answer = await post(chat(), showing(url));
    expect([answer.status, answer.body.error.code]).toEqual([422, code]);
  });
});

describe("forms", () => {
  const form = (fields: Record<string, string | Blob>, names: Record<string, string> = {}) => {
    const body = new FormData();
    for (const [name, value] of Object.entries(fields)) {
      if (typeof value === "string") body.append(name, value);
      else body.append(name, value, names[name] ?? "photo.png");
    }
    return fetch(edits(), { method: "POST", body });
  };
  const image = () => new Blob([photo as unknown as Uint8Array<ArrayBuffer>]);
  const outcome = async (response: Response) => {
    const body = (await response.json()) as { error?: { code: string } };
    return [response.status, body.error?.code];
  };

  test("a file name is only a name", async () => {
    const answer = await form(
      { prompt: "make it blue", image: image(), steps: "1" },
      { image: "../../../../etc/passwd" },
    );
    expect(await outcome(answer)).toEqual([200, undefined]);
  });

  test.each<[string, Record<string, string | Blob>, number, string]>([
    ["no image", { prompt: "a" }, 422, "IMAGE_UNSUPPORTED_INPUT"],
    ["no prompt", { image: image() }, 422, "INVALID_OPTION"],
    ["a mask", { prompt: "a", image: image(), mask: image() }, 422, "INVALID_OPTION"],
    ["another file", { prompt: "a", image: image(), extra: image() }, 422, "INVALID_OPTION"],
    [
      "an image that is text",
      { prompt: "a", image: "/etc/passwd" },
      422,
      "IMAGE_UNSUPPORTED_INPUT",
    ],
    [
      "two images",
      { prompt: "a", image: image(), "image[]": image() },
      422,
      "IMAGE_UNSUPPORTED_INPUT",
    ],
    ["__proto__", { prompt: "a", image: image(), ["__proto__"]: "x" }, 400, "BAD_REQUEST"],
    [
      "many fields",
      {
        image: image(),
        ...Object.fromEntries(Array.from({ length: 60 }, (_, i) => [`f${i}`, "x"])),
      },
      413,
      "TOO_MANY_PARTS",
    ],
    ["a huge field", { prompt: "x".repeat(70_000), image: image() }, 413, "BODY_TOO_LARGE"],
    ["a huge file", { prompt: "a", image: new Blob(["x".repeat(400_000)]) }, 413, "BODY_TOO_LARGE"],
  ])("%s", async (_name, fields, status, code) => {
    expect(await outcome(await form(fields))).toEqual([status, code]);
  });

  describe("refused before its end", () => {
    const half = "x".repeat(150_000);
    const file = (name: string) =>
      `--B\r\nContent-Disposition: form-data; name="${name}"; filename="a.png"\r\n\r\n${half}\r\n`;
    const text = '--B\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n';

    test.each<[string, string, number]>([
      ["a mask", file("mask"), 422],
      ["another file", file("extra"), 422],
      ["an image that is text", text + file("image"), 422],
      ["two files too large together", file("image") + file("image[]"), 413],
    ])("%s leaves the connection to the next request", async (_name, parts, status) => {
      const body = `${parts}--B--\r\n`;
      const head = `POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: ${body.length}\r\n\r\n`;
      const next = "GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
      const answers = (await raw(head + body + next)).match(/HTTP\/1\.1 \d+/g);
      expect(answers).toEqual([`HTTP/1.1 ${status}`, "HTTP/1.1 200"]);
    });
  });

  describe("beyond the limit in all", () => {
    const half = "x".repeat(150_000);
    const file = (name: string) =>
      `--B\r\nContent-Disposition: form-data; name="${name}"; filename="a.png"\r\n\r\n${half}\r\n`;
    const chunk = (text: string) => `${text.length.toString(16)}\r\n${text}\r\n`;
    const head = (how: string) =>
      `POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=B\r\n${how}\r\n\r\n`;

    test.each<[string, string]>([
      ["by its length, before anything of it comes", head("Content-Length: 300500")],
      [
        "by what came, before it ends",
        head("Transfer-Encoding: chunked") + chunk(file("image")) + chunk(file("image[]")),
      ],
      ["before the first part", head("Transfer-Encoding: chunked") + chunk(half) + chunk(half)],
    ])("is refused %s", async (_name, text) => {
      const answer = await raw(text);
      expect(answer).toMatch(/^HTTP\/1\.1 413 /);
      expect(answer).toContain("BODY_TOO_LARGE");
    });
  });

  test("a part without a name is told of", async () => {
    const body = "--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--\r\n";
    const answer = await raw(
      `POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    const { error } = JSON.parse(answer.slice(answer.indexOf("{")));
    expect([error.code, error.message]).toEqual([
      "INVALID_FORM",
      "expected a name for each part of the form",
    ]);
  });

  test("a form takes prompts as long as the server does", async () => {
    const other = await startServer(model, { maxPromptLength: 100_000 });
    try {
      const body = new FormData();
      body.set("prompt", "é".repeat(100_001));
      body.set("image", image(), "photo.png");
      const answer = await fetch(`${other.url}/v1/images/edits`, { method: "POST", body });
      const { error } = (await answer.json()) as { error: { message: string } };
      expect(error.message).toBe("expected at most 100000 characters but received 100001");
    } finally {
      await other.app.close();
    }
  });

  test("a client that leaves before the end is no fault of the server", async () => {
    const lines: { level: number; code?: string }[] = [];
    const stream = { write: (line: string) => void lines.push(JSON.parse(line)) };
    const other = await startServer(model, { logger: { stream } });
    try {
      const socket = connect(other.port, "127.0.0.1");
      socket.write(
        'POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: 500\r\n\r\n--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nabc',
      );
      setTimeout(() => socket.destroy(), 200);
      while (!lines.some(({ level, code }) => level > 30 || code !== undefined)) {
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      expect(lines.filter(({ level }) => level > 30)).toEqual([]);
      expect(lines.map(({ code }) => code)).toContain("CLIENT_GONE");
    } finally {
      await other.app.close();
    }
  });

  test("a form cut short ends the request", async () => {
    const head = `POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: 500\r\n\r\n--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nabc`;
    await raw(head, { endAfter: 100 });
    const whole = `--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nabc`;
    const broken = await raw(
      `POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: ${whole.length}\r\n\r\n${whole}`,
    );
    expect(broken).toMatch(/^HTTP\/1\.1 4\d\d /);
  });
});

describe("keys", () => {
  let locked: RunningServer;
  beforeAll(async () => {
    locked = await startServer(model, { apiKeys: ["first-key", "second-key"] });
  });
  afterAll(() => locked.app.close());
  const status = async (headers: Record<string, string>, path = "/v1/models") =>
    (await fetch(locked.url + path, { headers })).status;

  test.each<[string, Record<string, string>]>([
    ["none", {}],
    ["another", { authorization: "Bearer third-key" }],
    ["the beginning of one", { authorization: "Bearer first" }],
    ["one and more", { authorization: "Bearer first-key-more" }],
    ["another scheme", { authorization: "Basic first-key" }],
    ["no scheme", { authorization: "first-key" }],
    ["nothing after the scheme", { authorization: "Bearer " }],
    ["in another header", { "x-api-key": "first-key" }],
    ["a very long one", { authorization: `Bearer ${"x".repeat(10_000)}` }],
  ])("%s does not open", async (_name, headers) => {
    for (const path of ["/v1/models", "/metrics", "/nothing"]) {
      expect(await status(headers, path)).toBe(401);
    }
    const answer = await post(`${locked.url}/v1/images/generations`, { prompt: "a" }, headers);
    expect(answer.status).toBe(401);
    expect(answer.headers.get("www-authenticate")).toBe("Bearer");
  });

  test("each of them opens, until it is replaced", async () => {
    expect(await status({ authorization: "Bearer first-key" })).toBe(200);
    expect(await status({ authorization: "bearer second-key" })).toBe(200);
    locked.app.setApiKeys(["third-key"]);
    expect(await status({ authorization: "Bearer first-key" })).toBe(401);
    expect(await status({ authorization: "Bearer third-key" })).toBe(200);
  });

  test.each([
    [[]],
    [undefined],
    ["a-key"],
    [[5]],
    [["a key"]],
    [["good-key", "schlüssel"]],
    [[""]],
  ])("%j in their place is refused, and the old ones stay", async (keys) => {
    locked.app.setApiKeys(["third-key"]);
    expect(() => locked.app.setApiKeys(keys as string[])).toThrow(
      expect.objectContaining({
        code: "INVALID_OPTION",
        message: expect.not.stringMatching(/a-key|a key|good-key|schlüssel/),
      }),
    );
    expect(await status({})).toBe(401);
    expect(await status({ authorization: "Bearer third-key" })).toBe(200);
  });

  test("that could never match are refused from the beginning, and none stay none", () => {
    expect(() => createServer(model, { apiKeys: ["a key"] })).toThrow(
      expect.objectContaining({ code: "INVALID_OPTION" }),
    );
    createServer(model).setApiKeys([]);
  });

  test("health, readiness, the page and the description are open", async () => {
    for (const path of ["/health", "/ready", "/", "/page/page.mjs", "/openapi.json"]) {
      expect(await status({}, path)).toBe(200);
    }
  });
});

test.each<[string, string[]]>([
  ["after", ["/health", "/slow"]],
  ["before", ["/slow", "/health"]],
])(
  "an answer that takes longer than a reader may is waited for %s another",
  async (_name, paths) => {
    const app = createServer(model, { stallTimeout: 1 });
    app.get("/slow", async () => {
      await new Promise((resolve) => setTimeout(resolve, 2500));
      return "made";
    });
    await app.listen({ host: "127.0.0.1", port: 0 });
    const socket = connect((app.server.address() as AddressInfo).port, "127.0.0.1");
    try {
      let text = "";
      socket.on("data", (chunk) => {
        text += chunk;
      });
      const request = (path: string) => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`;
      // At once, as pipelining does.
      socket.write(paths.map(request).join(""));
      const whole = () => text.includes("made") && text.includes('"ok"');
      const cut = once(socket, "close").then(() => true);
      while (!whole() && !(await Promise.race([cut, new Promise((go) => setTimeout(go, 20))]))) {}
      expect(text.match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200", "HTTP/1.1 200"]);
      expect(whole()).toBe(true);
    } finally {
      socket.destroy();
      await app.close();
    }
  },
);

test("beyond its requests a server refuses before it reads a body", async () => {
  const small = await startServer(model, { maxRequests: 2 });
  const sockets = [1, 2].map(() => connect(small.port, "127.0.0.1"));
  try {
    // Two that begin to send, and go on for ever.
    const head =
      "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{";
    for (const socket of sockets) socket.on("error", () => {}).write(head);
    const ask = () => post(`${small.url}/v1/images/generations`, { prompt: "a", steps: 1 });
    let answer = await ask();
    while (answer.status === 200) answer = await ask();
    expect([answer.status, answer.body.error.code]).toEqual([429, "QUEUE_FULL"]);
    expect(Number(answer.headers.get("retry-after"))).toBeGreaterThan(0);
    expect((await fetch(`${small.url}/health`)).status).toBe(200);
    // Their room is free again when they are gone.
    for (const socket of sockets) socket.destroy();
    while (answer.status === 429) answer = await ask();
    expect(answer.status).toBe(200);
  } finally {
    for (const socket of sockets) socket.destroy();
    await small.app.close();
  }
});

test("what is no HTTP is answered in the form of all errors", async () => {
  const answer = await raw("hello\r\n\r\n");
  const body = JSON.parse(answer.slice(answer.indexOf("{")));
  expect(body.error).toMatchObject({ code: "BAD_REQUEST", type: "invalid_request_error" });
});

test("drain waits until an answer is sent, not only made", async () => {
  const app = createServer(model);
  let made = () => {};
  const isMade = new Promise<void>((resolve) => {
    made = resolve;
  });
  let send = () => {};
  const maySend = new Promise<void>((resolve) => {
    send = resolve;
  });
  app.addHook("onSend", async (request) => {
    if (request.method !== "POST") return;
    made();
    await maySend;
  });
  await app.listen({ host: "127.0.0.1", port: 0 });
  const { port } = app.server.address() as AddressInfo;
  const answer = post(`http://127.0.0.1:${port}/v1/images/generations`, { prompt: "a", steps: 1 });
  await isMade;
  const drained = app.drain(60_000);
  // Longer than connections are left when nothing is waited for.
  await new Promise((resolve) => setTimeout(resolve, 1500));
  send();
  expect((await answer).status).toBe(200);
  await drained;
});

describe("clients that go away", () => {
  test("hold no places, also for requests that waited behind others of theirs", async () => {
    const small = await startServer(model, { maxRequests: 2 });
    try {
      const socket = connect(small.port, "127.0.0.1");
      const body = JSON.stringify({ prompt: "a star", steps: 300 });
      const one = generation(body).replace("Connection: close\r\n", "");
      socket.on("error", () => {}).write(one + one);
      const count = () => model.stats().running + model.stats().waiting;
      while (count() < 2) await new Promise((resolve) => setTimeout(resolve, 5));
      socket.destroy();
      await idle(model);
      const ask = () => post(`${small.url}/v1/images/generations`, { prompt: "a", steps: 100 });
      const answers = await Promise.all([ask(), ask()]);
      expect(answers.map(({ status }) => status)).toEqual([200, 200]);
    } finally {
      await small.app.close();
    }
  });

  test("free their sequences at the next step", async () => {
    const before = model.stats();
    const controller = new AbortController();
    const body = JSON.stringify({ prompt: "a star", steps: 1000, n: 4 });
    const headers = { "content-type": "application/json" };
    const gone = fetch(generations(), { method: "POST", headers, body, signal: controller.signal });
    gone.catch(() => {});
    while (model.stats().running === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    controller.abort();
    await expect(gone).rejects.toThrow();
    await idle(model);
    expect(model.stats().cancelled).toBe(before.cancelled + 4);
    expect(model.stats().completed).toBe(before.completed);
  });

  test("in the middle of a stream, too", async () => {
    const body = JSON.stringify({ prompt: "a", steps: 500, stream: true, partial_images: 64 });
    const headers = { "content-type": "application/json" };
    const response = await fetch(generations(), { method: "POST", headers, body });
    const reader = response.body!.getReader();
    await reader.read();
    await reader.cancel();
    await idle(model);
  });
});

test("a request that takes too long is given up", async () => {
  const hasty = await startServer(model, { requestTimeout: 1 });
  try {
    const answer = await post(`${hasty.url}/v1/images/generations`, {
      prompt: "a",
      n: 10,
      steps: 1000,
    });
    expect([answer.status, answer.body.error.code]).toEqual([503, "TIMEOUT"]);
  } finally {
    await hasty.app.close();
  }
});
