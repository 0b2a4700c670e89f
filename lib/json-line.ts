/** JSON documents: whole numbers beyond 2^53 are strings, since JSON numbers would not hold them. */

function replaceBigint(_: string, value: unknown): unknown {
  if (typeof value !== "bigint") return value;
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : String(value);
}

/** A document in one line. */
export const jsonLine = (value: unknown): string => `${JSON.stringify(value, replaceBigint)}\n`;

/** A document of several lines, for people too. */
export const jsonText = (value: unknown): string => `${JSON.stringify(value, replaceBigint, 2)}\n`;
