/** What the schemas of requests make of bodies that were made to hurt. */

import type { z } from "zod";
import { chatBody } from "../../lib/server/schemas";

/** All issues, with those of every branch of a union. */
const count = (issues: readonly z.core.$ZodIssue[]): number =>
  issues.reduce((sum, issue) => {
    const branches = issue.code === "invalid_union" ? issue.errors : [];
    return branches.reduce((inner, branch) => inner + count(branch), sum + 1);
  }, 0);

const zeros = (length: number) => Array<number>(length).fill(0);

test.each<[string, unknown]>([
  ["parts", { messages: [{ role: "user", content: zeros(100_000) }] }],
  ["messages", { messages: zeros(100_000) }],
  ["parts of many messages", { messages: zeros(1000).map(() => ({ content: zeros(1000) })) }],
])("too many %s are refused without a look at each", (_name, body) => {
  const { error } = chatBody.safeParse(body);
  expect(count(error!.issues)).toBeLessThan(10_000);
});

test("a conversation with pictures passes", () => {
  const part = { type: "image_url", image_url: { url: "data:," } };
  const content = Array<unknown>(100).fill(part);
  const messages = Array<unknown>(1000).fill({ role: "user", content });
  expect(chatBody.safeParse({ messages }).success).toBe(true);
});
