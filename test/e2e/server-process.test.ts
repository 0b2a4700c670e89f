/** `unifluid serve` as it is run: its process, signals, keys and log. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { post } from "../support/server";

const root = join(__dirname, "../..");
const main = join(root, "dist/cli/main.js");
const photo = readFileSync(join(root, "test/fixtures/shapes-64/expected/caption0.png"));

let folder: string;
const children: ChildProcess[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "unifluid-serve-"));
});
afterEach(async () => {
  for (const child of children.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill("SIGKILL");
    await once(child, "close");
  }
  rmSync(folder, { recursive: true, force: true });
});

interface Service {
  child: ChildProcess;
  url: string;
  /** All that was written so far. */
  out(): string;
  err(): string;
  /** The exit code, once the process has ended. */
  ended: Promise<number | null>;
}

/** Starts `unifluid serve` on a free port; `url` is empty where it ended instead. */
async function serve(
  args: string[] = [],
  env: Record<string, string> = {},
  started: (child: ChildProcess) => void = () => {},
): Promise<Service> {
  const { UNIFLUID_API_KEYS: _, ...inherited } = process.env;
  const child = spawn(process.execPath, [main, "serve", "--port", "0", ...args], {
    cwd: folder,
    env: { ...inherited, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.push(child);
  started(child);
  const text = { out: "", err: "" };
  const ended = once(child, "close").then(([code]) => code as number | null);
  const url = await new Promise<string>((resolve) => {
    child.stdout.on("data", (chunk) => {
      text.out += chunk;
    });
    child.stderr.on("data", (chunk) => {
      text.err += chunk;
      const [, found] = / at (http:\/\/\S+)\/\n/.exec(text.err) ?? [];
      if (found) resolve(found);
    });
    void ended.then(() => resolve(""));
  });
  return { child, url, ended, out: () => text.out, err: () => text.err };
}

/** Asks again until it holds; jest's own limit ends a wait that is in vain. */
async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 20));
}

const generations = (service: Service) => `${service.url}/v1/images/generations`;
const running = async ({ url }: Service, headers = {}): Promise<number> => {
  const text = await (await fetch(`${url}/metrics`, { headers })).text();
  return Number(/^unifluid_engine_running_requests (\d+)$/m.exec(text)![1]);
};
const ready = async ({ url }: Service) => (await fetch(`${url}/ready`)).status;
/** Makes `unifluid serve` tell when it loads its model, and wait a moment. */
const SLOW_LOAD = `
const { UniFluid } = require(${JSON.stringify(join(root, "dist/model.js"))});
const { load } = UniFluid;
UniFluid.load = async (...args) => {
  process.stderr.write("loading\\n");
  await new Promise((resolve) => setTimeout(resolve, 1000));
  return load.apply(UniFluid, args);
};
`;
/** Enough to be still under way when the next thing happens. */
const LONG = { prompt: "a red circle", seed: 3, steps: 1000, n: 4 };

