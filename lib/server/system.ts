/** What a service needs besides: models, health, readiness. */

import type { FastifyInstance, FastifyReply } from "fastify";
import { type ServerContext, statsOf } from "./context.js";
import { HttpError } from "./http-error.js";
import { openApi } from "./openapi.js";

export function registerSystem(app: FastifyInstance, context: ServerContext): void {
  const { name, created, model } = context;
  const { tasks, image, generation } = model.info;
  const description = {
    id: name,
    object: "model",
    created,
    owned_by: "unifluid",
    unifluid: { tasks, image: image ?? null, generation },
  };

  app.get("/v1/models", async () => ({ object: "list", data: [description] }));
  app.get<{ Params: { id: string } }>("/v1/models/:id", async ({ params }) => {
    if (params.id === name) return description;
    throw new HttpError(404, "MODEL_NOT_FOUND", `there is no model ${JSON.stringify(params.id)}`);
  });
  const unavailable = (reply: FastifyReply, status: string) =>
    reply.code(503).header("retry-after", "5").send({ status });
  const FAILED = "the device has failed";
  /** The process lives, and is of use: it must be started again once its device has failed. */
  app.get("/health", async (_request, reply) =>
    context.failed ? unavailable(reply, FAILED) : { status: "ok" },
  );
  /** Requests will be served. */
  app.get("/ready", async (_request, reply) => {
    if (context.failed) return unavailable(reply, FAILED);
    if (!statsOf(context)) return unavailable(reply, "the model was disposed");
    return context.draining ? unavailable(reply, "shutting down") : { status: "ready" };
  });
  const document = openApi(context);
  app.get("/openapi.json", async () => document);
}
