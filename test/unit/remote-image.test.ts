/** Images of other hosts: what a server may be made to reach through the addresses that clients choose. */

import type { LookupAddress, lookup as resolveName } from "node:dns";
import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import {
  fetchRemoteImage,
  isPublicAddress,
  type RemoteImageOptions,
} from "../../lib/server/remote-image";

const LIMITS = { maxBytes: 1000, timeout: 10_000 };

describe("addresses", () => {
  test.each([
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80e::200e",
  ])("%s is public", (address) => expect(isPublicAddress(address)).toBe(true));

  test.each([
    ["this host", "0.0.0.0"],
    ["private", "10.1.2.3"],
    ["private", "172.16.0.1"],
    ["private", "172.31.255.255"],
    ["private", "192.168.1.1"],
    ["shared by carriers", "100.64.0.1"],
    ["loopback", "127.0.0.1"],
    ["loopback", "127.255.255.254"],
    ["the metadata service of clouds", "169.254.169.254"],
    ["documentation", "192.0.2.1"],
    ["multicast", "224.0.0.1"],
    ["broadcast", "255.255.255.255"],
    ["IPv6 unspecified", "::"],
    ["IPv6 loopback", "::1"],
    ["IPv6 link-local", "fe80::1"],
    ["IPv6 unique local", "fd00:ec2::254"],
    ["IPv6 multicast", "ff02::1"],
    ["IPv6 documentation", "2001:db8::1"],
    ["IPv4 mapped", "::ffff:127.0.0.1"],
    ["IPv4 mapped, in hexadecimal", "::ffff:7f00:1"],
    ["IPv4 mapped, though public", "::ffff:8.8.8.8"],
    ["IPv4 compatible", "::127.0.0.1"],
    ["IPv4 translated", "64:ff9b::7f00:1"],
    ["IPv4 by 6to4", "2002:7f00:1::"],
    ["IPv4 by Teredo", "2001:0:7f00:1::"],
    ["no address", "example.com"],
    ["no address", "127.1"],
    ["nothing", ""],
  ])("%s, %s, is not", (_what, address) => expect(isPublicAddress(address)).toBe(false));
});

describe("what is refused before anything is asked", () => {
  const untouched = (() => {
    throw new Error("a name was resolved");
  }) as unknown as typeof resolveName;
  const fetchOf = (url: string, hosts: string[]) =>
    fetchRemoteImage(url, { ...LIMITS, hosts, lookup: untouched });

  // Each host is listed, so that only its address stands in the way.
  test.each([
    "http://127.0.0.1/a.png",
    "http://127.1/a.png",
    "http://2130706433/a.png",
    "http://0x7f000001/a.png",
    "http://0x7f.1/a.png",
    "http://0177.0.0.1/a.png",
    "http://017700000001/a.png",
    "http://127.0.0.1./a.png",
    "http://127.0.0.1:8080/a.png",
    "http://0/a.png",
    "http://10.0.0.1/a.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://①②⑦.0.0.1/a.png",
    "http://[::1]/a.png",
    "http://[::]/a.png",
    "http://[fe80::1]/a.png",
    "http://[fd00:ec2::254]/a.png",
    "http://[::ffff:127.0.0.1]/a.png",
    "http://[::ffff:a9fe:a9fe]/a.png",
    "http://[64:ff9b::7f00:1]/a.png",
    "http://[2002:7f00:1::]/a.png",
    "https://[0:0:0:0:0:0:0:1]/a.png",
  ])("%s", async (url) => {
    await expect(fetchOf(url, [new URL(url).host])).rejects.toMatchObject({
      status: 422,
      code: "IMAGE_URL_REFUSED",
      message: expect.stringContaining("public network"),
    });
  });

  test.each([
    ["a host that is not listed", "https://evil.example/a.png"],
    ["a name that begins like one that is", "https://images.example.evil.example/a.png"],
    ["a name that ends like one that is", "https://evilimages.example/a.png"],
    ["a listed host as the user's name", "https://images.example@evil.example/a.png"],
    ["a user on a listed host", "https://user:word@images.example/a.png"],
    ["a listed host in the fragment", "https://evil.example/#@images.example"],
    ["a listed host behind a backslash", "https://evil.example\\@images.example/a.png"],
    ["another scheme", "ftp://images.example/a.png"],
    ["a file", "file:///etc/passwd"],
    ["gopher", "gopher://images.example/1"],
    ["a blob", "blob:https://images.example/a"],
    ["no URL", "images.example/a.png"],
    ["a path", "/etc/passwd"],
    ["nothing", ""],
  ])("%s", async (_name, url) => {
    await expect(fetchOf(url, ["images.example"])).rejects.toMatchObject({
      status: 422,
      code: "IMAGE_URL_REFUSED",
    });
  });

  // They are resolved, so they are allowed.
  test.each([
    ["example.com:443", "https://example.com/a.png"],
    ["example.com:80", "http://example.com/a.png"],
    ["example.com", "https://example.com:8443/a.png"],
    ["bücher.example", "https://bücher.example/a.png"],
    ["BÜCHER.example:8443", "https://xn--bcher-kva.example:8443/a.png"],
  ])("not so with %s in the list: %s", async (host, url) => {
    await expect(fetchOf(url, [host])).rejects.toMatchObject({
      message: expect.stringContaining("a name was resolved"),
    });
  });

  test.each([
    ["example.com:443", "http://example.com/a.png"],
    ["example.com:443", "https://example.com:8443/a.png"],
    ["example.com:8443", "https://example.com/a.png"],
    ["not a host", "https://example.com/a.png"],
    ["::1", "http://[::1]/a.png"],
  ])("with %s in the list: %s", async (host, url) => {
    await expect(fetchOf(url, [host])).rejects.toMatchObject({
      message: expect.stringContaining("fetches no images from"),
    });
  });

  test("everything, where no host is listed", async () => {
    await expect(fetchOf("https://images.example/a.png", [])).rejects.toMatchObject({
      code: "IMAGE_URL_REFUSED",
      message: expect.stringContaining("data URL"),
    });
  });
});

