/** docs/serve.md, held against the server's sources. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { errorCodes } from "../../lib/errors";
import { HTTP_CODES } from "../../lib/server/http-error";

const page = readFileSync(join(__dirname, "../../docs/serve.md"), "utf8");

test("every code that only the server has is explained, and no other", () => {
  const explained = [...page.matchAll(/^\| `([A-Z_]+)` \| \d/gm)].map(([, code]) => code);
  expect(explained.sort()).toEqual([...HTTP_CODES].sort());
  expect(errorCodes.filter((code) => (HTTP_CODES as readonly string[]).includes(code))).toEqual([]);
});
