/** A server on a free port of the loopback, for tests. */

import type { AddressInfo } from "node:net";
import type { UniFluid } from "../../lib/index";
import { createServer, type ServerOptions, type UniFluidServer } from "../../lib/server/server";

export interface RunningServer {
  app: UniFluidServer;
  url: string;
  port: number;
}

export async function startServer(
  model: UniFluid,
  options: ServerOptions = {},
): Promise<RunningServer> {
  const app = createServer(model, options);
  await app.listen({ host: "127.0.0.1", port: 0 });
  const { port } = app.server.address() as AddressInfo;
  return { app, port, url: `http://127.0.0.1:${port}` };
}

export interface Answer {
  status: number;
  headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: whatever the server sent; the tests compare it.
  body: any;
}

/** Posts JSON; the status, the headers and the body, parsed where it is JSON. */
export async function post(
  url: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  const text = await response.text();
  const isJson = response.headers.get("content-type")?.includes("json");
  return {
    status: response.status,
    headers: response.headers,
    body: isJson ? JSON.parse(text) : text,
  };
}

/** Waits until the engine holds nothing; fails after some seconds. */
export async function idle(model: UniFluid): Promise<void> {
  for (let i = 0; i < 1000; i++) {
    const { running, waiting, sequenceBytes } = model.stats();
    if (running + waiting === 0 && sequenceBytes === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`still busy: ${JSON.stringify(model.stats())}`);
}
