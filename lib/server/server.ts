/**
 * An HTTP server for a loaded model, usable with OpenAI's clients.
 *
 * @packageDocumentation
 */

import { basename } from "node:path";
import cors from "@fastify/cors";
import multipart from "@fastify/multipart";
import rateLimit from "@fastify/rate-limit";
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import type { UniFluid } from "../model.js";
import { invalidOption } from "../options.js";
import { ApiKeys } from "./api-keys.js";
import { registerChat } from "./chat.js";
import { watchConnections } from "./connections.js";
import { noteFault, type ServerContext } from "./context.js";
import { HttpError, handleClientError, handleError } from "./http-error.js";
import { registerImages } from "./images.js";
import { collectMetrics, registerMetrics } from "./metrics.js";
import { type ServerOptions, type ServerSettings, serverSettings } from "./options.js";
import { refuseOtherHosts, refuseOtherOrigins } from "./origins.js";
import { PAGE_PATHS, registerPage } from "./page.js";
import { requestIds, trustedProxies } from "./proxies.js";
import { registerSystem } from "./system.js";

export type { ServerOptions } from "./options.js";

/** A fastify server that serves a model. */
export interface UniFluidServer extends FastifyInstance {
  /** Whether new work is refused. */
  readonly draining: boolean;
  /** Replaces the API keys; a server that has keys must keep some. Throws `INVALID_OPTION`. */
  setApiKeys(keys: readonly string[]): void;
  /**
   * Shuts the server down: refuses new work with 503, gives running requests this many milliseconds to finish,
   * cancels the rest and closes. Does not dispose of the model.
   */
  drain(milliseconds: number): Promise<void>;
}

/** Paths that are served without a key. */
const OPEN = new Set([...PAGE_PATHS, "/health", "/ready", "/openapi.json"]);

/**
 * Creates a server, ready for `listen`. The model stays the caller's: it may also be used elsewhere, and must be
 * disposed of after `close`. The model's `maxQueue` limits the requests that wait.
 *
 * Throws `INVALID_OPTION`.
 */
export function createServer(model: UniFluid, options?: ServerOptions): UniFluidServer {
  // A forgotten `await` gives a promise of one.
  if (typeof (model as Partial<UniFluid> | undefined | null)?.info !== "object") {
    throw invalidOption("a loaded model (await UniFluid.load)", "model", model);
  }
  const settings = serverSettings(options);
  const trusted = trustedProxies(settings);
  const app = fastify({
    logger: settings.logger,
    // Where nobody is trusted, fastify need not look.
    trustProxy: settings.trustProxy ? trusted : false,
    bodyLimit: settings.maxBodyBytes,
    // Its own 503 has not the form of our errors; the hook below answers while the server closes.
    return503OnClosing: false,
    requestTimeout: settings.receiveTimeout * 1000,
    // Longer than proxies keep theirs, usually 60 s: one that sends a request just then would get none answered.
    keepAliveTimeout: 75_000,
    // Slower than this is no client but an attempt to hold connections.
    http: {
      headersTimeout: settings.receiveTimeout * 1000,
      maxHeaderSize: 16 * 1024,
      connectionsCheckingInterval: 1000,
    },
    clientErrorHandler: handleClientError,
    // Paths that lead to no route at all; hooks do not run for them.
    frameworkErrors: (error, request, reply) => {
      metrics.count(request, reply);
      protect(request, reply);
      handleError(error, request, reply);
    },
    requestIdHeader: false,
    genReqId: requestIds(trusted),
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 200 },
  });
  const context: ServerContext = {
    model,
    settings,
    name: settings.modelName ?? basename(model.info.directory),
    created: Math.floor(Date.now() / 1000),
    open: 0,
    active: new Set(),
    draining: false,
    failed: false,
  };
  const keys = new ApiKeys(settings.apiKeys);
  app.removeContentTypeParser("text/plain");
  app.setErrorHandler((error, request, reply) => {
    noteFault(context, error);
    handleError(error, request, reply);
  });
  app.setNotFoundHandler((request) => {
    throw new HttpError(404, "NOT_FOUND", `there is no ${request.method} ${request.url}`);
  });
  // Before whatever refuses: that is counted, and the pages that may call are to see why.
  const metrics = collectMetrics(app, context);
  app.addHook("onRequest", async (request, reply) => protect(request, reply));
  watchConnections(app, settings.stallTimeout * 1000);
  allowOrigins(app, settings);
  addGuards(app, keys, context);
  addDrain(app, context);
  app.decorate("setApiKeys", (list: readonly string[]) => keys.replace(list));
  app.register(multipart, {
    limits: {
      fileSize: settings.maxBodyBytes,
      files: 4,
      fields: 40,
      parts: 44,
      // A prompt of the longest allowed, in UTF-8.
      fieldSize: Math.max(64 * 1024, 3 * settings.maxPromptLength),
      fieldNameSize: 100,
      headerPairs: 50,
    },
  });
  app.register(async (scope) => {
    await limitRate(scope, keys, settings);
    registerMetrics(scope, metrics.registry);
    registerSystem(scope, context);
    registerImages(scope, context);
    registerChat(scope, context);
    if (settings.page) registerPage(scope);
  });
  // Decorated above, which fastify's types do not see.
  return app as FastifyInstance as UniFluidServer;
}

