/** Which settings of a run have changed since it was begun. */
import { stringify } from "yaml";
import { changedSettings, changesLosses } from "../../lib/train/changed-settings";
import { parseRunConfig } from "../../lib/train/config";

const settings = (change: object = {}) => ({
  model: "shapes-64",
  sources: [
    { manifest: "/data/a.jsonl", examples: 2 },
    { manifest: "/data/b.jsonl", examples: 2 },
  ],
  steps: 10,
  learningRate: 1e-3,
  ...change,
});
const now = (change: object = {}) => parseRunConfig(settings(change), "", "/");

test("what stayed as it was is not named, also where an earlier version did not write it", () => {
  expect(changedSettings(stringify(now()), now())).toEqual([]);
  expect(changedSettings(stringify(settings()), now())).toEqual([]);
});

test.each<[object, object, string[]]>([
  [{}, { steps: 11, seed: 3 }, ["steps", "seed"]],
  [{}, { checkpoint: { keep: 3 } }, ["checkpoint.keep"]],
  [{ samples: { every: 5, prompts: ["a"] } }, {}, ["samples"]],
  [
    {},
    { sources: [settings().sources[0], { manifest: "/data/b.jsonl", examples: 3 }] },
    ["sources.1.examples"],
  ],
  [{}, { sources: settings().sources.slice(1) }, ["sources"]],
  // A setting that this version does not know.
  [{ speed: 3 }, {}, ["speed"]],
])("from %j to %j", (before, after, names) => {
  const changed = changedSettings(stringify({ ...now(), ...before }), now(after));
  expect(changed).toEqual(names);
});

test("two files are compared as a file and the settings of now", () => {
  expect(changedSettings(stringify(settings()), stringify(now({ order: "raster" })))).toEqual([
    "order",
  ]);
});

test("losses are of something else with other data, orders or noise, and with no other rate", () => {
  for (const names of [["all"], ["sources"], ["steps", "sources.1.examples"], ["contextNoise"]])
    expect(changesLosses(names)).toBe(true);
  for (const names of [[], ["steps", "learningRate"], ["samples.prompts.0"], ["orders"]])
    expect(changesLosses(names)).toBe(false);
});

test("of a file that cannot be read all have changed", () => {
  expect(changedSettings("{", now())).toEqual(["all"]);
  expect(changedSettings("", now())).toEqual(["all"]);
});
