/** What `npm run gpu` runs on a device, on the simulated library: the checks, and the benchmark in small. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { simulatedLibrary } from "../support/ops";

const root = join(__dirname, "../..");
const run = (...args: string[]) =>
  promisify(execFile)(process.execPath, args, {
    cwd: root,
    env: { ...process.env, UNIFLUID_CUDA_LIBRARY: simulatedLibrary },
  });

test("the checks pass, on plain Node", async () => {
  const { stdout } = await run("scripts/gpu.mjs", "--simulated");
  expect(stdout).toMatch(/^bf16 attention: \d+ cases/m);
  expect(stdout).toMatch(/^float32 unifluid-flow-tiny: drawn/m);
  expect(stdout).toMatch(/^all checks passed$/m);
  expect(stdout).not.toMatch(/FAIL/);
}, 300_000);

test("the benchmark measures what its table asks for", async () => {
  const { stdout } = await run("bench/gpu.mjs", "--small");
  for (const what of [
    "copy",
    "decode, 1 row",
    "head: ",
    "prefill attention",
    "bf16 product",
    "256² images",
  ])
    expect(stdout).toMatch(new RegExp(`^\\| ${what}`, "m"));
  expect(stdout).toMatch(/simulated, compute capability 8\.6/);
}, 300_000);
