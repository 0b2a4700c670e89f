/** What the routes share. */

import type { FastifyReply, FastifyRequest } from "fastify";
import { isUniFluidError } from "../errors.js";
import { checkImage } from "../image-input.js";
import type { UniFluid } from "../model.js";
import type { NativeStats } from "../native.js";
import type { Task } from "../tasks.js";
import { HttpError } from "./http-error.js";
import type { ServerSettings } from "./options.js";
import { fetchRemoteImage } from "./remote-image.js";

export interface ServerContext {
  model: UniFluid;
  settings: ServerSettings;
  /** What requests may call the model. */
  name: string;
  /** Seconds since 1970, when the server was made. */
  created: number;
  /** Requests with a body that are not over: their answer is not sent, and its reader not gone. */
  open: number;
  /** Requests that compute now. */
  active: Set<AbortController>;
  /** New work is refused: the server is shutting down. */
  draining: boolean;
  /** The device has failed, and with it every request to come. */
  failed: boolean;
}

/** Remembers what probes are to tell. */
export function noteFault(context: ServerContext, error: unknown): void {
  if (isUniFluidError(error) && error.code === "DEVICE_ERROR") context.failed = true;
}

/** What the model tells of itself; nothing once its caller, who may at any time, has disposed of it. */
export function statsOf({ model }: ServerContext): NativeStats | undefined {
  try {
    return model.stats();
  } catch (error) {
    if (isUniFluidError(error) && error.code === "DISPOSED") return undefined;
    throw error;
  }
}

/** Milliseconds that another host has for sending an image. */
const REMOTE_TIMEOUT = 10_000;

/** Forms are read by a parser of their own, whatever the route: to one that takes JSON they are of a wrong type. */
export function refuseForm(request: FastifyRequest): void {
  if (!request.isMultipart()) return;
  throw new HttpError(
    415,
    "UNSUPPORTED_MEDIA_TYPE",
    "expected application/json but received a form",
  );
}

/** Throws unless the model can do it and is the one that was asked for. */
export function checkModel(context: ServerContext, asked: string | undefined, task: Task): void {
  if (asked !== undefined && asked !== context.name) {
    throw new HttpError(
      404,
      "MODEL_NOT_FOUND",
      `there is no model ${JSON.stringify(asked)}: this server has ${JSON.stringify(context.name)}`,
      "model",
    );
  }
  if (!context.model.tasks.includes(task)) {
    throw new HttpError(422, "UNSUPPORTED_TASK", `${context.name} cannot ${task}`, "model");
  }
}

export function checkPrompt(context: ServerContext, text: string, param: string): void {
  const { maxPromptLength } = context.settings;
  if (text.length <= maxPromptLength) return;
  throw new HttpError(
    422,
    "PROMPT_TOO_LONG",
    `expected at most ${maxPromptLength} characters but received ${text.length}`,
    param,
  );
}

/**
 * Runs the work of a request. Its signal aborts when the client goes away, when the request has taken too
 * long and when the server must end.
 */
export async function runRequest<T>(
  context: ServerContext,
  reply: FastifyReply,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  const { raw } = reply;
  const gone = () => {
    if (!raw.writableFinished) controller.abort(new HttpError(499, "CLIENT_GONE", "client left"));
  };
  const seconds = context.settings.requestTimeout;
  const timer = setTimeout(() => {
    controller.abort(new HttpError(503, "TIMEOUT", `the request took more than ${seconds} s`));
    // One that reads no more would hold its connection for ever.
    if (raw.headersSent) setTimeout(() => raw.destroy(), 1000).unref();
  }, seconds * 1000);
  context.active.add(controller);
  const release = () => {
    clearTimeout(timer);
    raw.off("close", gone);
    context.active.delete(controller);
  };
  raw.on("close", gone);
  try {
    const result = await work(controller.signal);
    // A stream goes on after this, unless its reader left before it began: "close" has been then.
    if (raw.writableFinished || raw.destroyed || !isStream(result)) release();
    else raw.once("close", release);
    return result;
  } catch (error) {
    release();
    throw error;
  }
}

export function isStream(value: unknown): boolean {
  return typeof (value as { pipe?: unknown } | null)?.pipe === "function";
}

/** Logs a prompt where the operator wants that. */
export function logPrompt(context: ServerContext, request: FastifyRequest, prompt: string): void {
  if (context.settings.logPrompts) request.log.info({ prompt }, "prompt");
}

/** How files of the formats that are taken begin. Others, SVG above all, never reach a decoder. */
const FORMATS: readonly [name: string, begin: string, after?: [number, string]][] = [
  ["PNG", "\u0089PNG\r\n"],
  ["JPEG", "\u00ff\u00d8\u00ff"],
  ["WebP", "RIFF", [8, "WEBP"]],
  ["GIF", "GIF8"],
];

/**
 * The bytes of an image file, of which the beginning was looked at: the model decodes it, when it has a place for that.
 * Throws `InvalidImageError`, or `HttpError` for other formats.
 */
async function checkUpload(
  context: ServerContext,
  bytes: Uint8Array,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const head = Buffer.from(bytes.subarray(0, 16)).toString("latin1");
  const known = FORMATS.some(
    ([, begin, [at, more] = [0, ""]]) => head.startsWith(begin) && head.startsWith(more, at),
  );
  if (bytes.length > 0 && !known) {
    const names = FORMATS.map(([name]) => name).join(", ");
    throw new HttpError(422, "IMAGE_UNDECODABLE", `expected an image of the formats ${names}`);
  }
  await checkImage(bytes, { maxPixels: context.settings.maxPixels, signal });
  return bytes;
}

/** An image as a request holds it: the bytes of a file, or its address at another host. */
export type SentImage = Uint8Array | string;

/**
 * What a URL in a request means. Data is decoded at once: requests may wait long, and the text is larger, and lies in
 * JavaScript's own, smaller memory.
 */
export const sentImage = (url: string): SentImage =>
  /^data:/i.test(url) ? dataUrlBytes(url) : url;

/** The bytes of an image that was sent, or that an allowed host sends. Throws as `checkUpload` does. */
export async function bytesOf(
  context: ServerContext,
  image: SentImage,
  signal: AbortSignal,
): Promise<Uint8Array> {
  if (typeof image !== "string") return checkUpload(context, image, signal);
  const { imageHosts, maxBodyBytes } = context.settings;
  const bytes = await fetchRemoteImage(image, {
    hosts: imageHosts,
    maxBytes: maxBodyBytes,
    timeout: REMOTE_TIMEOUT,
    signal,
  });
  return checkUpload(context, bytes, signal);
}

function dataUrlBytes(url: string): Buffer {
  const [, base64] = /^data:[^,]*;base64,([A-Za-z0-9+/_=\s-]*)$/i.exec(url) ?? [];
  if (base64 === undefined) {
    throw new HttpError(422, "IMAGE_UNDECODABLE", "expected base64 in the image's data URL");
  }
  return Buffer.from(base64, "base64");
}
