/** Errors as HTTP answers, in the shape that OpenAI's clients read. */

import type { Socket } from "node:net";
import type { FastifyError, FastifyReply, FastifyRequest } from "fastify";
import { ZodError } from "zod";
import { type ErrorCode, isUniFluidError } from "../errors.js";

/** Codes that only the server has, beside those of `lib/errors.ts`; docs/serve.md explains each. */
export const HTTP_CODES = [
  "INVALID_JSON",
  "INVALID_FORM",
  "BAD_REQUEST",
  "INVALID_API_KEY",
  "ORIGIN_REFUSED",
  "NOT_FOUND",
  "MODEL_NOT_FOUND",
  "BODY_TOO_LARGE",
  "TOO_MANY_PARTS",
  "UNSUPPORTED_MEDIA_TYPE",
  "IMAGE_URL_REFUSED",
  "IMAGE_URL_FAILED",
  "RATE_LIMITED",
  "SHUTTING_DOWN",
  "TIMEOUT",
  "CLIENT_GONE",
] as const;

export type HttpErrorCode = (typeof HTTP_CODES)[number] | ErrorCode;

/** An error with a status of its own. */
export class HttpError extends Error {
  constructor(
    readonly status: number,
    readonly code: HttpErrorCode,
    message: string,
    /** The field it is about. */
    readonly param: string | null = null,
  ) {
    super(message);
  }
}

export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string };
}

/** Seconds after which a client may try again what was refused for want of room. */
export const RETRY_AFTER = 1;

const STATUS: Readonly<Record<string, number>> = {
  IMAGE_TOO_LARGE: 413,
  QUEUE_FULL: 429,
  INSUFFICIENT_MEMORY: 503,
  DISPOSED: 503,
  CANCELLED: 503,
  NUMERICAL_ERROR: 500,
  DEVICE_ERROR: 500,
  INTERNAL: 500,
};

/** Errors whose text is about this program and its machine, and for its operator. */
const OF_THE_MACHINE = new Set(["DEVICE_ERROR", "INTERNAL"]);
const FAILED = "the server failed; its log says more";

/** Fastify's own errors about requests, by its codes; the rest keep their status. */
const FASTIFY: Readonly<Record<string, [number, HttpErrorCode]>> = {
  FST_ERR_CTP_BODY_TOO_LARGE: [413, "BODY_TOO_LARGE"],
  FST_ERR_CTP_INVALID_JSON_BODY: [400, "INVALID_JSON"],
  FST_ERR_CTP_EMPTY_JSON_BODY: [400, "INVALID_JSON"],
  FST_REQ_FILE_TOO_LARGE: [413, "BODY_TOO_LARGE"],
  FST_PARTS_LIMIT: [413, "TOO_MANY_PARTS"],
  FST_FILES_LIMIT: [413, "TOO_MANY_PARTS"],
  FST_FIELDS_LIMIT: [413, "TOO_MANY_PARTS"],
  FST_ERR_CTP_INVALID_MEDIA_TYPE: [415, "UNSUPPORTED_MEDIA_TYPE"],
  FST_INVALID_MULTIPART_CONTENT_TYPE: [415, "UNSUPPORTED_MEDIA_TYPE"],
};

function typeOf(status: number): string {
  if (status === 401) return "authentication_error";
  if (status === 429) return "rate_limit_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

/** Status and body for whatever was thrown; a defect's message stays in the log. */
export function toHttp(error: unknown): { status: number; body: ErrorBody } {
  const answer = (
    status: number,
    code: HttpErrorCode,
    message: string,
    param: string | null = null,
  ) => ({
    status,
    body: { error: { message, type: typeOf(status), param, code } },
  });
  if (error instanceof HttpError) {
    return answer(error.status, error.code, error.message, error.param);
  }
  if (error instanceof ZodError) {
    const [issue] = error.issues;
    const param = issue?.path.join(".") || null;
    return answer(422, "INVALID_OPTION", `${param ?? "the body"}: ${issue?.message}`, param);
  }
  if (isUniFluidError(error)) {
    const message = OF_THE_MACHINE.has(error.code) ? FAILED : error.message;
    return answer(STATUS[error.code] ?? 422, error.code, message);
  }
  const { code = "", statusCode = 500, message = "" } = error as Partial<FastifyError>;
  const known = FASTIFY[code];
  if (known) return answer(known[0], known[1], message);
  // A text that nests deeper than the parser can follow is the sender's mistake.
  if (error instanceof SyntaxError) return answer(400, "INVALID_JSON", message);
  if (statusCode === 429) return answer(429, "RATE_LIMITED", message);
  if (statusCode >= 400 && statusCode < 500) return answer(statusCode, "BAD_REQUEST", message);
  return answer(500, "INTERNAL", FAILED);
}

/** Answers what Node's parser refuses before there is a request. */
export function handleClientError(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) {
    socket.destroy(error);
    return;
  }
  const [status, reason] = PARSER[error.code ?? ""] ?? [400, "Bad Request"];
  const { body } = toHttp(new HttpError(status, "BAD_REQUEST", reason));
  const text = JSON.stringify(body);
  socket.end(
    `HTTP/1.1 ${status} ${reason}\r\nContent-Type: application/json; charset=utf-8\r\n` +
      `Content-Length: ${Buffer.byteLength(text)}\r\nConnection: close\r\n\r\n${text}`,
  );
  // One that does not close its half would keep the connection, and the place of its request, for ever.
  setTimeout(() => socket.destroy(), CLOSE_MILLISECONDS).unref();
}

/** What a client has to read the last answer on a connection. */
const CLOSE_MILLISECONDS = 1000;

const PARSER: Readonly<Record<string, [number, string]>> = {
  ERR_HTTP_REQUEST_TIMEOUT: [408, "Request Timeout"],
  HPE_HEADER_OVERFLOW: [431, "Request Header Fields Too Large"],
};

/** Fastify's error handler. */
export function handleError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const { status, body } = toHttp(error);
  if (status >= 500) request.log.error({ err: error }, "request failed");
  else request.log.info({ code: body.error.code }, "request refused");
  if (status === 429 || status === 503) {
    if (!reply.hasHeader("retry-after")) reply.header("retry-after", String(RETRY_AFTER));
  }
  if (status === 401) reply.header("www-authenticate", "Bearer");
  reply.code(status).type("application/json; charset=utf-8").send(body);
}
