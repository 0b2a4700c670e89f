/** Server-sent events: what is sent, and what becomes of readers that do not read. */

import { EventEmitter, once } from "node:events";
import type { FastifyReply } from "fastify";
import { DeviceError, QueueFullError } from "../../lib/errors";
import type { ServerContext } from "../../lib/server/context";
import { type ServerEvent, sendEvents } from "../../lib/server/events";

/** As much of a reply as `sendEvents` uses. */
class FakeReply {
  readonly headers: Record<string, string> = {};
  readonly log = { error: jest.fn() };
  readonly raw = Object.assign(new EventEmitter(), {
    destroy: () => this.raw.emit("destroyed"),
    socket: { setTimeout: jest.fn() },
  });

  header(name: string, value: string): this {
    this.headers[name] = value;
    return this;
  }
}

const send = (reply: FakeReply, events: AsyncGenerator<ServerEvent>, stallTimeout = 60) =>
  sendEvents(reply as unknown as FastifyReply, events, {
    settings: { stallTimeout },
  } as ServerContext);

async function textOf(stream: AsyncIterable<Buffer>): Promise<string> {
  let text = "";
  for await (const chunk of stream) text += chunk;
  return text;
}

test("events have names or none, and JSON or a text", async () => {
  async function* events(): AsyncGenerator<ServerEvent> {
    yield { event: "first", data: { a: "b\n" } };
    yield { data: "[DONE]" };
  }
  const reply = new FakeReply();
  const text = await textOf(await send(reply, events()));
  expect(text).toBe('event: first\ndata: {"a":"b\\n"}\n\ndata: [DONE]\n\n');
  expect(reply.headers["content-type"]).toMatch("text/event-stream");
  // The rest of the way is watched, too.
  expect(reply.raw.socket.setTimeout).toHaveBeenCalledWith(60_000);
});

test("what fails before the first event is thrown; later it is an event", async () => {
  async function* events(count: number): AsyncGenerator<ServerEvent> {
    for (let i = 0; i < count; i++) yield { data: { i } };
    throw new QueueFullError("full");
  }
  await expect(send(new FakeReply(), events(0))).rejects.toMatchObject({ code: "QUEUE_FULL" });
  const text = await textOf(await send(new FakeReply(), events(1)));
  expect(text).toMatch(
    /^data: {"i":0}\n\nevent: error\ndata: {"error":{.*"code":"QUEUE_FULL"}}\n\n$/,
  );
});

test("what fails of the server's own is logged, and the event tells nothing of it", async () => {
  const fault = new DeviceError("DEVICE_ERROR", "the GPU of this machine");
  async function* events(): AsyncGenerator<ServerEvent> {
    yield { data: "first" };
    throw fault;
  }
  const reply = new FakeReply();
  const text = await textOf(await send(reply, events()));
  expect(text).toContain('"code":"DEVICE_ERROR"');
  expect(text).not.toContain(fault.message);
  expect(reply.log.error).toHaveBeenCalledWith({ err: fault }, "request failed");
});

test("a reader that takes nothing is cut off, and what it asked for is ended", async () => {
  let left = false;
  async function* events(): AsyncGenerator<ServerEvent> {
    try {
      for (;;) yield { data: "x".repeat(100_000) };
    } finally {
      left = true;
    }
  }
  const reply = new FakeReply();
  const stream = await send(reply, events(), 0.02);
  const cutOff = once(reply.raw, "destroyed");
  stream.read(0);
  await cutOff;
  expect(left).toBe(false);
  // As fastify does when the connection is gone.
  stream.destroy();
  await once(stream, "close");
  expect(left).toBe(true);
});

test("a reader that takes a little at a time is not cut off, however large the event", async () => {
  const data = "ä".repeat(200_000);
  async function* events(): AsyncGenerator<ServerEvent> {
    yield { data };
  }
  const reply = new FakeReply();
  const cutOff = jest.fn();
  reply.raw.on("destroyed", cutOff);
  const stream = await send(reply, events(), 0.2);
  const taken: Buffer[] = [];
  while (!stream.readableEnded) {
    const chunk = stream.read(16 * 1024) ?? stream.read();
    if (chunk) taken.push(chunk);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  expect(cutOff).not.toHaveBeenCalled();
  expect(Buffer.concat(taken).toString()).toBe(`data: ${data}\n\n`);
});
