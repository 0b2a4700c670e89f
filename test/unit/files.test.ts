/** Folders that users name. */

import { mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeFolder } from "../../lib/files.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "unifluid-folder-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test("is made with all that is missing above it, also by several at once", async () => {
  const path = join(folder, "a/b/c");
  await Promise.all([makeFolder(path), makeFolder(path), makeFolder(join(folder, "a/b/d"))]);
  expect(statSync(path).isDirectory()).toBe(true);
  expect(statSync(join(folder, "a/b/d")).isDirectory()).toBe(true);
  await makeFolder(path);
});

test.each([
  ["file", "EEXIST"],
  ["file/x", "ENOTDIR"],
  ["nowhere", "EEXIST"],
])("%s in the way is told of: %s", async (name, code) => {
  writeFileSync(join(folder, "file"), "");
  symlinkSync(join(folder, "gone"), join(folder, "nowhere"));
  const path = join(folder, name);
  await expect(makeFolder(path)).rejects.toMatchObject({ code, path });
});

const onLinux = process.platform === "linux" ? test : test.skip;
onLinux("where nothing can be made it fails, and does not try for ever", async () => {
  const path = "/proc/unifluid/results";
  await expect(makeFolder(path)).rejects.toMatchObject({ path: "/proc/unifluid" });
});
