/** What `npm run gpu` runs on a device, on the simulated library: the checks, and the benchmark in small. */
import { execFile } from "node:child_process";
import { cp, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { simulatedLibrary } from "../support/ops";
import { families } from "./cases";
import { QUICK } from "./cases/quick";

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
  const leftOut = ["--no-node", "--no-library"];
  const args = ["scripts/gpu.mjs", "--pack", pack, ...leftOut, "--reference", "bench"];
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
  expect(stdout).toMatch(/^opening: done/m);
  expect(stdout).toMatch(/^checks: done/m);
  const attention = /^bf16 attention: \d+ cases;/gm;
  expect(stdout.match(attention)).toHaveLength(2); // with the products of warpgroups and without
  expect(stdout).toMatch(/^float32 unifluid-flow-tiny: drawn/m);
  expect(stdout).toMatch(/^bfloat16 unifluid-flow-tiny: drawn, edited, written/m);
  expect(stdout).toMatch(/^f32 training_operations: \d+ cases;/m);
  expect(stdout).toMatch(/^training bf16 unifluid-flow-tiny: gradients/m);
  expect(stdout).toMatch(/^training f32 gemma1: gradients/m);
  for (const precision of ["float32", "bfloat16"])
    for (const name of ["gemma-tiny", "paligemma-tiny", "vae-tiny"])
      expect(stdout).toMatch(new RegExp(`^parity ${precision} ${name}: [1-9]\\d* results`, "m"));
  expect(stdout).toMatch(/^all checks passed$/m);
  expect(stdout).not.toMatch(/FAIL/);
}, 1_200_000);

test("what sanitizers run is among the cases", () => {
  expect(Object.keys(QUICK).sort()).toEqual(Object.keys(families).sort());
  for (const [family, names] of Object.entries(QUICK)) {
    const all = families[family]!.cases.map(({ name }) => name);
    expect(all).toEqual(expect.arrayContaining(names));
  }
});

test("a check that fails is named, and those after it run", async () => {
  const models = [join(root, "test", "fixtures"), join(root, "models", "shapes-64")];
  const args = [join(root, "build", "gpu-checks.cjs"), join(folder, "no-library.so"), ...models];
  const release = join(root, "build", "Release");
  const found = await promised(process.execPath, [...args, "--quick", "--simulated"], {
    env: {
      ...process.env,
      UNIFLUID_NATIVE: join(release, "unifluid.node"),
      UNIFLUID_TEST_ADDON: join(release, "unifluid_test.node"),
    },
  }).catch((error) => error);
  expect(found.code).toBe(1);
  expect(found.stdout).toMatch(/^FAIL open: /m);
  expect(found.stdout).toMatch(/^FAIL parity bfloat16: /m);
  expect(found.stdout).toMatch(/^\d+ checks FAILED: open; attention; .*; training f32 variants$/m);
}, 120_000);

test("a step that fails or never ends does not end the rest, and is in the summary", async () => {
  const program = `
    import { Steps } from "./scripts/gpu-steps.mjs";
    const steps = new Steps({ budget: 120, cwd: ".", env: { SAID: "so" } });
    const node = (title, script, limits) => steps.run(title, process.execPath, ["-e", script], limits);
    await node("fails", "process.exit(3)", { limit: 60 });
    await node("hangs", "setInterval(() => {}, 1000)", { limit: 1 });
    await steps.run("is not there", "./no-such-program", [], { limit: 60 });
    await node("succeeds", "if (process.env.SAID !== 'so') process.exit(1)", { limit: 60 });
    await node("is long", "", { limit: 600, least: 500 });
    process.exitCode = steps.summarize() === 3 ? 0 : 1;
  `;
  const args = ["--input-type=module", "-e", program];
  const { stdout } = await promised(process.execPath, args, { cwd: root });
  const summary = stdout.slice(stdout.indexOf("== summary"));
  expect(summary).toMatch(/^fails: FAILED: it ended with status 3/m);
  expect(summary).toMatch(/^hangs: FAILED: not done within 1 s/m);
  expect(summary).toMatch(/^is not there: FAILED: .* did not start/m);
  expect(summary).toMatch(/^succeeds: done/m);
  expect(summary).toMatch(/^is long: skipped: no time is left for it/m);
}, 60_000);

