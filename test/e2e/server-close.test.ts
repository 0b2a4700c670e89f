/** The end of a server in a program: what runs is answered, and no connection keeps it, at any address. */

import dns from "node:dns";
import { once } from "node:events";
import { type AddressInfo, connect } from "node:net";
import { UniFluid } from "../../lib/index";
import { createServer } from "../../lib/server/server";
import { post, startServer } from "../support/server";

let model: UniFluid;
beforeAll(async () => {
  model = await UniFluid.load("shapes-64");
});
afterAll(() => model.dispose());

/** A connection on which nothing is ever said. */
async function silent(port: number, address: string) {
  const socket = connect(port, address);
  await once(socket, "connect");
  return { closed: once(socket.resume(), "close") };
}

test.each(["drain", "close"] as const)(
  "%s answers what runs, and ends what is silent",
  async (end) => {
    const { app, url, port } = await startServer(model);
    const { closed } = await silent(port, "127.0.0.1");
    const under = post(`${url}/v1/images/generations`, { prompt: "a", steps: 200 });
    while (model.stats().running === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    const ended = end === "drain" ? app.drain(600_000) : app.close();
    while (!app.draining) await new Promise((resolve) => setTimeout(resolve, 5));
    const late = await post(`${url}/v1/images/generations`, { prompt: "a", steps: 1 });
    expect([late.status, late.body.error.code]).toEqual([503, "SHUTTING_DOWN"]);
    expect((await under).status).toBe(200);
    await ended;
    await closed;
  },
);

test("a name of two addresses is given up at both", async () => {
  const { lookup } = dns;
  // As on a machine whose localhost is 127.0.0.1 and ::1.
  const both = ["127.0.0.1", "127.0.0.2"].map((address) => ({ address, family: 4 }));
  const spy = jest.spyOn(dns, "lookup").mockImplementation(((
    ...args: Parameters<typeof lookup>
  ) => {
    const [host, options, callback] = args as unknown as [string, dns.LookupOptions, Callback];
    if (host === "localhost" && options.all) process.nextTick(callback, null, both);
    else lookup(...args);
  }) as typeof lookup);
  type Callback = (error: null, addresses: typeof both) => void;
  try {
    const app = createServer(model);
    await app.listen({ host: "localhost", port: 0 });
    expect(app.addresses()).toHaveLength(2);
    const { port } = app.server.address() as AddressInfo;
    const connections = await Promise.all(both.map(({ address }) => silent(port, address)));
    await app.drain(0);
    await Promise.all(connections.map(({ closed }) => closed));
  } finally {
    spy.mockRestore();
  }
});
