/** What `npm run gpu` runs on a device, on the simulated library: the checks, and the benchmark in small. */
import { execFile } from "node:child_process";
import { cp, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { simulatedLibrary } from "../support/ops";

const root = join(__dirname, "../..");
const promised = promisify(execFile);
/** A Hopper GPU, which has the most kernels. */
const simulated = { UNIFLUID_CUDA_LIBRARY: simulatedLibrary, UNIFLUID_SIMT_CAPABILITY: "90" };
const environment = { ...process.env, ...simulated };

let folder: string;
let pack: string;
/** What packing said. */
let told: string;
// It also makes the bundles that every test here runs.
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "gpu-pack-"));
  pack = join(folder, "pack");
  const args = ["scripts/gpu.mjs", "--pack", pack, "--no-node", "--reference", "bench"];
  told = (await promised(process.execPath, args, { cwd: root })).stdout;
}, 60_000);
afterAll(() => rm(folder, { recursive: true }));

test("a pack brings the checks to a checkout without packages, where they pass on plain Node", async () => {
  expect(told).toMatch(/holds what a machine without npm needs, \d+\.\d MiB/);
  expect((await readdir(join(pack, "build"))).sort()).toEqual([
    "Release",
    "commit",
    "gpu-bench.mjs",
    "gpu-checks.cjs",
    "gpu-training.mjs",
    "reference",
  ]);
  const checkout = join(folder, "checkout");
  for (const path of ["scripts", "test/fixtures"])
    await cp(join(root, path), join(checkout, path), { recursive: true });
  // On a machine with a GPU nvcc makes the library.
  const library = join("build", "Release", "unifluid_cuda_simulated.so");
  await cp(simulatedLibrary, join(checkout, library));
  const { stdout } = await promised("sh", [join(pack, "run.sh"), "--simulated"], {
    cwd: checkout,
    env: { PATH: `${dirname(process.execPath)}:/usr/bin:/bin`, ...simulated },
  }).catch((error) => {
    throw new Error(`${error.message}\n${error.stdout}`); // which check it was
  });
  const attention = /^bf16 attention: \d+ cases/gm;
  expect(stdout.match(attention)).toHaveLength(2); // with the products of warpgroups and without
  expect(stdout).toMatch(/^float32 unifluid-flow-tiny: drawn/m);
  expect(stdout).toMatch(/^training bf16 unifluid-flow-tiny: gradients/m);
  expect(stdout).toMatch(/^all checks passed$/m);
  expect(stdout).not.toMatch(/FAIL/);
}, 300_000);

test("a step of training is measured, here on the CPU", async () => {
  const bundle = join(root, "build", "gpu-training.mjs");
  const { stdout } = await promised(process.execPath, [bundle, "--rounds", "1"]);
  expect(stdout).toMatch(/size shipped, median of 1 steps/);
  expect(stdout).toMatch(/^\| bf16 \| \d+ ms \| \d+ \| eager \| - \| - \|/m);
}, 300_000);

test("the benchmark measures what its table asks for", async () => {
  const bundle = join(root, "build", "gpu-bench.mjs");
  const { stdout } = await promised(process.execPath, [bundle, "--small"], { env: environment });
  for (const what of [
    "copy",
    "decode, 1 row",
    "head: ",
    "prefill attention",
    "bf16 product",
    "256² images",
  ])
    expect(stdout).toMatch(new RegExp(`^\\| ${what}`, "m"));
  expect(stdout).toMatch(/^\| bf16 product 128³, without wgmma/m);
  expect(stdout).toMatch(/simulated, compute capability 9\.0/);
}, 300_000);
