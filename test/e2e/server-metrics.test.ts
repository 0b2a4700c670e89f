/** GET /metrics, held against its table in docs/serve.md. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { UniFluid } from "../../lib/index";
import { idle, post, startServer } from "../support/server";

const page = readFileSync(join(__dirname, "../../docs/serve.md"), "utf8");
const [, table] = /^## Metrics\n\n((?:\|.*\n)+)/m.exec(page)!;

test("what the page names is measured, and counts what was asked", async () => {
  await using model = await UniFluid.load("shapes-64");
  const { app, url } = await startServer(model);
  try {
    const generations = `${url}/v1/images/generations`;
    expect((await post(generations, { prompt: "a star", steps: 1 })).status).toBe(200);
    expect((await post(generations, { prompt: "a star", steps: 0 })).status).toBe(422);
    expect((await fetch(`${url}/made/up`)).status).toBe(404);
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
