/** GET /metrics, held against its table in docs/serve.md. */

import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import { UniFluid } from "../../lib/index";
import { idle, post, startServer } from "../support/server";

const run = promisify(execFile);
const root = join(__dirname, "../..");
const page = readFileSync(join(root, "docs/serve.md"), "utf8");
const [, table] = /^## Metrics\n\n((?:\|.*\n)+)/m.exec(page)!;

test("what the page names is measured, and counts what was asked", async () => {
  await using model = await UniFluid.load("shapes-64");
  const { app, url } = await startServer(model);
  try {
    const generations = `${url}/v1/images/generations`;
    expect((await post(generations, { prompt: "a star", steps: 1 })).status).toBe(200);
    expect((await post(generations, { prompt: "a star", steps: 0 })).status).toBe(422);
    expect((await fetch(`${url}/made/up`)).status).toBe(404);
    expect((await fetch(`${url}/%zz`)).status).toBe(400);
    const text = await (await fetch(`${url}/metrics`)).text();

    const measured = [...text.matchAll(/^# TYPE (unifluid_\w+) /gm)].map(([, name]) => name);
    const named = [...table!.matchAll(/`(unifluid_\w+)`/g)].map(([, name]) => name);
    expect(measured.sort()).toEqual(named.sort());
    for (const prefix of ["process_", "nodejs_"]) {
      expect(table).toContain(`\`${prefix}…\``);
      expect(text).toContain(`\n${prefix}`);
    }

    const lines = text.split("\n");
    const requests = (method: string, route: string, status: number) =>
      `unifluid_http_requests_total{method="${method}",route="${route}",status="${status}"} 1`;
    expect(lines).toEqual(
      expect.arrayContaining([
        requests("POST", "/v1/images/generations", 200),
        requests("POST", "/v1/images/generations", 422),
        // What clients make up is no label.
        requests("GET", "unknown", 404),
        requests("GET", "unknown", 400),
        "unifluid_http_active_requests 0",
        "unifluid_engine_completed_requests_total 1",
        "unifluid_engine_failed_requests_total 0",
      ]),
    );
    expect(text).not.toContain("made/up");
  } finally {
    await app.close();
  }
});

test("clients that leave count, and those that are refused", async () => {
  await using model = await UniFluid.load("shapes-64");
  const { app, url } = await startServer(model, { apiKeys: ["key"] });
  try {
    const headers = { authorization: "Bearer key" };
    const generations = `${url}/v1/images/generations`;
    expect((await post(generations, { prompt: "a star" })).status).toBe(401);
    const gone = new AbortController();
    const body = JSON.stringify({ prompt: "a star", steps: 1000, n: 4 });
    const left = fetch(generations, {
      method: "POST",
      headers: { ...headers, "content-type": "application/json" },
      body,
      signal: gone.signal,
    });
    left.catch(() => {});
    while (model.stats().running === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    gone.abort();
    await expect(left).rejects.toThrow();
    await idle(model);
    const text = await (await fetch(`${url}/metrics`, { headers })).text();
    const lines = text.split("\n");
    for (const status of [401, 499]) {
      const labels = `{method="POST",route="/v1/images/generations",status="${status}"}`;
      expect(lines).toContain(`unifluid_http_requests_total${labels} 1`);
      expect(lines).toContain(`unifluid_http_request_seconds_count${labels} 1`);
    }
  } finally {
    await app.close();
  }
});

test("a request counts as active as long as it has a place among those of maxRequests", async () => {
  await using model = await UniFluid.load("shapes-64");
  const { app, url, port } = await startServer(model, { maxRequests: 1 });
  try {
    // Its body never comes.
    const socket = connect(port, "127.0.0.1");
    socket.write(
      "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n" +
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    );
    const active = async () => {
      const text = await (await fetch(`${url}/metrics`)).text();
      return Number(/^unifluid_http_active_requests (\d+)$/m.exec(text)![1]);
    };
    while ((await active()) !== 1) await new Promise((resolve) => setTimeout(resolve, 5));
    const full = await post(`${url}/v1/images/generations`, { prompt: "a" });
    expect([full.status, full.body.error.code]).toEqual([429, "QUEUE_FULL"]);
    socket.destroy();
    while ((await active()) !== 0) await new Promise((resolve) => setTimeout(resolve, 5));
  } finally {
    await app.close();
  }
});

test("of a model that was disposed of nothing is told, and the rest is", async () => {
  const model = await UniFluid.load("shapes-64");
  const { app, url } = await startServer(model);
  try {
    expect(await (await fetch(`${url}/metrics`)).text()).toMatch(/^unifluid_engine_/m);
    await model.dispose();
    const answer = await fetch(`${url}/metrics`);
    expect(answer.status).toBe(200);
    const text = await answer.text();
    expect(text).not.toMatch(/^unifluid_engine_/m);
    expect(text).toMatch(/^unifluid_http_active_requests 0$/m);
    expect(text).toMatch(/^process_/m);
  } finally {
    await app.close();
  }
});

test("a server that is closed keeps neither its model nor observers", async () => {
  // In a process of its own, whose collector can be called.
  const program = `
    const { UniFluid } = require(${JSON.stringify(join(root, "dist/index.js"))});
    const { createServer } = require(${JSON.stringify(join(root, "dist/server/server.js"))});
    const models = [];
    const cycle = async () => {
      const model = await UniFluid.load("shapes-64");
      models.push(new WeakRef(model));
      const app = createServer(model);
      await app.inject("/metrics");
      await app.drain(0);
      await model.dispose();
    };
    (async () => {
      for (let i = 0; i < 5; i++) await cycle();
      for (let i = 0; i < 10; i++) {
        gc();
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      console.log(models.filter((model) => model.deref()).length);
    })();`;
  const { stdout } = await run(process.execPath, ["--expose-gc", "--eval", program]);
  // The last one may still be on the stack.
  expect(Number(stdout)).toBeLessThanOrEqual(1);
});
