/** Who may call a server: pages of other origins, names that point to this machine, and what proxies say. */

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { type AddressInfo, connect } from "node:net";
import { join } from "node:path";
import { UniFluid } from "../../lib/index";
import { createServer, type ServerOptions } from "../../lib/server/server";
import { idle, type RunningServer, startServer } from "../support/server";

const photo = readFileSync(join(__dirname, "../fixtures/shapes-64/expected/caption0.png"));

let model: UniFluid;
let server: RunningServer;
beforeAll(async () => {
  model = await UniFluid.load("shapes-64");
  server = await startServer(model);
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

describe("other origins", () => {
  test("may call where they are listed", async () => {
    const open = await startServer(model, { corsOrigins: ["https://app.example"], apiKeys: ["k"] });
    try {
      const preflight = (origin: string) =>
        fetch(`${open.url}/v1/images/generations`, {
          method: "OPTIONS",
          headers: {
            origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
          },
        });
      const listed = await preflight("https://app.example");
      expect(listed.status).toBe(204);
      expect(listed.headers.get("access-control-allow-origin")).toBe("https://app.example");
      const other = await preflight("https://evil.example");
      expect(other.headers.get("access-control-allow-origin")).toBeNull();
    } finally {
      await open.app.close();
    }
  });

  test("see why they are refused", async () => {
    const app = createServer(model, {
      corsOrigins: ["https://app.example"],
      apiKeys: ["k", "long"],
      rateLimit: 1,
    });
    const ask = (key: string, origin: string, payload = {}) =>
      app.inject({
        method: "POST",
        url: "/v1/images/generations",
        headers: { origin, authorization: `Bearer ${key}` },
        payload,
      });
    try {
      for (const [key, status] of [
        ["wrong", 401],
        ["k", 422],
        ["k", 429],
      ] as const) {
        const { statusCode, headers } = await ask(key, "https://app.example");
        expect([statusCode, headers["access-control-allow-origin"]]).toEqual([
          status,
          "https://app.example",
        ]);
        const exposed = String(headers["access-control-expose-headers"]).split(", ");
        expect(exposed).toEqual(["retry-after", "x-request-id"]);
      }
      const drawing = ask("long", "https://app.example", { prompt: "a star", steps: 300 });
      while (model.stats().running === 0) await new Promise((resolve) => setTimeout(resolve, 5));
      const drained = app.drain(60_000);
      const draining = await ask("k", "https://app.example");
      expect([draining.statusCode, draining.headers["access-control-allow-origin"]]).toEqual([
        503,
        "https://app.example",
      ]);
      const other = await ask("wrong", "https://evil.example");
      expect([other.statusCode, other.headers["access-control-allow-origin"]]).toEqual([
        401,
        undefined,
      ]);
      expect((await drawing).statusCode).toBe(200);
      await drained;
    } finally {
      await app.close();
    }
  });
});

test("a page of another origin cannot send forms", async () => {
  const send = async (url: string, headers: Record<string, string>) => {
    const body = new FormData();
    body.set("prompt", "make it blue");
    body.set("steps", "1");
    body.set("image", new Blob([photo as unknown as Uint8Array<ArrayBuffer>]));
    const answer = await fetch(`${url}/v1/images/edits`, { method: "POST", body, headers });
    const { error } = (await answer.json()) as { error?: { code: string } };
    return [answer.status, error?.code];
  };
  const evil = { origin: "https://evil.example", "sec-fetch-site": "cross-site" };
  expect(await send(server.url, evil)).toEqual([403, "ORIGIN_REFUSED"]);
  for (const headers of [
    { origin: server.url.replace("127.0.0.1", "localhost"), "sec-fetch-site": "same-site" },
    { origin: "http://127.0.0.1:1", "sec-fetch-site": "same-site" },
    { "sec-fetch-site": "same-site" },
    // As browsers send to hosts without TLS.
    { origin: "http://192.168.0.9" },
    { origin: "null" },
    { origin: server.url.replace("http:", "https:") },
  ] as Record<string, string>[]) {
    expect([headers, await send(server.url, headers)]).toEqual([headers, [403, "ORIGIN_REFUSED"]]);
  }
  expect(await send(server.url, { "sec-fetch-site": "same-origin" })).toEqual([200, undefined]);
  expect(await send(server.url, { origin: server.url })).toEqual([200, undefined]);
  const open = await startServer(model, { corsOrigins: ["https://app.example"] });
  try {
    expect(await send(open.url, evil)).toEqual([403, "ORIGIN_REFUSED"]);
    const listed = { ...evil, origin: "https://app.example" };
    expect(await send(open.url, listed)).toEqual([200, undefined]);
  } finally {
    await open.app.close();
  }
});

describe("a name that points to this machine", () => {
  const ask = async ({ app, port }: RunningServer, host: string, headers = {}) => {
    const { statusCode, body } = await app.inject({
      url: "/v1/models",
      headers: { host, ...headers },
    });
    // What is injected goes the way of what comes by a socket.
    const socket = connect(port, "127.0.0.1");
    socket.write(
      `GET /v1/models HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n` +
        `${Object.entries(headers)
          .map(([name, value]) => `${name}: ${value}\r\n`)
          .join("")}\r\n`,
    );
    const [first] = (await once(socket, "data")) as [Buffer];
    socket.destroy();
    expect(Number(first.subarray(9, 12))).toBe(statusCode);
    return [statusCode, JSON.parse(body).error?.code];
  };
  const refused = [403, "ORIGIN_REFUSED"];
  const served = [200, undefined];

  test.each([
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "@",
  ])("%s is refused", async (host) => expect(await ask(server, host)).toEqual(refused));

  test.each([
    "localhost",
    "localhost:80",
    "LocalHost.",
    "a.localhost:1",
    "127.0.0.1",
    "[::1]:80",
    "10.0.0.1",
  ])("%s is served", async (host) => expect(await ask(server, host)).toEqual(served));

  test.each<[string, ServerOptions, Record<string, string>]>([
    ["a key", { apiKeys: ["k"] }, { authorization: "Bearer k" }],
    ["a proxy that is trusted", { trustProxy: true }, {}],
    ["any page that may call", { corsOrigins: ["*"] }, {}],
  ])("is served with %s", async (_name, options, headers) => {
    const other = await startServer(model, options);
    try {
      expect(await ask(other, "models.example", headers)).toEqual(served);
    } finally {
      await other.app.close();
    }
  });

  test("is served where others are", async () => {
    const app = createServer(model);
    await app.listen({ host: "0.0.0.0", port: 0 });
    try {
      const { port } = app.server.address() as AddressInfo;
      expect(await ask({ app, port, url: "" }, "models.example")).toEqual(served);
    } finally {
      await app.close();
    }
  });
});

test("an id of a request is a trusted proxy's, or the server's own", async () => {
  const idOf = async (trustProxy: ServerOptions["trustProxy"], remoteAddress: string) => {
    const app = createServer(model, { trustProxy });
    const headers = { "x-request-id": "theirs" };
    const answer = await app.inject({ url: "/health", headers, remoteAddress });
    await app.close();
    return answer.headers["x-request-id"];
  };
  expect(await idOf(true, "192.0.2.1")).toBe("theirs");
  expect(await idOf(["10.0.0.0/8"], "10.1.2.3")).toBe("theirs");
  expect(await idOf(["10.0.0.0/8", "loopback"], "::ffff:127.0.0.1")).toBe("theirs");
  expect(await idOf(["linklocal"], "fe80::1%eth0")).toBe("theirs");
  expect(await idOf(["10.0.0.0/8"], "192.0.2.1")).toBe("req-1");
  expect(await idOf(false, "127.0.0.1")).toBe("req-1");
});