/** What every answer tells browsers. */
function protect(request: FastifyRequest, reply: FastifyReply): void {
  reply.headers({
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "x-request-id": request.id,
  });
}

function allowOrigins(app: FastifyInstance, { corsOrigins }: ServerSettings): void {
  if (corsOrigins.length === 0) return;
  app.register(cors, {
    origin: corsOrigins.includes("*") ? "*" : [...corsOrigins],
    methods: ["GET", "POST"],
    exposedHeaders: ["retry-after", "x-request-id"],
    maxAge: 600,
  });
}

function addGuards(app: FastifyInstance, keys: ApiKeys, context: ServerContext): void {
  const { settings } = context;
  const { maxRequests } = settings;
  app.addHook("onRequest", async (request, reply) => {
    if (keys.open) refuseOtherHosts(app, request, settings);
    const route = request.routeOptions.url;
    // A preflight bears no key, by its nature.
    if (request.method !== "OPTIONS" && !(route !== undefined && OPEN.has(route))) {
      keys.check(request);
    }
    if (request.method !== "POST") return;
    refuseOtherOrigins(request, settings);
    if (context.draining) {
      reply.headers({ connection: "close", "retry-after": "5" });
      throw new HttpError(503, "SHUTTING_DOWN", "the server is shutting down");
    }
    // Before the body is read: bodies and decoded images take memory, too.
    if (context.open >= maxRequests) {
      const message = `the server is full: ${context.open} requests in progress (limit ${maxRequests})`;
      throw new HttpError(429, "QUEUE_FULL", message);
    }
    context.open++;
    reply.raw.once("close", () => {
      context.open--;
    });
  });
}

async function limitRate(
  app: FastifyInstance,
  keys: ApiKeys,
  { rateLimit: max }: ServerSettings,
): Promise<void> {
  if (max === undefined) return;
  await app.register(rateLimit, {
    max,
    timeWindow: 60_000,
    keyGenerator: (request) => keys.senderOf(request),
    allowList: (request) => request.method !== "POST",
  });
}

function addDrain(app: FastifyInstance, context: ServerContext): void {
  /** Requests of any kind that are not over. */
  let under = 0;
  let last = Infinity;
  const wait = async (holds: () => boolean) => {
    while (holds() && Date.now() < last) await new Promise((resolve) => setTimeout(resolve, 20));
  };
  app.addHook("onRequest", async (_request, { raw }) => {
    under++;
    raw.once("close", () => {
      under--;
    });
  });
  // `close` then ends all connections, at every address: also those that are kept, or on which nothing was ever said.
  app.addHook("preClose", async () => {
    context.draining = true;
    await wait(() => under > 0);
  });
  app.decorate("draining", { getter: () => context.draining });
  app.decorate("drain", async (milliseconds: number) => {
    context.draining = true;
    last = Date.now() + milliseconds;
    // Until their answers are sent: a result that is ready may have a slow reader.
    await wait(() => context.open > 0);
    for (const controller of context.active) {
      controller.abort(new HttpError(503, "SHUTTING_DOWN", "the server is shutting down"));
    }
    // What was given up is answered within a moment; a client that does not read must not hold the end up.
    last = Date.now() + 1000;
    await app.close();
  });
}
