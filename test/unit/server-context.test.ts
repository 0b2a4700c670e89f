/** What a route's work leaves behind when its client goes away. */

import { EventEmitter } from "node:events";
import { Readable } from "node:stream";
import type { FastifyReply } from "fastify";
import { runRequest, type ServerContext } from "../../lib/server/context";

test("a stream whose reader left before it began is over at once", async () => {
  const active = new Set<AbortController>();
  const context = { active, settings: { requestTimeout: 60 } } as unknown as ServerContext;
  const raw = Object.assign(new EventEmitter(), { destroyed: false, writableFinished: false });
  const reply = { raw } as unknown as FastifyReply;
  let aborted = false;
  await runRequest(context, reply, async (signal) => {
    raw.destroyed = true;
    raw.emit("close");
    aborted = signal.aborted;
    return Readable.from([]);
  });
  expect(aborted).toBe(true);
  expect(active.size).toBe(0);
  expect(raw.listenerCount("close")).toBe(0);
});
