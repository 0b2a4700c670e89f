/** Whose requests the rate limit counts together, and which proxies tell who that is. */

import { mkdtemp, rm } from "node:fs/promises";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UniFluid } from "../../lib/index";
import { createServer, type ServerOptions } from "../../lib/server/server";
import { post, startServer } from "../support/server";

let model: UniFluid;
beforeAll(async () => {
  model = await UniFluid.load("shapes-64");
});
afterAll(() => model.dispose());

test("a rate limit answers 429 with Retry-After", async () => {
  const limited = await startServer(model, { rateLimit: 2 });
  try {
    const ask = () => post(`${limited.url}/v1/images/generations`, { prompt: "" });
    expect([(await ask()).status, (await ask()).status]).toEqual([422, 422]);
    const third = await ask();
    expect([third.status, third.body.error.code]).toEqual([429, "RATE_LIMITED"]);
    expect(Number(third.headers.get("retry-after"))).toBeGreaterThan(0);
    expect((await fetch(`${limited.url}/health`)).status).toBe(200);
  } finally {
    await limited.app.close();
  }
});

describe("the rate limit counts", () => {
  type Headers = Record<string, string>;
  const key = (authorization: string): Headers => ({ authorization });
  const ask = async (url: string, headers: Headers) =>
    (await post(`${url}/v1/images/generations`, { prompt: "" }, headers)).status;
  const from = (addresses: string): Headers => ({ "x-forwarded-for": addresses });
  const cases: [string, ServerOptions, Headers[], Headers][] = [
    [
      "a key, however it is written",
      { apiKeys: ["sesame", "other"] },
      [key("Bearer sesame"), key("bearer   sesame"), key("Bearer  sesame ")],
      key("Bearer other"),
    ],
    [
      "an address behind a proxy, whatever came before it",
      { trustProxy: true },
      [from("10.0.0.1"), from("1.1.1.1, 10.0.0.1"), from("2.2.2.2, 10.0.0.1")],
      from("10.0.0.1, 10.0.0.2"),
    ],
    [
      "an address behind two proxies",
      { trustProxy: 2 },
      [from("10.0.0.1, 9.9.9.9"), from("1.1.1.1, 10.0.0.1, 9.9.9.9"), from("10.0.0.1, 9.9.9.8")],
      from("10.0.0.2, 9.9.9.9"),
    ],
    [
      "a network of IPv6, whose addresses are one host's",
      { trustProxy: true },
      [from("2001:db8:1:2::1"), from("2001:db8:1:2:ffff::9"), from("2001:DB8:1:2::3")],
      from("2001:db8:1:3::1"),
    ],
    [
      "an address of IPv4 that is written as one of IPv6",
      { trustProxy: true },
      [from("10.0.0.1"), from("::ffff:10.0.0.1"), from("::FFFF:10.0.0.1")],
      from("::ffff:10.0.0.2"),
    ],
    [
      "an address behind proxies that are named",
      { trustProxy: ["loopback", "9.9.0.0/16"] },
      [from("10.0.0.1, 9.9.9.9"), from("1.1.1.1, 10.0.0.1"), from("2.2.2.2, 10.0.0.1, 9.9.9.8")],
      from("10.0.0.2"),
    ],
  ];
  test.each(cases)("%s", async (_name, options, same, other) => {
    const limited = await startServer(model, { rateLimit: 2, ...options });
    try {
      const statuses = [];
      for (const headers of same) statuses.push(await ask(limited.url, headers));
      expect(statuses).toEqual([422, 422, 429]);
      expect(await ask(limited.url, other)).toBe(422);
    } finally {
      await limited.app.close();
    }
  });

  test("an address, where there are neither keys nor proxies", async () => {
    const limited = await startServer(model, { rateLimit: 2 });
    try {
      const statuses = [];
      for (const name of ["a", "b", "c"]) {
        const made: Headers = { ...key(`Bearer ${name}`), ...from(`10.0.0.${name.charCodeAt(0)}`) };
        statuses.push(await ask(limited.url, made));
      }
      expect(statuses).toEqual([422, 422, 429]);
    } finally {
      await limited.app.close();
    }
  });

  test("all senders of a Unix socket, which have no address", async () => {
    const folder = await mkdtemp(join(tmpdir(), "socket-"));
    const app = createServer(model, { rateLimit: 2 });
    try {
      const socketPath = join(folder, "s");
      await app.listen({ path: socketPath });
      const send = () =>
        new Promise<number | undefined>((resolve, reject) => {
          const headers = { "content-type": "application/json" };
          const target = { socketPath, method: "POST", path: "/v1/images/generations", headers };
          const sent = request(target, (answer) => resolve(answer.resume().statusCode));
          sent.on("error", reject).end(JSON.stringify({ prompt: "" }));
        });
      expect([await send(), await send(), await send()]).toEqual([422, 422, 429]);
    } finally {
      await app.close();
      await rm(folder, { recursive: true });
    }
  });

  test.each<unknown>([-1, 0.5, "10.0.0.1", [], [""], ["proxy.example"], ["10.0.0.0/33"]])(
    "proxies are not %j",
    (trustProxy) => {
      const options = { trustProxy } as ServerOptions;
      expect(() => createServer(model, options)).toThrow(
        expect.objectContaining({ code: "INVALID_OPTION" }),
      );
    },
  );
});