test("programs prepare beside other steps, stand still in each other's turn, and end in time", async () => {
  const program = `
    import { Steps } from "./scripts/gpu-steps.mjs";
    const steps = new Steps({ budget: 120, cwd: ".", env: {} });
    const own = (name) => "process.stdin.once('data', (line) => { console.log('" + name + " has ' + line);" +
      "setTimeout(() => process.exit(), 500); }); setInterval(() => console.log('" + name + " lives'), 50)";
    const prepare = (name, script) => steps.prepare(name, process.execPath, ["-e", script]);
    const [first, second] = ["first", "second"].map((name) => prepare(name, own(name)));
    const deaf = prepare("deaf", "setInterval(() => {}, 1000)");
    const never = prepare("never", "setInterval(() => {}, 1000)");
    const together = [["fails", "process.exit(4)"], ["succeeds", "setTimeout(() => {}, 500)"]];
    await steps.runTogether("two", process.execPath,
      together.map(([title, script]) => ({ title, args: ["-e", script] })), { limit: 60 });
    await steps.finish(first, { limit: 60, keep: 70 });
    await steps.finish(second, { limit: 20 });
    await steps.finish(deaf, { limit: 1 });
    await steps.finish(never, { limit: 600, least: 500 });
    await never.program.ended;
    process.exitCode = steps.summarize() === 2 && steps.running.size === 0 ? 0 : 1;
  `;
  const args = ["--input-type=module", "-e", program];
  const { stdout } = await promised(process.execPath, args, { cwd: root });
  const summary = stdout.slice(stdout.indexOf("== summary"));
  expect(summary).toMatch(/^fails: FAILED: it ended with status 4/m);
  for (const title of ["succeeds", "first", "second"])
    expect(summary).toMatch(new RegExp(`^${title}: done`, "m"));
  expect(summary).toMatch(/^deaf: FAILED: not done within 1 s/m);
  expect(summary).toMatch(/^never: skipped: no time is left for it/m);
  const turn = stdout.slice(stdout.indexOf("== first\n"), stdout.indexOf("== second\n"));
  expect(turn).toMatch(/^first has 4\d$/m);
  expect(turn.slice(turn.indexOf("first has"), turn.indexOf("== first: done"))).not.toMatch(
    /second lives/,
  );
  expect(stdout).toMatch(/^second lives$/m);
}, 60_000);

/** A program in Python, run as JavaScript, dies at once. */
const deadPeer = ["--python", process.execPath, "--reference", "bench"];

test("a step of training is measured, here on the CPU, also when PyTorch's program dies", async () => {
  const bundle = join(root, "build", "gpu-training.mjs");
  const args = [bundle, "--rounds", "1", ...deadPeer, "--wait"];
  const running = promised(process.execPath, args, { cwd: root });
  running.child.stdin!.end("290\n"); // its turn has come
  const { stdout } = await running;
  expect(stdout).toMatch(/size shipped, median of 1 steps/);
  expect(stdout).toMatch(/^\| bf16 \| \d+ ms \| \d+ \| eager \| - \| - \|/m);
  expect(stdout).toMatch(/^\| bf16 \| \d+ ms \| \d+ \| eager \| failed: the program ended/m);
}, 300_000);

test("the benchmark measures what its table asks for", async () => {
  const bundle = join(root, "build", "gpu-bench.mjs");
  const out = join(folder, "out");
  const running = promised(process.execPath, [bundle, "--small", ...deadPeer, "--wait"], {
    cwd: root,
    env: { ...environment, OUT: out },
  });
  running.child.stdin!.end("590\n"); // its turn has come
  const { stdout } = await running;
  for (const what of [
    "copy",
    "one product of 1 row",
    "decode, 1 row: a step of unifluid-2b, \\d\\.\\d\\d GB of weights in .* % of the copy",
    "head: ",
    "prefill attention",
    "bf16 product",
    "256² images",
  ])
    expect(stdout).toMatch(new RegExp(`^\\| ${what}`, "m"));
  expect(stdout).toMatch(/^\| bf16 product 128³, without wgmma/m);
  expect(stdout).toMatch(/simulated, compute capability 9\.0/);
  // The same in the file, which was written after each figure.
  const written = await readFile(join(out, "simulated-run.md"), "utf8");
  expect(written).toMatch(/^\| bf16 product 128³, without wgmma/m);
  expect(written).toMatch(/^\| bf16 product 128³ .* \| failed: the program ended/m);
}, 600_000);

test.each([
  [
    "products of warpgroups that round otherwise are forced",
    "ROUNDING",
    "with wgmma, forced \\| \\d",
  ],
  [
    "a fault is in the table, and what it took",
    "FAIL",
    "^\\| copy and decode \\| failed: CUDA error while launching a kernel[^]*" +
      '^\\| head \\| failed: not run: the device had failed at "copy and decode"',
  ],
])(
  "%s",
  async (_, setting, row) => {
    const bundle = join(root, "build", "gpu-bench.mjs");
    const args = [bundle, "--small", "--only", "ops,head"];
    const env = { ...environment, [`UNIFLUID_SIMT_${setting}`]: "1" };
    const found = await promised(process.execPath, args, { env }).catch((error) => error);
    expect(found.stdout).toMatch(new RegExp(row, "m"));
  },
  120_000,
);
