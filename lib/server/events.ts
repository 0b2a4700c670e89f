/** Server-sent events. */

import { Readable } from "node:stream";
import type { FastifyReply } from "fastify";
import { toHttp } from "./http-error.js";

export interface ServerEvent {
  /** Absent: a message without a name, as chat completions have them. */
  event?: string;
  /** An object, sent as JSON, or a text as it is. */
  data: object | string;
}

const line = ({ event, data }: ServerEvent): string =>
  `${event ? `event: ${event}\n` : ""}data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;

async function* texts(
  first: IteratorResult<ServerEvent>,
  rest: AsyncIterator<ServerEvent>,
): AsyncGenerator<string> {
  try {
    for (let next = first; !next.done; next = await rest.next()) yield line(next.value);
  } catch (error) {
    // The status has been sent; what is left to say it with is an event.
    yield line({ event: "error", data: toHttp(error).body });
  } finally {
    await rest.return?.();
  }
}

/**
 * Answers with events as they come. They are made as the client takes them. What fails before the first one
 * is thrown, and so gets a status of its own.
 */
export async function sendEvents(
  reply: FastifyReply,
  events: AsyncGenerator<ServerEvent>,
): Promise<Readable> {
  const first = await events.next();
  reply
    .header("content-type", "text/event-stream; charset=utf-8")
    .header("cache-control", "no-cache, no-transform")
    // nginx would collect the events.
    .header("x-accel-buffering", "no");
  return Readable.from(texts(first, events), { objectMode: false });
}
