// A route of fastify that draws, and sends the picture as it grows: an event for each eighth of it.
//   PORT=8080 node examples/fastify-stream.mjs
//   curl -N "http://127.0.0.1:8080/draw?prompt=a+red+circle"
import { Readable } from "node:stream";
import fastify from "fastify";
import { UniFluid } from "unifluid";

const model = await UniFluid.load("shapes-64", { maxQueue: 32 });
const app = fastify();

app.get("/draw", (request, reply) => {
  const gone = new AbortController();
  // A client that goes away frees its place in the engine.
  reply.raw.on("close", () => gone.abort());
  async function* events() {
    const { prompt = "a red circle" } = request.query;
    for await (const step of model.generateStream(prompt, { signal: gone.signal })) {
      if (step.done % (step.total / 8) !== 0) continue;
      const picture = await (await step.preview()).toBuffer("webp");
      const data = JSON.stringify({ done: step.done, webp: picture.toString("base64") });
      yield `data: ${data}\n\n`;
    }
  }
  return reply.type("text/event-stream").send(Readable.from(events()));
});

app.addHook("onClose", () => model.dispose());
process.once("SIGTERM", () => app.close());
process.once("SIGINT", () => app.close());
const address = await app.listen({ port: Number(process.env.PORT ?? 0) });
console.log(address);
