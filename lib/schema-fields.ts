/** Fields in what others send: requests, and records of jobs. */

import { z } from "zod";

/** A field that may be absent, or null, which clients of typed languages and exports of tables have for it. */
export const optional = <T extends z.ZodType>(type: T) =>
  type.nullish().transform((value) => value ?? undefined);

/**
 * A number, or a text that is one, since a form or a table can hold nothing else; null counts as absent. Nothing else
 * becomes a number: an empty text, a list or `true` is the sender's mistake, and no 0 or 1.
 */
export function numeric<T extends z.ZodType>(schema: T) {
  const read = (value: unknown): unknown => {
    if (value === null) return undefined;
    return typeof value === "string" && value.trim() !== "" ? Number(value) : value;
  };
  return z.preprocess(read, schema.optional()).optional();
}

/** A seed: a number, or a text, which holds all 64 bits. */
export const seedField = z
  .union([
    z.int().min(0),
    z.string().regex(/^\d{1,20}$/, "expected a whole number from 0 to 2^64 - 1"),
  ])
  .transform(BigInt);
