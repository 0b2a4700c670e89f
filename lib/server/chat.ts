/** POST /v1/chat/completions: questions about an image, captions, and plain text where the model can. */

import { randomUUID } from "node:crypto";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { WriteOptions } from "../call-options.js";
import type { ImageInput } from "../image-input.js";
import type { WrittenText } from "../text-stream.js";
import {
  bytesOf,
  checkModel,
  checkPrompt,
  logPrompt,
  refuseForm,
  runRequest,
  type ServerContext,
  sentImage,
} from "./context.js";
import { type ServerEvent, sendEvents } from "./events.js";
import { HttpError } from "./http-error.js";
import { type ChatMessage, chatBody } from "./schemas.js";

/** What a conversation asks for. */
interface Question {
  task: "caption" | "answer" | "complete";
  text: string;
  /** URL of the image. */
  image?: string;
}

/**
 * The model answers one question about one image: the text of the last message of the user, and the image
 * that it has or that was shown last before it. System messages and earlier answers do not count.
 */
export function questionOf(messages: readonly ChatMessage[]): Question {
  const asked = messages.filter(({ role }) => role === "user");
  const last = asked.at(-1);
  if (!last) throw new HttpError(422, "INVALID_OPTION", "expected a user's message", "messages");
  const text = partsOf(last)
    .flatMap((part) => (part.type === "text" ? [part.text] : []))
    .join("\n")
    .trim();
  const images = asked.flatMap((message) =>
    partsOf(message).flatMap((part) => (part.type === "image_url" ? [part.image_url.url] : [])),
  );
  const own = partsOf(last).filter(({ type }) => type === "image_url").length;
  if (own > 1) {
    const message = `expected one image in a message but received ${own}`;
    throw new HttpError(422, "IMAGE_UNSUPPORTED_INPUT", message, "messages");
  }
  const image = images.at(-1);
  if (image === undefined) {
    if (text === "") throw new HttpError(422, "INVALID_OPTION", "expected a text", "messages");
    return { task: "complete", text };
  }
  return text === "" ? { task: "caption", text, image } : { task: "answer", text, image };
}

function partsOf({ content }: ChatMessage) {
  return typeof content === "string" ? [{ type: "text" as const, text: content }] : (content ?? []);
}

/** A request's question and its other fields. Of its messages, which may be large, nothing is kept while it waits. */
function read(request: FastifyRequest) {
  refuseForm(request);
  const { messages, ...body } = chatBody.parse(request.body);
  request.body = undefined;
  const { image, ...question } = questionOf(messages);
  return { question, image: image === undefined ? undefined : sentImage(image), body };
}

type Pieces = AsyncGenerator<string, WrittenText, undefined>;

/** The pieces of what the model writes. */
function write(
  { model }: ServerContext,
  { task, text }: Omit<Question, "image">,
  image: ImageInput | undefined,
  options: WriteOptions,
): Pieces {
  if (task === "complete") return model.completeStream(text, options);
  return task === "caption"
    ? model.captionStream(image!, options)
    : model.answerStream(image!, text, options);
}

export function registerChat(app: FastifyInstance, context: ServerContext): void {
  const { model, name } = context;

  app.post("/v1/chat/completions", async (request, reply) => {
    const { question, image: sent, body } = read(request);
    // A model that reads images was trained to answer about them: without one the question would be continued.
    const { tasks } = model;
    if (question.task === "complete" && (tasks.includes("answer") || !tasks.includes("complete"))) {
      const message = `${name} answers about images: expected a message with an image_url`;
      throw new HttpError(422, "UNSUPPORTED_TASK", message, "messages");
    }
    checkModel(context, body.model, question.task);
    checkPrompt(context, question.text, "messages");
    logPrompt(context, request, question.text);
    return runRequest(context, reply, async (signal) => {
      const image = sent === undefined ? undefined : await bytesOf(context, sent, signal);
      const maxNewTokens = body.max_completion_tokens ?? body.max_tokens;
      const options: WriteOptions = {
        maxNewTokens,
        temperature: body.temperature,
        seed: body.seed,
        signal,
      };
      const pieces = write(context, question, image, options);
      const frame = {
        id: `chatcmpl-${randomUUID()}`,
        created: Math.floor(Date.now() / 1000),
        model: name,
      };
      if (body.stream) {
        const wantsUsage = body.stream_options?.include_usage === true;
        return sendEvents(reply, chunks(pieces, wantsUsage, frame), context);
      }
      let content = "";
      let step = await pieces.next();
      for (; !step.done; step = await pieces.next()) content += step.value;
      const message = { role: "assistant", content, refusal: null };
      return {
        ...frame,
        object: "chat.completion",
        choices: [{ index: 0, message, logprobs: null, finish_reason: finishReason(step.value) }],
        usage: usageOf(step.value),
      };
    });
  });
}

const finishReason = ({ stopped }: WrittenText) => (stopped ? "stop" : "length");

/** Tokens as the model had them: the prompt's with its template and image, and those it wrote. */
function usageOf({ promptTokens: prompt_tokens, newTokens: completion_tokens }: WrittenText) {
  return { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
}

async function* chunks(
  pieces: Pieces,
  wantsUsage: boolean,
  frame: object,
): AsyncGenerator<ServerEvent> {
  const chunk = (choices: object[], usage: object | null = null): ServerEvent => ({
    data: {
      ...frame,
      object: "chat.completion.chunk",
      choices,
      ...(wantsUsage ? { usage } : {}),
    },
  });
  const choice = (delta: object, finish_reason: string | null = null) => [
    { index: 0, delta, logprobs: null, finish_reason },
  ];
  try {
    // The first piece is waited for before the first chunk: a refusal then has a status of its own.
    let step = await pieces.next();
    yield chunk(choice({ role: "assistant", content: "", refusal: null }));
    for (; !step.done; step = await pieces.next()) yield chunk(choice({ content: step.value }));
    yield chunk(choice({}, finishReason(step.value)));
    if (wantsUsage) yield chunk([], usageOf(step.value));
    yield { data: "[DONE]" };
  } finally {
    // Whoever leaves the loop frees the sequence.
    await pieces.return({ promptTokens: 0, newTokens: 0, stopped: false });
  }
}
