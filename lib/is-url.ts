/** Addresses that callers pass as objects. */

/** A `URL`, also one of another realm. */
export function isUrl(value: unknown): value is URL {
  return Object.prototype.toString.call(value) === "[object URL]";
}
