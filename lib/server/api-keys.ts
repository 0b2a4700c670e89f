/** Bearer keys. */

import { createHash, timingSafeEqual } from "node:crypto";
import { normalizeIP } from "@fastify/rate-limit";
import type { FastifyRequest } from "fastify";
import { InvalidOptionError } from "../errors.js";
import { HttpError } from "./http-error.js";

/** What a header can hold: no other key would ever match. */
const KEY = /^[\x21-\x7e]+$/;

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();

/** The key in a request's header, without what is around it. */
const keyOf = (request: FastifyRequest): string | undefined =>
  /^Bearer +(\S+) *$/i.exec(request.headers.authorization ?? "")?.[1];

/** The keys that open the server; they can be replaced while it runs. */
export class ApiKeys {
  private digests: Buffer[] = [];

  constructor(keys: readonly string[]) {
    this.replace(keys);
  }

  /** Throws `INVALID_OPTION`, whose text tells no key. */
  replace(keys: readonly string[]): void {
    if (!Array.isArray(keys)) throw new InvalidOptionError("expected an array of API keys");
    if (keys.length === 0 && !this.open) {
      throw new InvalidOptionError(
        "expected API keys: without any the server would be open to all",
      );
    }
    const wrong = keys.findIndex((key) => typeof key !== "string" || !KEY.test(key));
    if (wrong >= 0) {
      throw new InvalidOptionError(
        `expected API keys of visible ASCII characters, without spaces, but key ${wrong + 1} is none`,
      );
    }
    this.digests = keys.map(digest);
  }

  /** No keys are set: everybody is served. */
  get open(): boolean {
    return this.digests.length === 0;
  }

  /** Takes the same time for every key of a length, right or wrong: digests are compared, all of them. */
  has(key: string): boolean {
    const given = digest(key);
    let found = false;
    for (const known of this.digests) found = timingSafeEqual(known, given) || found;
    return found;
  }

  /**
   * Who sent a request that `check` let pass: a digest of its key or, where there are no keys, its address; of IPv6 the
   * network of 64 bits, within which a host takes any address it likes. Without keys the header is the sender's to
   * make up.
   */
  senderOf(request: FastifyRequest): string {
    if (!this.open) return digest(keyOf(request) ?? "").toString("base64");
    // A Unix socket has no addresses, whatever the type says.
    return normalizeIP(request.ip ?? "");
  }

  /** Throws 401 unless the request bears a key. */
  check(request: FastifyRequest): void {
    if (this.open) return;
    const key = keyOf(request);
    if (key !== undefined && this.has(key)) return;
    throw new HttpError(
      401,
      "INVALID_API_KEY",
      key === undefined
        ? "expected a key: Authorization: Bearer KEY"
        : "this key is not valid for this server",
    );
  }
}

/** Keys of a text, one a line; blank lines and lines that begin with # do not count. `commas`: part keys, too. */
export function parseKeys(text: string, { commas = false } = {}): string[] {
  return text
    .split(commas ? /[\r\n,]+/ : /[\r\n]+/)
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"));
}
