/** Numbers in what others send: as numbers, or as texts where a form or a table can hold nothing else. */

import { z } from "zod";

/**
 * A number, or a text that is one; null counts as absent. Nothing else becomes a number: an empty text, a list or
 * `true` is the sender's mistake, and no 0 or 1.
 */
export function numeric<T extends z.ZodType>(schema: T) {
  const read = (value: unknown): unknown => {
    if (value === null) return undefined;
    return typeof value === "string" && value.trim() !== "" ? Number(value) : value;
  };
  return z.preprocess(read, schema.optional()).optional();
}
