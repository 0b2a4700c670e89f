/** A short run of the load that bench/load.mjs puts on a server: its checks, without its figures. */

import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";

const execute = promisify(execFile);
const load = join(__dirname, "../../bench/load.mjs");

test("under a mixed load no answer is wrong, every sequence is freed, and the end is orderly", async () => {
  // Too few requests to tell how memory goes.
  const args = ["--requests", "300", "--seconds", "120", "--growth", "0"];
  const { stdout } = await execute(process.execPath, [load, ...args]).catch((error) => {
    throw new Error(`${error.stdout}\n${error.stderr}`);
  });
  const row = (name: string) => stdout.split("\n").find((line) => line.startsWith(`| ${name} |`));
  const [right, rejected, gone, , wrong] = row("all")!.split("|").slice(2, -1).map(Number);
  expect(right).toBeGreaterThan(0);
  expect(rejected).toBeGreaterThan(0);
  expect(gone).toBeGreaterThan(0);
  expect(wrong).toBe(0);
  expect(row("sequences running, waiting, and their bytes after the load")).toMatch(/ 0, 0, 0 \|$/);
  expect(row("exit code")).toMatch(/ 0 \|$/);
  expect(stdout).toContain("all checks hold");
}, 300_000);

test("a limit that is no number is refused", async () => {
  const run = execute(process.execPath, [load, "--requests", "many"]);
  await expect(run).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringContaining("--requests but received many"),
  });
});
