/** POST /v1/images/generations and /v1/images/edits, as OpenAI's clients speak them. */

import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { DrawOptions } from "../call-options.js";
import type { DrawingProgress } from "../drawing-stream.js";
import type { Image } from "../image.js";
import { parseSeed } from "../seed.js";
import {
  bytesOf,
  checkModel,
  checkPrompt,
  logPrompt,
  refuseForm,
  runRequest,
  type SentImage,
  type ServerContext,
  sentImage,
} from "./context.js";
import { type DrawingKind, drawingEvents, seedText } from "./drawing-events.js";
import { sendEvents } from "./events.js";
import { HttpError } from "./http-error.js";
import { type DrawingBody, editFields, generationBody } from "./schemas.js";

/** A kind of drawing: what it is called in events, and how it is drawn. */
interface Kind {
  event: DrawingKind;
  draw(count: number, options: DrawOptions): Promise<Image[]>;
  stream(options: DrawOptions): AsyncGenerator<DrawingProgress>;
}

export function registerImages(app: FastifyInstance, context: ServerContext): void {
  const { model } = context;

  app.post("/v1/images/generations", async (request, reply) => {
    refuseForm(request);
    const body = generationBody.parse(request.body);
    checkModel(context, body.model, "generate");
    const { prompt } = body;
    return answer(context, request, reply, body, async () => ({
      event: "image_generation",
      draw: (n, options) => model.generate(Array<string>(n).fill(prompt), options),
      stream: (options) => model.generateStream(prompt, options),
    }));
  });

  app.post("/v1/images/edits", async (request, reply) => {
    const { image, fields } = await readEdit(request, context.settings.maxBodyBytes);
    const body = editFields.parse(fields);
    checkModel(context, body.model, "edit");
    const { prompt } = body;
    return answer(context, request, reply, body, async (signal) => {
      const source = await bytesOf(context, image, signal);
      return {
        event: "image_edit",
        draw: (n, options) => model.edit(source, Array<string>(n).fill(prompt), options),
        stream: (options) => model.editStream(source, prompt, options),
      };
    });
  });
}

async function answer(
  context: ServerContext,
  request: FastifyRequest,
  reply: FastifyReply,
  body: DrawingBody,
  prepare: (signal: AbortSignal) => Promise<Kind>,
): Promise<unknown> {
  checkDrawing(context, body);
  logPrompt(context, request, body.prompt);
  const { n = 1, output_format: format = "png", guidance, temperature, order } = body;
  // The limit is also one on the model's own default.
  const steps =
    body.steps ?? Math.min(context.model.info.generation.image.steps, mostSteps(context));
  // Decided here, so that the answer can tell it.
  const seed = parseSeed(body.seed);
  const options: DrawOptions = { seed, steps, guidance, temperature, order };
  return runRequest(context, reply, async (signal) => {
    const kind = await prepare(signal);
    const details = {
      created_at: Math.floor(Date.now() / 1000),
      size: sizeOf(context),
      quality: "auto",
      background: "opaque",
      output_format: format,
    };
    if (body.stream) {
      const partial = Math.min(body.partial_images ?? 0, cellsOf(context) - 1);
      const steps = kind.stream({ ...options, signal });
      const events = drawingEvents(kind.event, steps, partial, format, details);
      return sendEvents(reply, events, context);
    }
    const images = await kind.draw(n, { ...options, signal });
    const data = await Promise.all(
      images.map(async (image) => ({
        b64_json: (await image.toBuffer(format)).toString("base64"),
        seed: seedText(image.seed!),
      })),
    );
    const { created_at: created, ...rest } = details;
    return { created, data, ...rest };
  });
}

const gridOf = ({ model }: ServerContext): number => model.info.image!.grid;
const cellsOf = (context: ServerContext): number => gridOf(context) ** 2;
const sizeOf = ({ model }: ServerContext): string =>
  `${model.info.image!.size}x${model.info.image!.size}`;
const mostSteps = ({ model, settings }: ServerContext): number =>
  settings.maxSteps ?? model.info.image!.timesteps;

/** What a schema cannot know: the model and the server's limits. */
function checkDrawing(context: ServerContext, body: DrawingBody): void {
  const { maxImages } = context.settings;
  const maxSteps = mostSteps(context);
  checkPrompt(context, body.prompt, "prompt");
  const expect = (holds: boolean, expected: string, param: keyof DrawingBody) => {
    if (holds) return;
    const message = `expected ${expected} but received ${JSON.stringify(body[param])}`;
    throw new HttpError(422, "INVALID_OPTION", message, param);
  };
  // More than the model's queue holds would be told for ever to come again later.
  const most = Math.min(maxImages, context.model.capacity);
  expect((body.n ?? 1) <= most, `at most ${most} images`, "n");
  expect(!body.stream || (body.n ?? 1) === 1, "one image when streaming", "n");
  const size = sizeOf(context);
  expect(body.size === undefined || ["auto", size].includes(body.size), `auto or ${size}`, "size");
  expect((body.steps ?? 1) <= maxSteps, `at most ${maxSteps} steps`, "steps");
}

