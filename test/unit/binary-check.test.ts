/** What people are told of a binary that does not load. */

import {
  copyFileSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findAddon } from "../../lib/addon";
import { checkBinary, explainLoadError, libcOfProcess } from "../../lib/binary-check";

const folder = mkdtempSync(join(tmpdir(), "unifluid-binary-"));
afterAll(() => rmSync(folder, { recursive: true }));
const linux = { platform: "linux", arch: process.arch };

test("nothing is wrong with the one in use", () => {
  expect(checkBinary(findAddon().path)).toBeUndefined();
});

test("a file that is none, and one that is cut short", () => {
  const path = join(folder, "cut.node");
  writeFileSync(path, "<html>404</html>");
  expect(checkBinary(path, linux)).toBe("it is damaged: 16 bytes that are no ELF file");
  writeFileSync(path, "");
  expect(checkBinary(path, linux)).toBe("it is damaged: 0 bytes that are no ELF file");
  copyFileSync(findAddon().path, path);
  truncateSync(path, 5000);
  expect(checkBinary(path, linux)).toMatch(/^it is cut short: 5000 of \d+ bytes$/);
});

test("one of another machine", () => {
  const path = join(folder, "other.node");
  const bytes = readFileSync(findAddon().path);
  bytes.writeUInt16LE(process.arch === "x64" ? 183 : 62, 18);
  writeFileSync(path, bytes);
  const other = process.arch === "x64" ? "arm64" : "x64";
  expect(checkBinary(path, linux)).toBe(`it is for ${other}, and this is ${process.arch}`);
  bytes.writeUInt16LE(9999, 18);
  writeFileSync(path, bytes);
  expect(checkBinary(path, linux)).toBe(`it is for machine 9999, and this is ${process.arch}`);
});

test.each<[string, string | undefined, string]>([
  [
    "/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.33' not found (required by /x/unifluid.node)",
    "2.28",
    "it needs glibc 2.33 or later, and this machine has 2.28",
  ],
  [
    "/lib/libstdc++.so.6: version `GLIBCXX_3.4.30' not found (required by /x/unifluid.node)",
    "2.31",
    "it needs a libstdc++ with GLIBCXX_3.4.30, newer than this machine's",
  ],
  [
    "Error loading shared library ld-linux-x86-64.so.2: No such file or directory",
    undefined,
    "it is made for glibc, and this machine has musl (Alpine?): Error loading shared library ld-linux-x86-64.so.2: No such file or directory",
  ],
  ["something else", "2.36", "something else"],
  ["not this package's addon", undefined, "not this package's addon"],
])("%s", (message, glibc, explained) => {
  const libc = glibc ? { name: "glibc" as const, version: glibc } : { name: "musl" as const };
  expect(explainLoadError(message, libc)).toBe(explained);
});

test("this process has a C library", () => {
  expect(libcOfProcess()).toMatchObject({
    name: "glibc",
    version: expect.stringMatching(/^2\.\d+/),
  });
});
