/** The script that looks at what an addon gives and needs. */

import { execFile } from "node:child_process";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { findAddon } from "../../lib/addon";

const execute = promisify(execFile);
const script = join(__dirname, "../../scripts/check-binary.mjs");
const check = (...args: string[]) =>
  execute(process.execPath, [script, ...args]).then(
    ({ stdout }) => stdout,
    ({ stderr }: { stderr: string }) => `failed: ${stderr}`,
  );
const addon = findAddon().path;

test("the addon of this build gives the two symbols that Node looks for, and shares no memory", async () => {
  expect(await check(addon)).toMatch(
    /: (x64|arm64), glibc 2\.\d+, libstdc\+\+ GLIBCXX_3\.4\.\d+\n$/,
  );
});

test("what needs newer libraries than it may fails", async () => {
  expect(await check(addon, "--max-glibc", "2.99", "--max-glibcxx", "3.4.99")).not.toMatch(
    /failed/,
  );
  expect(await check(addon, "--max-glibc", "2.4")).toMatch(
    /failed: .*at most glibc 2\.4 but needs/,
  );
});

test("another library has other symbols, and another file is none", async () => {
  const simulated = join(dirname(addon), "unifluid_cuda_simulated.so");
  expect(await check(simulated)).toMatch(/failed: .*to export unifluid_cuda_open but exports .*,/s);
  const node = join(__dirname, "../../node_modules/sharp");
  expect(await check(join(node, "package.json"))).toMatch(/failed: .*is no ELF file/s);
  expect(await check("no-such.node")).toBe("failed: no-such.node: not there\n");
  expect(await check()).toMatch(/^failed/);
});
