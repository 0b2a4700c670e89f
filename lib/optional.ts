/** Fields in what others send that may be absent. */

import type { z } from "zod";

/** A field that may be absent, or null, which clients of typed languages and exports of tables have for it. */
export const optional = <T extends z.ZodType>(type: T) =>
  type.nullish().transform((value) => value ?? undefined);
