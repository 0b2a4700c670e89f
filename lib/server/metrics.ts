/** GET /metrics for Prometheus. */

import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import type { NativeStats } from "../native.js";
import { type ServerContext, statsOf } from "./context.js";

const BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300];

/** The status of an answer that was not sent whole, as proxies log it. */
const NOT_SENT = 499;

/** What the engine tells: its name here, which kind of number it is, and what it means. */
const ENGINE: readonly [string, keyof NativeStats, "gauge" | "counter", string][] = [
  ["running_requests", "running", "gauge", "Requests that the engine works on."],
  ["waiting_requests", "waiting", "gauge", "Requests that wait for the engine."],
  ["sequence_bytes", "sequenceBytes", "gauge", "Memory of running sequences."],
  ["allocated_bytes", "allocatedBytes", "gauge", "Memory that the model allocated."],
  ["available_bytes", "availableBytes", "gauge", "Memory that the model may still allocate."],
  ["steps_total", "steps", "counter", "Steps of the engine."],
  ["rows_total", "rows", "counter", "Rows run through the decoder."],
  [
    "graphs_replayed_total",
    "graphsReplayed",
    "counter",
    "Lists of kernels that a GPU ran as CUDA graphs.",
  ],
  [
    "lists_launched_total",
    "listsLaunched",
    "counter",
    "Lists of kernels that a GPU ran launch by launch.",
  ],
  [
    "completed_requests_total",
    "completed",
    "counter",
    "Requests of the engine that gave a result.",
  ],
  ["failed_requests_total", "failed", "counter", "Requests of the engine that failed."],
  [
    "cancelled_requests_total",
    "cancelled",
    "counter",
    "Requests of the engine that were given up.",
  ],
  [
    "refused_requests_total",
    "refused",
    "counter",
    "Requests that the engine's full queue refused.",
  ],
];

/**
 * What is the process's own. It is measured once, however many servers there are: what watches for it is never let go
 * of by its library.
 */
let processRegistry: Registry | undefined;

function processMetrics(): Registry {
  if (!processRegistry) {
    processRegistry = new Registry();
    collectDefaultMetrics({ register: processRegistry });
  }
  return processRegistry;
}

export interface Metrics {
  registry: Registry;
  /** For requests that hooks do not see. */
  count(request: FastifyRequest, reply: FastifyReply): void;
}

/** Counts all that `app` answers, also at paths that lead to no route: a hook of a scope would not see those. */
export function collectMetrics(app: FastifyInstance, context: ServerContext): Metrics {
  const registry = new Registry();
  const labelNames = ["method", "route", "status"] as const;
  const requests = new Counter({
    name: "unifluid_http_requests_total",
    help: "HTTP requests, by the status of their answer; 499: not sent whole.",
    labelNames,
    registers: [registry],
  });
  const seconds = new Histogram({
    name: "unifluid_http_request_seconds",
    help: "Time from a request to the end of its answer.",
    labelNames,
    buckets: BUCKETS,
    registers: [registry],
  });
  new Gauge({
    name: "unifluid_http_active_requests",
    help: "Requests in progress, whatever they wait for.",
    registers: [registry],
    collect() {
      this.set(context.open);
    },
  });
  for (const [name, field, kind, help] of ENGINE) {
    const settings = { name: `unifluid_engine_${name}`, help, registers: [registry] };
    const value = () => statsOf(context)?.[field];
    if (kind === "gauge") {
      new Gauge({
        ...settings,
        collect() {
          const now = value();
          if (now === undefined) this.remove();
          else this.set(now);
        },
      });
    } else {
      new Counter({
        ...settings,
        collect() {
          const now = value();
          if (now === undefined) return this.remove();
          this.reset();
          this.inc(now);
        },
      });
    }
  }

  const count = (request: FastifyRequest, reply: FastifyReply) => {
    // Also where the client leaves or is cut off, of which fastify's onResponse is not told.
    reply.raw.once("close", () => {
      // The pattern, not the path: what clients make up must not become labels.
      const route = request.routeOptions.url ?? "unknown";
      const status = String(reply.raw.writableFinished ? reply.statusCode : NOT_SENT);
      const labels = { method: request.method, route, status };
      requests.inc(labels);
      seconds.observe(labels, reply.elapsedTime / 1000);
    });
  };
  app.addHook("onRequest", async (request, reply) => count(request, reply));
  return { registry: Registry.merge([processMetrics(), registry]), count };
}

export function registerMetrics(app: FastifyInstance, registry: Registry): void {
  app.get("/metrics", async (_request, reply) => {
    reply.type(registry.contentType);
    return registry.metrics();
  });
}