describe("names", () => {
  const running: Server[] = [];
  afterEach(() => {
    for (const server of running.splice(0)) {
      server.closeAllConnections();
      server.close();
    }
  });

  /** A server on an address of the loopback network, which stands for a public one. */
  async function serve(answer: RequestListener, host = "127.0.0.1", port = 0): Promise<number> {
    const server = createServer(answer);
    running.push(server);
    await new Promise<void>((resolve) => server.listen(port, host, resolve));
    return (server.address() as AddressInfo).port;
  }

  /** A resolver with an answer for each time it is asked; the last one stays. */
  function resolver(...answers: string[][]) {
    const asked: string[] = [];
    const lookup = ((name: string, _options: unknown, done: Done) => {
      const addresses = answers[Math.min(asked.length, answers.length - 1)]!;
      asked.push(name);
      done(
        null,
        addresses.map((address) => ({ address, family: address.includes(":") ? 6 : 4 })),
      );
    }) as unknown as typeof resolveName;
    return { lookup, asked };
  }
  type Done = (error: null, addresses: LookupAddress[]) => void;

  const image = Buffer.from("the bytes of an image");
  const sends: RequestListener = (_request, response) => response.end(image);
  const fetchFrom = (port: number, options: Partial<RemoteImageOptions>, path = "/a.png") =>
    fetchRemoteImage(`http://images.example:${port}${path}`, {
      ...LIMITS,
      hosts: ["images.example"],
      allowAddress: (address) => address === "127.0.0.1",
      ...resolver(["127.0.0.1"]),
      ...options,
    });

  test("an image comes from a listed host", async () => {
    const seen: (string | undefined)[] = [];
    const port = await serve((request, response) => {
      seen.push(request.headers.host, request.url, request.headers.authorization);
      response.end(image);
    });
    expect(await fetchFrom(port, {}, "/a.png?size=1")).toEqual(image);
    expect(seen).toEqual([`images.example:${port}`, "/a.png?size=1", undefined]);
  });

  test("a host may be listed with its port", async () => {
    const port = await serve(sends);
    expect(await fetchFrom(port, { hosts: [`images.example:${port}`] })).toEqual(image);
    expect(await fetchFrom(port, { hosts: ["Images.Example"] })).toEqual(image);
    await expect(fetchFrom(port, { hosts: [`images.example:${port + 1}`] })).rejects.toMatchObject({
      code: "IMAGE_URL_REFUSED",
    });
  });

  test("a name of a private address is refused, also beside a public one", async () => {
    let hits = 0;
    const port = await serve((request, response) => {
      hits++;
      sends(request, response);
    });
    for (const answer of [["10.0.0.1"], ["::1"], ["127.0.0.1", "10.0.0.1"]]) {
      await expect(fetchFrom(port, { ...resolver(answer) })).rejects.toMatchObject({
        status: 422,
        code: "IMAGE_URL_REFUSED",
      });
    }
    // The system's own resolver and the real rule.
    await expect(
      fetchRemoteImage(`http://localhost:${port}/a.png`, { ...LIMITS, hosts: ["localhost"] }),
    ).rejects.toMatchObject({ code: "IMAGE_URL_REFUSED" });
    expect(hits).toBe(0);
  });

  test("a name that changes its meaning is connected to where it was checked", async () => {
    const port = await serve(sends);
    const inside: string[] = [];
    await serve(
      (request, response) => {
        inside.push(request.url!);
        response.end("secret");
      },
      "127.0.0.2",
      port,
    );
    const changing = resolver(["127.0.0.1"], ["127.0.0.2"]);
    expect(await fetchFrom(port, changing)).toEqual(image);
    // It was asked once: nothing looked again between the check and the connection.
    expect(changing.asked).toEqual(["images.example"]);
    // The next request checks again, and is not given the connection of the first.
    await expect(fetchFrom(port, changing)).rejects.toMatchObject({ code: "IMAGE_URL_REFUSED" });
    expect(changing.asked).toHaveLength(2);
    expect(inside).toEqual([]);
  });

  test.each([301, 302, 303, 307, 308])("a redirect with %d is not followed", async (status) => {
    const paths: string[] = [];
    const port = await serve((request, response) => {
      paths.push(request.url!);
      response.writeHead(status, { location: "/inside" }).end();
    });
    await expect(fetchFrom(port, {})).rejects.toMatchObject({
      status: 422,
      code: "IMAGE_URL_REFUSED",
    });
    expect(paths).toEqual(["/a.png"]);
  });

  test.each<[string, RequestListener, object]>([
    [
      "more bytes than allowed, announced",
      (_request, response) => response.end(Buffer.alloc(1001)),
      { status: 413, code: "IMAGE_TOO_LARGE" },
    ],
    [
      "more bytes than allowed, in chunks without an end",
      (_request, response) => {
        const more = () => {
          while (!response.destroyed && response.write(Buffer.alloc(600)));
        };
        response.on("drain", more);
        more();
      },
      { status: 413, code: "IMAGE_TOO_LARGE" },
    ],
    [
      "an error",
      (_request, response) => response.writeHead(500).end("secret"),
      { status: 422, code: "IMAGE_URL_FAILED", message: expect.not.stringContaining("secret") },
    ],
    [
      "an end in the middle",
      (_request, response) => {
        response.writeHead(200, { "content-length": "100" });
        response.write("abc", () => response.destroy());
      },
      { status: 422, code: "IMAGE_URL_FAILED" },
    ],
    [
      "no HTTP",
      (request) => request.socket.end("hello\r\n\r\n"),
      { status: 422, code: "IMAGE_URL_FAILED" },
    ],
  ])("a host that sends %s", async (_name, answer, expected) => {
    await expect(fetchFrom(await serve(answer), {})).rejects.toMatchObject(expected);
  });

  test("a host that does not come to an end is given up", async () => {
    const port = await serve((_request, response) => {
      response.writeHead(200);
      response.write("abc");
    });
    await expect(fetchFrom(port, { timeout: 50 })).rejects.toMatchObject({
      status: 422,
      code: "IMAGE_URL_FAILED",
      message: expect.stringContaining("50 ms"),
    });
  });

  test("a name that has no address, and a port that nothing listens on", async () => {
    const port = await serve(sends);
    const unknown = ((_name: string, _options: unknown, done: (error: Error) => void) =>
      done(Object.assign(new Error("not found"), { code: "ENOTFOUND" }))) as never;
    const nothing = { status: 422, code: "IMAGE_URL_FAILED" };
    await expect(fetchFrom(port, { lookup: unknown })).rejects.toMatchObject(nothing);
    await expect(fetchFrom(port, { ...resolver([]) })).rejects.toMatchObject({ status: 422 });
    await new Promise((resolve) => running.pop()!.close(resolve));
    await expect(fetchFrom(port, {})).rejects.toMatchObject(nothing);
  });

  test("a client that goes away ends it", async () => {
    const controller = new AbortController();
    const port = await serve(() => controller.abort(new Error("gone")));
    await expect(fetchFrom(port, { signal: controller.signal })).rejects.toThrow("gone");
  });
});
