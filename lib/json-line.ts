/** JSON documents, one a line. */

/** A line of JSON; whole numbers beyond 2^53 as strings, since JSON numbers would not hold them. */
export function jsonLine(value: unknown): string {
  const text = JSON.stringify(value, (_, v) => {
    if (typeof v !== "bigint") return v;
    return v <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(v) : String(v);
  });
  return `${text}\n`;
}
