/** GET /openapi.json: this server described, from the schemas that check its requests. */

import { z } from "zod";
import { packageVersion } from "../addon.js";
import type { ServerContext } from "./context.js";
import { chatBody, editFields, generationBody } from "./schemas.js";

type Json = Record<string, unknown>;

const schema = (type: z.ZodType): Json => {
  const { $schema, ...rest } = z.toJSONSchema(type, {
    io: "input",
    unrepresentable: "any",
  }) as Json;
  return rest;
};
const ref = (name: string): Json => ({ $ref: `#/components/schemas/${name}` });
const content = (body: Json, type = "application/json"): Json => ({ [type]: { schema: body } });

const EVENTS = { "text/event-stream": { schema: { type: "string" } } };
const ERRORS: Json = Object.fromEntries(
  (
    [
      ["400", "Not JSON"],
      ["401", "No key, or a wrong one"],
      ["403", "A page of another origin"],
      ["404", "No model of that name"],
      ["408", "The body came too slowly"],
      ["413", "A body or an image beyond the limits"],
      ["415", "A body of a type that the route does not take"],
      ["422", "A field out of range, or an image that cannot be used"],
      ["429", "Too many requests wait; Retry-After tells when to try again"],
      ["500", "The server or its device failed"],
      ["503", "Shutting down, out of memory, or the request took too long"],
    ] as const
  ).map(([status, description]) => [status, { description, content: content(ref("Error")) }]),
);

export function openApi(context: ServerContext): Json {
  const multipart = schema(editFields) as { properties: Json; required?: string[] };
  const edit = {
    ...multipart,
    properties: { image: { type: "string", format: "binary" }, ...multipart.properties },
    required: ["image", ...(multipart.required ?? [])],
  };
  const editOfUrl = {
    ...multipart,
    properties: {
      images: {
        type: "array",
        minItems: 1,
        maxItems: 1,
        items: {
          type: "object",
          properties: {
            image_url: {
              type: "string",
              description: "A data URL, or a URL of a host the server allows.",
            },
          },
          required: ["image_url"],
        },
      },
      ...multipart.properties,
    },
    required: ["images", ...(multipart.required ?? [])],
  };
  const post = (summary: string, body: Json, answer: Json, events: boolean): Json => ({
    post: {
      summary,
      requestBody: { required: true, content: body },
      responses: {
        "200": { description: "Done", content: { ...content(answer), ...(events ? EVENTS : {}) } },
        ...ERRORS,
      },
    },
  });
  const get = (summary: string, type = "application/json", open = true): Json => ({
    get: {
      summary,
      ...(open ? { security: [] } : {}),
      responses: { "200": { description: "OK", content: content({}, type) } },
    },
  });
  return {
    openapi: "3.1.0",
    info: {
      title: "UniFluid",
      version: packageVersion(),
      description: `Draws, edits and describes images with the model ${context.name}.`,
    },
    ...(context.settings.apiKeys.length > 0 ? { security: [{ key: [] }] } : {}),
    paths: {
      "/v1/images/generations": post(
        "Draw images",
        content(ref("Generation")),
        ref("Images"),
        true,
      ),
      "/v1/images/edits": post(
        "Edit an image",
        { ...content(ref("Edit"), "multipart/form-data"), ...content(ref("EditOfUrl")) },
        ref("Images"),
        true,
      ),
      "/v1/chat/completions": post(
        "Describe an image, or answer a question about it",
        content(ref("Chat")),
        ref("Completion"),
        true,
      ),
      "/v1/models": get("The model", "application/json", false),
      "/v1/models/{id}": {
        parameters: [{ name: "id", in: "path", required: true, schema: { type: "string" } }],
        ...get("The model of that name", "application/json", false),
      },
      "/health": get("Whether the process lives"),
      "/ready": get("Whether requests are served"),
      "/metrics": get("Numbers for Prometheus", "text/plain", false),
    },
    components: {
      securitySchemes: { key: { type: "http", scheme: "bearer" } },
      schemas: {
        Generation: schema(generationBody),
        Edit: edit,
        EditOfUrl: editOfUrl,
        Chat: schema(chatBody),
        Images: {
          type: "object",
          properties: {
            created: { type: "integer" },
            data: {
              type: "array",
              items: {
                type: "object",
                properties: {
                  b64_json: { type: "string" },
                  seed: { type: ["integer", "string"] },
                },
              },
            },
            size: { type: "string" },
            output_format: { type: "string" },
          },
        },
        Completion: { type: "object" },
        Error: {
          type: "object",
          properties: {
            error: {
              type: "object",
              properties: {
                message: { type: "string" },
                type: { type: "string" },
                param: { type: ["string", "null"] },
                code: { type: "string" },
              },
            },
          },
        },
      },
    },
  };
}