describe("the end", () => {
  test("SIGTERM lets what runs finish, and refuses what comes", async () => {
    const service = await serve(["--drain-timeout", "600"]);
    expect(await ready(service)).toBe(200);
    const under = post(generations(service), { ...LONG, steps: 300 });
    await until(async () => (await running(service)) > 0);
    service.child.kill("SIGTERM");
    await until(async () => (await ready(service)) === 503);
    const late = await post(generations(service), { prompt: "a", steps: 1 });
    expect([late.status, late.body.error.code]).toEqual([503, "SHUTTING_DOWN"]);
    expect(late.headers.get("connection")).toBe("close");
    expect(Number(late.headers.get("retry-after"))).toBeGreaterThan(0);
    expect((await fetch(`${service.url}/health`)).status).toBe(200);
    const answer = await under;
    expect(answer.status).toBe(200);
    expect(answer.body.data).toHaveLength(4);
    expect(await service.ended).toBe(0);
    await expect(fetch(`${service.url}/health`)).rejects.toThrow();
  });

  test("what runs longer than --drain-timeout is given up, and told so", async () => {
    const service = await serve(["--drain-timeout", "1"]);
    const under = post(generations(service), LONG);
    const body = { ...LONG, n: 1, stream: true, partial_images: 64 };
    const stream = await fetch(generations(service), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    await until(async () => (await running(service)) > 1);
    service.child.kill("SIGTERM");
    const answer = await under;
    expect([answer.status, answer.body.error.code]).toEqual([503, "SHUTTING_DOWN"]);
    const events = await stream.text();
    expect(events.trimEnd().split("\n\n").at(-1)).toMatch(/^event: error\ndata: .*SHUTTING_DOWN/);
    expect(await service.ended).toBe(0);
  });

  test("a second signal ends it at once", async () => {
    const service = await serve(["--drain-timeout", "600"]);
    const under = post(generations(service), LONG).catch(() => "cut off");
    await until(async () => (await running(service)) > 0);
    service.child.kill("SIGTERM");
    await until(async () => (await ready(service)) === 503);
    service.child.kill("SIGTERM");
    expect(await service.ended).toBe(143);
    expect(await under).toBe("cut off");
  });

  test("Ctrl-C ends an idle one, with connections that are kept open", async () => {
    const service = await serve();
    expect(await ready(service)).toBe(200);
    service.child.kill("SIGINT");
    expect(await service.ended).toBe(0);
  });
});

describe("keys", () => {
  const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
  const status = async (service: Service, key: string) =>
    (await fetch(`${service.url}/v1/models`, { headers: bearer(key) })).status;

  test("come of a file that SIGHUP reads again; a file without keys changes nothing", async () => {
    const file = join(folder, "keys");
    writeFileSync(file, "# of the team\nfirst-key\n\nsecond-key\n");
    const service = await serve(["--api-keys", file]);
    expect(await status(service, "first-key")).toBe(200);
    expect(await status(service, "second-key")).toBe(200);
    expect(await status(service, "third-key")).toBe(401);

    writeFileSync(file, "third-key\n");
    service.child.kill("SIGHUP");
    await until(async () => (await status(service, "third-key")) === 200);
    expect(await status(service, "first-key")).toBe(401);

    for (const [i, text] of ["# nothing\n", "fourth key\n"].entries()) {
      writeFileSync(file, text);
      service.child.kill("SIGHUP");
      await until(() => service.out().split("the old keys stay").length === i + 2);
    }
    expect(await status(service, "third-key")).toBe(200);
    expect(await status(service, "")).toBe(401);
    for (const key of ["first-key", "second-key", "third-key", "fourth key"]) {
      expect(service.out() + service.err()).not.toContain(key);
    }
  });

  test("are read again, too, when SIGHUP comes before the server is there, and by its end", async () => {
    const file = join(folder, "keys");
    writeFileSync(file, "first-key\n");
    // In the midst of loading, which it is made to wait in.
    writeFileSync(join(folder, "slow.cjs"), SLOW_LOAD);
    const service = await serve(
      ["--api-keys", file, "--drain-timeout", "600"],
      { NODE_OPTIONS: `--require ${join(folder, "slow.cjs")}` },
      (child) =>
        child.stderr!.on("data", (chunk) => {
          if (!String(chunk).includes("loading")) return;
          writeFileSync(file, "second-key\n");
          child.kill("SIGHUP");
        }),
    );
    await until(async () => (await status(service, "second-key")) === 200);
    expect(await status(service, "first-key")).toBe(401);
    const under = post(generations(service), { ...LONG, n: 1, steps: 300 }, bearer("second-key"));
    await until(async () => (await running(service, bearer("second-key"))) > 0);
    service.child.kill("SIGTERM");
    await until(async () => (await ready(service)) === 503);
    service.child.kill("SIGHUP");
    expect((await under).status).toBe(200);
    expect(await service.ended).toBe(0);
  });

  test("of the environment stay at SIGHUP", async () => {
    const service = await serve([], { UNIFLUID_API_KEYS: "first-key" });
    service.child.kill("SIGHUP");
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(await status(service, "first-key")).toBe(200);
  });

  test("come of the environment", async () => {
    const service = await serve([], { UNIFLUID_API_KEYS: "first-key, second-key" });
    expect(await status(service, "second-key")).toBe(200);
    expect(await status(service, "other")).toBe(401);
  });

  test("are asked for where others can reach it", async () => {
    const warning = "set keys with --api-keys";
    expect((await serve()).err()).not.toContain(warning);
    // Loopback in a notation that is not taken for it: nothing is opened, and the warning comes.
    const host = ["--host", "::ffff:127.0.0.1"];
    const open = await serve(host);
    await until(() => open.err().includes(warning));
    const closed = await serve(host, { UNIFLUID_API_KEYS: "first-key" });
    expect(await status(closed, "first-key")).toBe(200);
    expect(closed.err()).not.toContain(warning);
  });
});

describe("what cannot be started", () => {
  test.each<[string, string[], number, RegExp]>([
    ["a port out of range", ["--port", "65536"], 2, /USAGE: .*from 0 to 65535/],
    ["a queue that is no number", ["--max-queue", "many"], 2, /USAGE: .*--max-queue/],
    ["no pixels at all", ["--max-pixels", "0"], 2, /USAGE: .*--max-pixels/],
    ["an unknown level", ["--log-level", "loud"], 2, /USAGE: .*--log-level/],
    ["an unknown option", ["--tls"], 2, /USAGE: .*--tls/],
    ["keys that are not there", ["--api-keys", "nothing"], 2, /USAGE: cannot read the keys/],
    [
      "an address of nobody here",
      ["--host", "192.0.2.1"],
      2,
      /USAGE: cannot listen on 192\.0\.2\.1/,
    ],
    ["a model that is not there", ["--model", "nothing"], 3, /CHECKPOINT_NOT_FOUND/],
  ])("%s", async (_name, args, code, message) => {
    const service = await serve(args);
    expect(await service.ended).toBe(code);
    expect(service.err()).toMatch(message);
    expect(service.out()).toBe("");
  });

  test("a file without keys", async () => {
    writeFileSync(join(folder, "keys"), "# none yet\n");
    const service = await serve(["--api-keys", "keys"]);
    expect(await service.ended).toBe(2);
    expect(service.err()).toContain("expected keys, one a line");
  });

  test.each(["", " , #none"])("%j as keys of the environment", async (text) => {
    const service = await serve([], { UNIFLUID_API_KEYS: text });
    expect(await service.ended).toBe(2);
    expect(service.err()).toContain("USAGE: expected keys in UNIFLUID_API_KEYS");
  });

  test("a port that is taken", async () => {
    const other = createServer();
    await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
    try {
      const { port } = other.address() as AddressInfo;
      const service = await serve(["--port", String(port)]);
      expect(await service.ended).toBe(2);
      expect(service.err()).toContain(`cannot listen on 127.0.0.1:${port}`);
    } finally {
      await new Promise((resolve) => other.close(resolve));
    }
  });
});

describe("the log", () => {
  const lines = (service: Service) =>
    service
      .out()
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);

  async function ask(args: string[]): Promise<Service> {
    const service = await serve(args, { UNIFLUID_API_KEYS: "sesame-key" });
    const headers = { authorization: "Bearer sesame-key" };
    await post(generations(service), { prompt: "a secret wish", steps: 1 }, headers);
    const url = `data:image/png;base64,${photo.toString("base64")}`;
    const content = [
      { type: "text", text: "a secret question" },
      { type: "image_url", image_url: { url } },
    ];
    const messages = [{ role: "user", content }];
    await post(`${service.url}/v1/chat/completions`, { messages }, headers);
    await post(generations(service), { prompt: "a secret wish", steps: -1 }, headers);
    service.child.kill("SIGTERM");
    expect(await service.ended).toBe(0);
    return service;
  }

  test("has a line of JSON for each request, without prompts, images and keys", async () => {
    const service = await ask([]);
    const completed = lines(service).filter(({ msg }) => msg === "request completed");
    expect(completed).toHaveLength(3);
    expect(new Set(completed.map(({ reqId }) => reqId)).size).toBe(3);
    const all = service.out() + service.err();
    for (const hidden of ["secret", "sesame", photo.toString("base64").slice(0, 40)]) {
      expect(all).not.toContain(hidden);
    }
  });

  test("has prompts where that is asked for", async () => {
    const service = await ask(["--log-prompts"]);
    const prompts = lines(service).flatMap(({ prompt }) => (prompt === undefined ? [] : [prompt]));
    expect(prompts).toEqual(["a secret wish", "a secret question"]);
    expect(service.out()).not.toContain("sesame");
  });

  test("can be silent", async () => {
    expect((await ask(["--log-level", "silent"])).out()).toBe("");
  });
});

