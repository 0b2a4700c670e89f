/** Where memory lacks to tell JavaScript what became of a request, and where telling it fails. */
import { join } from "node:path";
import { loadAddon } from "../../lib/addon";
import { readCheckpoint, UniFluid } from "../../lib/index";
import type { NativeRequest } from "../../lib/native";
import { FIXTURES } from "../support/fixtures";
import { addon } from "../support/ops";

const tiny = join(FIXTURES, "gemma2-tiny");

const text = (token: number): NativeRequest => ({
  kind: "text",
  prefix: { tokens: Int32Array.of(2, token) },
  maxNewTokens: 4,
  temperature: 0,
  seed: 1n,
  stopTokens: new Int32Array(0),
  stream: true,
});

describe("an engine that finds no memory to tell what happened", () => {
  const run = async (failures: number, stop = false) => {
    const { spec } = await readCheckpoint(tiny);
    return addon.engineEvents({ spec, requests: [text(5), text(9)], failures, stop });
  };

  test("tells all of it later, once and in order", async () => {
    const expected = await run(0);
    expect(expected.filter(({ type }) => type === "done")).toHaveLength(2);
    expect(expected.filter(({ type }) => type === "token")).toHaveLength(8);
    // From the first step on, and beyond the last.
    for (const failures of [1, 3, 12]) {
      const events = await run(failures);
      expect(events).toHaveLength(expected.length);
      // How the two lie between each other depends on when the second was submitted.
      for (const request of [1, 2]) {
        const ofIt = ({ id }: { id: number }) => id === request;
        expect(events.filter(ofIt)).toEqual(expected.filter(ofIt));
      }
    }
  });

  test("says that the model was disposed of, too", async () => {
    for (const failures of [0, 2]) {
      const ends = (await run(failures, true)).filter(
        ({ type }) => type === "done" || type === "error",
      );
      expect(ends.map(({ id }) => id).sort()).toEqual([1, 2]);
    }
  });
});

test("a result that JavaScript does not take is its request's error, and no other's", async () => {
  const model = await UniFluid.load(tiny, { device: "cpu", threads: 1 });
  // The realm of the addon's objects is not that of jest's tests.
  const prototype = Object.getPrototypeOf(loadAddon().instructionSets()[0]);
  Object.defineProperty(prototype, "logits", {
    configurable: true,
    set() {
      throw new Error("no room for logits");
    },
  });
  try {
    // All three end in one step, and are told together.
    const [before, refused, after] = await Promise.allSettled([
      model.complete("a", { maxNewTokens: 1 }),
      model.logits({ tokens: [2, 5] }),
      model.complete("b", { maxNewTokens: 1 }),
    ]);
    expect(before.status).toBe("fulfilled");
    expect(after.status).toBe("fulfilled");
    expect(refused).toMatchObject({
      status: "rejected",
      reason: { code: "INTERNAL", message: expect.stringMatching(/no room for logits/) },
    });
  } finally {
    delete prototype.logits;
    await model.dispose();
  }
});