interface Edit {
  image: SentImage;
  fields: Record<string, unknown>;
}

/** An edit's image and fields, of a form or of JSON with `images: [{ image_url }]`. */
async function readEdit(request: FastifyRequest, maxBytes: number): Promise<Edit> {
  if (!request.isMultipart()) {
    const { body } = request;
    // Nothing of the text is kept while the request waits.
    request.body = undefined;
    return readJson(body);
  }
  try {
    // Of a form that is too large the reading never ends; what it holds goes with the request.
    return await Promise.race([readForm(request), formTooLarge(request, maxBytes)]);
  } catch (error) {
    // What is still to come is read past: the connection is to carry the answer, and the next request.
    request.raw.unpipe();
    request.raw.resume();
    const { destroyed, complete } = request.raw;
    if (!(error instanceof HttpError) && destroyed && !complete) {
      throw new HttpError(499, "CLIENT_GONE", "the client left before its form had come");
    }
    const known = error instanceof HttpError || typeof (error as FastifyError).code === "string";
    if (known) throw error;
    // The parser's: a form that ends in its middle, or is none.
    throw new HttpError(400, "INVALID_FORM", (error as Error).message);
  }
}

/**
 * Rejects as soon as a form is known to be larger than allowed: by its length, or by what has come. The limits of
 * the parser are those of each part. To be called in the moment in which reading begins.
 */
function formTooLarge({ headers, raw }: FastifyRequest, maxBytes: number): Promise<never> {
  return new Promise((_, reject) => {
    let bytes = 0;
    const refuse = () => {
      raw.unpipe();
      reject(new HttpError(413, "BODY_TOO_LARGE", `expected a form of at most ${maxBytes} bytes`));
    };
    if (Number(headers["content-length"]) > maxBytes) refuse();
    raw.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > maxBytes) refuse();
    });
  });
}

function oneImage<T>(images: readonly T[]): T {
  if (images.length === 1) return images[0]!;
  throw new HttpError(
    422,
    "IMAGE_UNSUPPORTED_INPUT",
    `expected one image but received ${images.length}`,
    "image",
  );
}

const noMask = () =>
  new HttpError(
    422,
    "INVALID_OPTION",
    "masks are not supported: say in the prompt what to change",
    "mask",
  );

async function readForm(request: FastifyRequest): Promise<Edit> {
  const images: Uint8Array[] = [];
  // Names come from the client: an object without a prototype has no fields to overwrite.
  const fields: Record<string, unknown> = Object.create(null);
  for await (const part of request.parts()) {
    // Whatever the type says.
    if (part.fieldname === undefined) {
      throw new HttpError(400, "INVALID_FORM", "expected a name for each part of the form");
    }
    // OpenAI's clients write image[] where there are several.
    const name = part.fieldname.replace(/\[\]$/, "");
    if (name === "mask") throw noMask();
    if (part.type === "file") {
      if (name !== "image") {
        throw new HttpError(422, "INVALID_OPTION", `unexpected file ${name}`, name);
      }
      images.push(await part.toBuffer());
    } else if (name === "image") {
      throw new HttpError(422, "IMAGE_UNSUPPORTED_INPUT", "expected a file", "image");
    } else {
      // The parser has cut it.
      if (part.valueTruncated) {
        throw new HttpError(413, "BODY_TOO_LARGE", `the field ${name} is too long`, name);
      }
      fields[name] = part.value;
    }
  }
  return { image: oneImage(images), fields: { ...fields } };
}

function readJson(body: unknown): Edit {
  if (typeof body !== "object" || body === null || Array.isArray(body)) {
    throw new HttpError(422, "INVALID_OPTION", "expected a form or a JSON object");
  }
  const { images, mask, ...fields } = body as Record<string, unknown>;
  if (mask !== undefined && mask !== null) throw noMask();
  const list = Array.isArray(images) ? (images as { image_url?: unknown }[]) : [];
  const url = oneImage(list)?.image_url;
  if (typeof url !== "string") {
    throw new HttpError(422, "IMAGE_UNSUPPORTED_INPUT", "expected an image_url", "images");
  }
  return { image: sentImage(url), fields };
}
