/** Folders that appear when they are complete. */

import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
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

test("two writers of one folder: the second is refused and the first is whole", async () => {
  const target = join(folder, "new");
  await fillNewFolder(target, async (beside) => {
    await writeFile(join(beside, "first"), "");
    const second = fillNewFolder(target, (other) => writeFile(join(other, "second"), ""));
    await expect(second).rejects.toMatchObject({
      code: "OUTPUT_LOCKED",
      message: expect.stringContaining(`process ${process.pid} `),
    });
    await writeFile(join(beside, "last"), "");
  });
  expect(readdirSync(target).sort()).toEqual(["first", "last"]);
  expect(readdirSync(folder)).toEqual(["new"]);
});

test("the lock of a process that is gone blocks nobody", async () => {
  const target = join(folder, "new");
  writeFileSync(`${target}.lock`, JSON.stringify({ pid: 2 ** 30, host: hostname() }));
  await fillNewFolder(target, (beside) => writeFile(join(beside, "file"), ""));
  expect(readdirSync(folder)).toEqual(["new"]);
});

test("a folder that another has made since the look is left alone", async () => {
  const target = await expectNoFolder(join(folder, "new"));
  mkdirSync(target);
  const fill = jest.fn();
  await expect(fillNewFolder(target, fill)).rejects.toMatchObject({ code: "INVALID_OPTION" });
  expect(fill).not.toHaveBeenCalled();
  expect(readdirSync(folder)).toEqual(["new"]);
});
