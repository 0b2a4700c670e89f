/**
 * What requests share with their connection: its end, and a client that does not read. With pipelining a connection has
 * several, which are answered in their order; Node looks after the first of them alone.
 */

import type { ServerResponse } from "node:http";
import { Socket } from "node:net";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { isStream } from "./context.js";

/** A request that is not over. */
interface Turn {
  raw: ServerResponse;
  /** Its answer is made, and goes out as the client reads. */
  sending: boolean;
}

/**
 * Cuts off clients that do not read their answers, which would hold memory and connections for ever; of streams they
 * watch over themselves, since they pause between their events. And tells requests that wait for their turn when their
 * connection ends, as Node tells the first.
 */
export function watchConnections(app: FastifyInstance, stallMilliseconds: number): void {
  const lines = new WeakMap<Socket, Turn[]>();
  const turns = new WeakMap<FastifyRequest, Turn>();
  // A connection has one timer: only while the first answer is being sent can the client be late.
  const watch = (socket: Socket, [first]: readonly Turn[]) => {
    // After the last one Node's own limit for idle connections holds.
    if (first) socket.setTimeout(first.sending ? stallMilliseconds : 0);
  };
  const lineOf = (socket: Socket): Turn[] => {
    const known = lines.get(socket);
    if (known) return known;
    const line: Turn[] = [];
    lines.set(socket, line);
    socket.once("close", () => {
      for (const { raw } of [...line]) if (raw.socket === null) endUnsent(raw);
    });
    return line;
  };
  app.addHook("onRequest", async (request, { raw }) => {
    const { socket } = request.raw;
    // fastify's inject has no socket to watch.
    if (!(socket instanceof Socket)) return;
    const line = lineOf(socket);
    const turn = { raw, sending: false };
    line.push(turn);
    turns.set(request, turn);
    raw.once("close", () => {
      line.splice(line.indexOf(turn), 1);
      watch(socket, line);
    });
  });
  app.addHook("onSend", async (request, _reply, payload) => {
    const turn = turns.get(request);
    if (!turn || isStream(payload)) return;
    turn.sending = true;
    const { socket } = request.raw;
    watch(socket, lineOf(socket));
  });
}

/** As Node does with an answer whose connection ends. */
function endUnsent(raw: ServerResponse): void {
  if (raw.destroyed || raw.writableFinished) return;
  raw.destroyed = true;
  raw.emit("close");
}
