// A route of fastify that draws, and sends the picture as it grows: an event for each eighth of it.
//   PORT=8080 node examples/fastify-stream.mjs
//   curl -N "http://127.0.0.1:8080/draw?prompt=a+red+circle"
import { Readable } from "node:stream";
import fastify from "fastify";
import { UniFluid } from "unifluid";

const model = await UniFluid.load("shapes-64", { maxQueue: 32 });
const app = fastify();

// A preview waits for a place as every request does: one that finds none is left out, and the drawing goes on.
const leftOut = (error) => {
  if (error.code === "QUEUE_FULL") return undefined;
  throw error;
};

app.get("/draw", (request, reply) => {
  const gone = new AbortController();
  // A client that goes away frees its place in the engine.
  reply.raw.on("close", () => gone.abort());
  async function* events() {
    const { prompt = "a red circle" } = request.query;
    for await (const step of model.generateStream(prompt, { signal: gone.signal })) {
      if (step.done % (step.total / 8) !== 0) continue;
      const preview = await step.preview().catch(leftOut);
      if (!preview) continue;
      const picture = await preview.toBuffer("webp");
      const data = JSON.stringify({ done: step.done, webp: picture.toString("base64") });
      yield `data: ${data}\n\n`;
    }
  }
  return reply.type("text/event-stream").send(Readable.from(events()));
});

// What was asked for cannot be drawn, or not now: the code says which. It is known before anything is sent.
const STATUS = {
  INVALID_OPTION: 422,
  PROMPT_TOO_LONG: 422,
  QUEUE_FULL: 429,
  INSUFFICIENT_MEMORY: 503,
  DISPOSED: 503,
};
app.setErrorHandler((error, _request, reply) => {
  const status = STATUS[error.code] ?? error.statusCode ?? 500;
  if (status >= 500) console.error(error);
  const { code, message } = status === 500 ? { code: "INTERNAL", message: "it failed" } : error;
  return reply.code(status).type("application/json").send({ code, message });
});

app.addHook("onClose", () => model.dispose());
process.once("SIGTERM", () => app.close());
process.once("SIGINT", () => app.close());
const address = await app.listen({ port: Number(process.env.PORT ?? 0) });
console.log(address);
