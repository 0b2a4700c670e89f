/** Bodies that requests may have, as zod schemas: they check what comes and make the OpenAPI page. */

import { z } from "zod";
import { ORDERS } from "../generation-config.js";
import { IMAGE_FORMATS } from "../image.js";
import { numeric, optional, seedField } from "../schema-fields.js";

/** What this server's fields have beside OpenAI's own. */
const seed = seedField.describe(
  "Determines the image; image i of several gets seed + i. Beyond 2^53, as a string.",
);

const drawing = {
  model: optional(z.string()).describe("The name listed by GET /v1/models."),
  n: numeric(z.int().min(1)).describe("Number of images; 1 when streaming."),
  size: optional(z.string()).describe('"auto", or the size the model draws.'),
  response_format: optional(z.literal("b64_json")),
  output_format: optional(z.enum(IMAGE_FORMATS)).describe('Default "png".'),
  stream: optional(z.union([z.boolean(), z.stringbool()])).describe(
    "Respond with server-sent events.",
  ),
  partial_images: numeric(z.int().min(0)).describe(
    "Intermediate pictures when streaming; up to one per image token.",
  ),
  quality: optional(z.enum(["auto", "low", "medium", "high", "standard", "hd"])),
  background: optional(z.enum(["auto", "opaque"])),
  moderation: optional(z.enum(["auto", "low"])),
  style: optional(z.enum(["vivid", "natural"])),
  user: optional(z.string()),
  seed: optional(seed),
  steps: numeric(z.int().min(1)).describe("Diffusion steps per image token."),
  guidance: numeric(z.number()).describe("How strongly the prompt counts; 1: no guidance."),
  temperature: numeric(z.number()).describe("Scale of the sampling noise."),
  order: optional(z.enum(ORDERS)).describe("Order of the image tokens."),
};

export const generationBody = z.strictObject({
  prompt: z.string().min(1).describe("What to draw."),
  ...drawing,
});

export const editFields = z.strictObject({
  prompt: z.string().min(1).describe("What to change."),
  input_fidelity: optional(z.enum(["low", "high"])),
  ...drawing,
});

export type DrawingBody = z.infer<typeof generationBody>;

const textPart = z.object({ type: z.literal("text"), text: z.string() });
const imagePart = z.object({
  type: z.literal("image_url"),
  image_url: z.object({
    url: z.string().min(1).describe("A data URL, or a URL of a host the server allows."),
    detail: z.string().nullish(),
  }),
});
const part = z.discriminatedUnion("type", [textPart, imagePart]);

/**
 * A list of wrong elements costs hundreds of bytes of issues for each, and a megabyte holds half a million of them: one
 * with too many elements is refused before they are looked at. Messages and parts multiply.
 */
const MOST_MESSAGES = 1000;
const MOST_PARTS = 100;

const message = z.object({
  role: z.enum(["system", "developer", "user", "assistant"]),
  content: z.union([z.string(), z.array(part).min(1).max(MOST_PARTS)]).nullish(),
});
export type ChatMessage = z.infer<typeof message>;

/** Clients send many fields of other models here; those are passed over. */
export const chatBody = z.object({
  model: optional(z.string()),
  messages: z.array(message).min(1).max(MOST_MESSAGES),
  max_tokens: optional(z.int().min(1)),
  max_completion_tokens: optional(z.int().min(1)),
  temperature: optional(z.number()),
  seed: optional(seed),
  n: optional(z.literal(1)),
  stream: optional(z.boolean()),
  stream_options: optional(z.object({ include_usage: optional(z.boolean()) })),
});