test("the limits and names that are asked for hold", async () => {
  const service = await serve([
    ...[
      "--max-sequences",
      "1",
      "--max-queue",
      "0",
      "--max-images",
      "1",
      "--max-prompt-length",
      "5",
    ],
    ...["--max-pixels", "100", "--max-steps", "3", "--model-name", "shapes", "--no-page"],
  ]);
  const ask = async (body: object) => {
    const { status, body: answer } = await post(generations(service), body);
    return [status, answer.error?.code];
  };
  expect(await ask({ prompt: "a", steps: 1, model: "shapes" })).toEqual([200, undefined]);
  expect(await ask({ prompt: "a", steps: 1, model: "shapes-64" })).toEqual([
    404,
    "MODEL_NOT_FOUND",
  ]);
  expect(await ask({ prompt: "a", steps: 4 })).toEqual([422, "INVALID_OPTION"]);
  // The model's own default is more than that.
  const drawn = async (body: object) =>
    (await post(generations(service), { prompt: "a", seed: 1, ...body })).body.data;
  expect(await drawn({})).toEqual(await drawn({ steps: 3 }));
  expect(await ask({ prompt: "a", n: 2 })).toEqual([422, "INVALID_OPTION"]);
  expect(await ask({ prompt: "a circle" })).toEqual([422, "PROMPT_TOO_LONG"]);
  expect((await fetch(`${service.url}/`)).status).toBe(404);
  const form = new FormData();
  form.set("prompt", "blue");
  form.set("image", new Blob([photo as Uint8Array<ArrayBuffer>]), "photo.png");
  const edited = await fetch(`${service.url}/v1/images/edits`, { method: "POST", body: form });
  expect(edited.status).toBe(413);
});

