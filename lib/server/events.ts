/** Server-sent events. */

import { Readable } from "node:stream";
import type { FastifyReply } from "fastify";
import { noteFault, type ServerContext } from "./context.js";
import { toHttp } from "./http-error.js";

export interface ServerEvent {
  /** Absent: a message without a name, as chat completions have them. */
  event?: string;
  /** An object, sent as JSON, or a text as it is. */
  data: object | string;
}

const line = ({ event, data }: ServerEvent): string =>
  `${event ? `event: ${event}\n` : ""}data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;

/** Bytes handed over at a time: one that reads slowly is given so much time for each, not for an event of any size. */
const PIECE = 16 * 1024;

async function* pieces(
  first: IteratorResult<ServerEvent>,
  rest: AsyncIterator<ServerEvent>,
  { raw, log }: FastifyReply,
  context: ServerContext,
): AsyncGenerator<Buffer> {
  const { stallTimeout } = context.settings;
  let stall: NodeJS.Timeout | undefined;
  try {
    for (let next = first; !next.done; next = await rest.next()) {
      const bytes = Buffer.from(line(next.value));
      for (let at = 0; at < bytes.length; at += PIECE) {
        // It goes on when there is room for more, that is, when the client has read.
        stall = setTimeout(() => raw.destroy(), stallTimeout * 1000);
        yield bytes.subarray(at, at + PIECE);
        clearTimeout(stall);
      }
    }
  } catch (error) {
    noteFault(context, error);
    const { status, body } = toHttp(error);
    if (status >= 500) log.error({ err: error }, "request failed");
    // The status has been sent; what is left to say it with is an event.
    yield Buffer.from(line({ event: "error", data: body }));
  } finally {
    clearTimeout(stall);
    // What is still on its way is watched by the socket.
    // (`setTimeout` is missing on what fastify's inject has for a socket.)
    raw.socket?.setTimeout?.(stallTimeout * 1000);
    await rest.return?.();
  }
}

/**
 * Answers with events as they come. They are made as the client takes them; one that takes none for
 * `stallTimeout` seconds is cut off. What fails before the first one is thrown, and so gets a status of its own.
 */
export async function sendEvents(
  reply: FastifyReply,
  events: AsyncGenerator<ServerEvent>,
  context: ServerContext,
): Promise<Readable> {
  const first = await events.next();
  reply
    .header("content-type", "text/event-stream; charset=utf-8")
    .header("cache-control", "no-cache, no-transform")
    // nginx would collect the events.
    .header("x-accel-buffering", "no");
  return Readable.from(pieces(first, events, reply, context), { objectMode: false });
}
