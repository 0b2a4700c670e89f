/** The page at `/`. Its few files are known by name and kept in memory: no path is ever looked up. */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { FastifyInstance } from "fastify";
import { InvalidOptionError } from "../errors.js";

/** Nothing from elsewhere, nothing inline: what the page shows can run nothing. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data: blob:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");

const FILES: Readonly<Record<string, [file: string, type: string]>> = {
  "/": ["index.html", "text/html; charset=utf-8"],
  "/page/page.css": ["page.css", "text/css; charset=utf-8"],
  "/page/page.mjs": ["page.mjs", "text/javascript; charset=utf-8"],
  "/page/api.mjs": ["api.mjs", "text/javascript; charset=utf-8"],
  "/page/icon.svg": ["icon.svg", "image/svg+xml"],
};

/** Paths of the page: they are served without a key, which the page then asks for. */
export const PAGE_PATHS: readonly string[] = Object.keys(FILES);

export function registerPage(app: FastifyInstance): void {
  for (const [path, [file, type]] of Object.entries(FILES)) {
    const bytes = readPart(join(__dirname, "page", file));
    const etag = `"${createHash("sha256").update(bytes).digest("base64url").slice(0, 22)}"`;
    app.get(path, async (request, reply) => {
      reply.headers({
        etag,
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "content-type": type,
      });
      if (request.headers["if-none-match"] === etag) return reply.code(304).send();
      return reply.send(bytes);
    });
  }
}

function readPart(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (cause) {
    const message = `the page's file ${path} is not there: in a bundle set page to false`;
    throw new InvalidOptionError(message, { cause });
  }
}
