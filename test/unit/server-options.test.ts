/** Options of the server: what is refused, and in which words. */

import { type ServerOptions, serverSettings } from "../../lib/server/options";

test.each<[object, string]>([
  [{ modelName: 5 }, "expected a string for modelName but received 5"],
  [{ page: "no" }, 'expected a boolean for page but received "no"'],
  [
    { maxPixels: 64_000_001 },
    "expected an integer from 1 to 64000000 for maxPixels but received 64000001",
  ],
  [
    { apiKeys: [""] },
    'expected an array of strings that are not empty for apiKeys but received [""]',
  ],
])("%j is refused", (options, message) => {
  expect(() => serverSettings(options as ServerOptions)).toThrow(
    expect.objectContaining({ code: "INVALID_OPTION", message }),
  );
});

test("as many requests may be under way as a model takes", () => {
  const maxRequests = 4096 + 1e9;
  expect(serverSettings({ maxRequests })).toMatchObject({ maxRequests });
});