test("the times, origins and hosts of images that are asked for hold", async () => {
  const origins = ["https://a.example", "https://b.example"];
  const hosts = ["127.0.0.1", "10.0.0.1"];
  const service = await serve([
    ...["--request-timeout", "1"],
    ...origins.flatMap((origin) => ["--cors-origin", origin]),
    ...hosts.flatMap((host) => ["--allow-image-host", host]),
  ]);
  const { status, body } = await post(generations(service), LONG);
  expect([status, body.error.code]).toEqual([503, "TIMEOUT"]);

  const allowed = async (origin: string) => {
    const { headers } = await fetch(`${service.url}/health`, { headers: { origin } });
    return headers.get("access-control-allow-origin");
  };
  for (const origin of origins) expect(await allowed(origin)).toBe(origin);
  expect(await allowed("https://evil.example")).toBeNull();

  // Those that may be asked are refused for where they are, others for their names.
  const fetched = async (host: string) => {
    const content = [{ type: "image_url", image_url: { url: `http://${host}/a.png` } }];
    const messages = [{ role: "user", content }];
    return (await post(`${service.url}/v1/chat/completions`, { messages })).body.error.message;
  };
  for (const host of hosts) expect(await fetched(host)).toContain("not an address of the public");
  expect(await fetched("10.0.0.2")).toContain("fetches no images from 10.0.0.2");
});

test.each([
  [["--trust-proxy"], "1.1.1.1, 10.9.0.1", "2.2.2.2, 10.9.0.1", "1.1.1.1, 10.9.0.2"],
  [["--trust-proxy", "2"], "1.1.1.1, 10.9.0.1", "1.1.1.1, 10.9.0.2", "2.2.2.2, 10.9.0.1"],
  [
    ["--trust-proxy", "loopback, 10.9.0.0/16"],
    "1.1.1.1, 10.9.0.1, 10.9.0.2",
    "1.1.1.1",
    "2.2.2.2, 10.9.0.1",
  ],
  [[], "1.1.1.1", "2.2.2.2", undefined],
])("with %j the rate limit counts by address", async (proxies, one, same, other) => {
  const service = await serve(["--rate-limit", "2", ...proxies]);
  const ask = async (from: string) =>
    (await post(generations(service), { prompt: "" }, { "x-forwarded-for": from })).status;
  expect([await ask(one), await ask(same), await ask(one)]).toEqual([422, 422, 429]);
  if (other !== undefined) expect(await ask(other)).toBe(422);
});

// Less than it takes by default.
test("a client that does not read is cut off after --stall-timeout", async () => {
  const service = await serve(["--stall-timeout", "1"]);
  const { hostname, port } = new URL(service.url);
  const socket = connect(Number(port), hostname).pause();
  const cut = new Promise((resolve) => socket.once("error", resolve));
  // More answers than the sockets between hold; then a word now and then, until that fails.
  socket.write("GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2000));
  const words = setInterval(() => socket.write("GET"), 50);
  socket.once("close", () => clearInterval(words));
  expect(await cut).toMatchObject({ code: expect.stringMatching(/^(EPIPE|ECONNRESET)$/) });
}, 25_000);
