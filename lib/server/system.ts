/** What a service needs besides: models, health, readiness. */

import type { FastifyInstance } from "fastify";
import type { ServerContext } from "./context.js";
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
  /** The process lives. */
  app.get("/health", async () => ({ status: "ok" }));
  /** Requests will be served. */
  app.get("/ready", async (_request, reply) => {
    if (!app.draining) return { status: "ready" };
    return reply.code(503).header("retry-after", "5").send({ status: "shutting down" });
  });
  const document = openApi(context);
  app.get("/openapi.json", async () => document);
}
