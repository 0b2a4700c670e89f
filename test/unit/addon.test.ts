import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { candidates, describeMachine, findAddon, loadFrom } from "../../lib/addon";
import { version } from "../../package.json";

const folder = mkdtempSync(join(tmpdir(), "unifluid-addon-"));
afterAll(() => rmSync(folder, { recursive: true }));

const missing = join(folder, "none.node");
const broken = join(folder, "broken.node");
writeFileSync(broken, "not a library");

test("the addon of this machine loads once", () => {
  const found = findAddon();
  expect(findAddon()).toBe(found);
  expect(found.path).toMatch(/unifluid\.node$/);
  expect(found.addon.version).toBe(version);
  expect(found.addon.instructionSets().some((set) => set.supported)).toBe(true);
});

test("it is looked for among the prebuilt ones, then where it is compiled", () => {
  const paths = candidates(undefined).map(({ path }) => path);
  const target = join("prebuilds", `${process.platform}-${process.arch}`, "unifluid.node");
  expect(paths[0]).toContain(target);
  expect(paths.at(-1)).toContain(join("build", "Release", "unifluid.node"));
  expect(candidates(missing).map(({ path }) => path)).toEqual([missing]);
});

test("without one, the error tells what was tried, on what machine, and what to do", () => {
  const attempt = () => loadFrom(candidates(missing));
  expect(attempt).toThrow(
    expect.objectContaining({ name: "NativeLoadError", code: "NATIVE_NOT_FOUND" }),
  );
  expect(attempt).toThrow(missing);
  expect(attempt).toThrow(describeMachine());
  expect(attempt).toThrow("npx unifluid build");
  expect(describeMachine()).toContain(process.version);
});

test("one that does not load", () => {
  const attempt = () => loadFrom(candidates(broken));
  expect(attempt).toThrow(expect.objectContaining({ code: "NATIVE_LOAD_FAILED" }));
  expect(attempt).toThrow(broken);
});

test("another library, and one that is passed over", () => {
  const { path } = findAddon();
  const other = { path, load: () => ({}) };
  expect(() => loadFrom([other])).toThrow(/not this package's addon/);
  const addon = { loadModel: () => undefined, version };
  expect(loadFrom([other, { path, load: () => addon }]).addon).toBe(addon);
});

test("one that is not at its path: a bundle has it elsewhere", () => {
  const { addon } = findAddon();
  expect(loadFrom([{ path: missing, load: () => addon }])).toEqual({ addon, path: missing });
});

test("one that another version of the package left behind", () => {
  const { path, addon } = findAddon();
  const stale = { path, load: () => ({ ...addon, version: "0.0.9" }) };
  const attempt = () => loadFrom([stale]);
  expect(attempt).toThrow(expect.objectContaining({ code: "NATIVE_LOAD_FAILED" }));
  expect(attempt).toThrow(`its version is 0.0.9, this package's is ${version}`);
  expect(attempt).toThrow("npx unifluid build");
  expect(loadFrom([stale, { path, load: () => addon }]).addon).toBe(addon);
});
