/** Folders that appear when they are complete. */

import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeFolder } from "../../lib/files.js";
import { expectNoFolder, fillNewFolder } from "../../lib/new-folder.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "unifluid-new-folder-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test("what is there already is told of", async () => {
  const path = join(folder, "a");
  expect(await expectNoFolder(path)).toBe(path);
  writeFileSync(path, "");
  await expect(expectNoFolder(path)).rejects.toMatchObject({
    code: "INVALID_OPTION",
    message: `expected a folder that does not exist yet but ${path} does`,
  });
});

test("it is not there before it is complete, and has nothing of an earlier try", async () => {
  const target = join(folder, "above/new");
  mkdirSync(`${target}.partial`, { recursive: true });
  writeFileSync(join(`${target}.partial`, "of-a-killed-process"), "");
  await fillNewFolder(target, async (beside) => {
    await writeFile(join(beside, "file"), "");
    expect(existsSync(target)).toBe(false);
  });
  expect(readdirSync(join(folder, "above"))).toEqual(["new"]);
  expect(readdirSync(target)).toEqual(["file"]);
});

test("where it cannot be filled nothing is left", async () => {
  const target = join(folder, "new");
  const tooLong = "x".repeat(300);
  const filling = fillNewFolder(target, (beside) => makeFolder(join(beside, "vae", tooLong)));
  await expect(filling).rejects.toMatchObject({ code: "ENAMETOOLONG" });
  expect(readdirSync(folder)).toEqual([]);
});
