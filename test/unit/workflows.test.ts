/** The workflows of .github: what they use is pinned, what they may do is little, what they run is there. */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";

interface Job {
  uses?: string;
  container?: { image: string };
  permissions?: Record<string, string>;
  strategy?: { matrix: { include: Record<string, string>[] } };
  steps?: { uses?: string; run?: string; with?: Record<string, unknown> }[];
}
interface Workflow {
  on: Record<string, unknown>;
  permissions?: unknown;
  concurrency?: unknown;
  jobs: Record<string, Job>;
}

const root = join(__dirname, "../..");
const folder = join(root, ".github/workflows");
const names = readdirSync(folder);
const read = (name: string) => readFileSync(join(folder, name), "utf8");
const workflows = names.map((name): [string, Workflow] => [name, parse(read(name))]);
const jobs = workflows.flatMap(([name, { jobs }]) =>
  Object.entries(jobs).map(([job, value]): [string, Job] => [`${name}: ${job}`, value]),
);
const steps = jobs.flatMap(([name, job]) =>
  (job.steps ?? []).map((step): [string, typeof step] => [name, step]),
);
const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

test("there are those that check, build binaries and release", () => {
  expect(names.sort()).toEqual(["ci.yml", "prebuilds.yml", "release.yml"]);
});

test.each(workflows)("%s reads only, and does not run beside itself", (_, workflow) => {
  expect(workflow.permissions).toEqual({ contents: "read" });
  expect(workflow.concurrency).toMatchObject({ group: expect.any(String) });
});

test("only publishing gets an identity", () => {
  const more = jobs.filter(([, job]) => job.permissions);
  expect(more).toEqual([
    [
      "release.yml: publish",
      expect.objectContaining({ permissions: { contents: "read", "id-token": "write" } }),
    ],
  ]);
});

test("actions are pinned to a commit, and its version is told", () => {
  const used = names.flatMap((name) =>
    [...read(name).matchAll(/\buses: (.+)$/gm)].map((m) => m[1]!),
  );
  expect(used.length).toBeGreaterThan(5);
  for (const use of used.filter((use) => !use.startsWith("./")))
    expect(use).toMatch(/^[\w-]+\/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
  // One version of each.
  const versions = new Map(used.map((use) => [use.split("@")[0], use]));
  expect(new Set(used).size).toBe(versions.size);
});

test("workflows that are called are there", () => {
  const called = jobs.flatMap(([, { uses }]) => (uses ? [uses] : []));
  expect(called.length).toBeGreaterThan(0);
  for (const path of called) expect(existsSync(join(root, path))).toBe(true);
});

test("containers are pinned to a digest", () => {
  const images = jobs.flatMap(([, { container, strategy }]) =>
    container
      ? container.image.startsWith("${{")
        ? strategy!.matrix.include.map(({ image }) => image)
        : [container.image]
      : [],
  );
  expect(images.length).toBe(4);
  for (const image of images) expect(image).toMatch(/@sha256:[0-9a-f]{64}$/);
});

test("checkouts keep no credentials", () => {
  const checkouts = steps.filter(([, { uses }]) => uses?.startsWith("actions/checkout@"));
  for (const [job, step] of checkouts)
    expect([job, step.with]).toEqual([job, { "persist-credentials": false }]);
});

test("scripts and files that they run are there", () => {
  const lines = steps.flatMap(([, { run }]) => (run ? [run] : []));
  const named = lines.flatMap((line) => [...line.matchAll(/npm run ([\w:-]+)/g)].map((m) => m[1]!));
  expect(named.length).toBeGreaterThan(4);
  for (const name of named) expect(Object.keys(scripts)).toContain(name);
  const files = lines.flatMap((line) =>
    [...line.matchAll(/(?:^|\s)((?:scripts|test|\.ci)\/\S+)/g)].map((m) => m[1]!),
  );
  expect(files.length).toBeGreaterThan(1);
  for (const file of files) expect(existsSync(join(root, file))).toBe(true);
});
