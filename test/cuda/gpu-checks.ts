/**
 * Checks of a CUDA library on plain Node, without jest: every operation beside the CPU, those of training too, rows alone
 * beside rows in company, whole models beside the CPU and beside the reference's fixtures, steps of training. `npm run gpu` bundles and runs it; the exit code tells.
 *
 *   node gpu-checks.cjs LIBRARY TINY SHIPPED [--quick] [--simulated] [--limit SECONDS] [--budget SECONDS] [--jobs N]
 *   node gpu-checks.cjs LIBRARY TINY SHIPPED --only NAME
 *
 * TINY: a folder with the tiny checkpoints and what the reference computed of them; SHIPPED: the model that ships, which only a device is fast enough for.
 * --quick: each kernel once or twice. Each check is a process of its own, which may take --limit seconds: a fault of
 * the device ends its process, a kernel that waits forever is waited for so long, and the rest is still checked. --jobs: as
 * many at a time; most of a check is the CPU's side of the comparison and the opening of the device.
 * --only: one check, in this process; "open" only opens a backend and multiplies, "kernels" is all of --quick's cases.
 */
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { BEGUN, DeviceChecks, WARPGROUPS } from "../support/device-checks";
import { families, WARPGROUP_FAMILIES } from "./cases";

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: "boolean", default: false },
    simulated: { type: "boolean", default: false },
    only: { type: "string" },
    limit: { type: "string", default: "60" },
    budget: { type: "string", default: "Infinity" },
    jobs: { type: "string" },
  },
});
const [library, models, shipped] = positionals as [string, string, string];
process.env.UNIFLUID_CUDA_LIBRARY = library;
const end = performance.now() + 1000 * Number(flags.budget);

type Check = (checks: DeviceChecks) => void | Promise<void>;

/** By name, in the order in which they run: what tells most comes first, in case time ends. */
const CHECKS = new Map<string, Check>([["open", (checks) => checks.open()]]);
for (const family of Object.keys(families)) CHECKS.set(family, (checks) => checks.family(family));
const tiny = flags.quick ? ["unifluid-flow-tiny"] : ["unifluid-tiny", "unifluid-flow-tiny"];
const PRECISIONS = ["float32", "bfloat16"] as const;
for (const name of tiny)
  for (const dtype of PRECISIONS)
    CHECKS.set(`${dtype} ${name}`, (checks) => checks.model(join(models, name), dtype));
for (const name of tiny)
  for (const compute of ["f32", "bf16"] as const)
    CHECKS.set(`training ${compute} ${name}`, (checks) =>
      checks.training(join(models, name), compute, false),
    );
CHECKS.set("training autoencoder", (checks) =>
  checks.training(join(models, "vae-tiny"), "f32", true),
);
// The fixtures of the reference; of the quick ones those that are made otherwise than the models above.
const fixtures = flags.quick
  ? ["gemma-tiny", "paligemma-tiny", "vae-tiny"]
  : readdirSync(models).filter((name) => name.endsWith("-tiny"));
for (const dtype of PRECISIONS)
  CHECKS.set(`parity ${dtype}`, async (checks) => {
    for (const name of fixtures) await checks.parity(name, models, dtype);
  });
const variants = readdirSync(join(models, "training", "variants"));
CHECKS.set("training f32 variants", async (checks) => {
  for (const name of flags.quick ? variants.slice(0, 1) : variants)
    await checks.training(join(models, "training", "variants", name), "f32", false);
});
if (!flags.simulated && !flags.quick) {
  CHECKS.set("float32 shipped model", (checks) => checks.model(shipped, "float32"));
  for (const dtype of PRECISIONS)
    CHECKS.set(`parity ${dtype} shipped model`, (checks) =>
      checks.parity("shapes-64", models, dtype, shipped),
    );
}

/** In this process. */
async function runHere(name: string): Promise<boolean> {
  const every: Check = (checks) => checks.everyKernel();
  const check = name === "kernels" ? every : CHECKS.get(name);
  if (!check)
    throw new Error(`expected --only to be kernels, ${[...CHECKS.keys()].join(", ")}: not ${name}`);
  const quick = flags.quick || name === "kernels";
  const checks = new DeviceChecks({ library, quick, simulated: flags.simulated });
  await check(checks);
  return checks.failures === 0;
}

const failed: string[] = [];

/** In a process of its own. Returns what it printed. */
async function runApart(name: string, environment: Record<string, string> = {}): Promise<string> {
  const title = [name, ...Object.entries(environment).map((entry) => entry.join("="))].join(" ");
  const left = (end - performance.now()) / 1000;
  const seconds = Math.min(Number(flags.limit), left);
  if (seconds < 1) {
    console.log(`FAIL ${title}: no time is left for it`);
    failed.push(title);
    return "";
  }
  const child = spawn(process.execPath, [...process.argv.slice(1), "--only", name], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, ...environment },
  });
  let printed = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    printed += text;
  });
  let late = false;
  const status = await new Promise<number | null>((resolve) => {
    const timer = setTimeout(() => {
      late = true;
      child.kill("SIGKILL");
      resolve(null); // what waits in the driver may outlive the signal
    }, 1000 * seconds);
    child.once("close", (code) => {
      clearTimeout(timer);
      resolve(code);
    });
  });
  const begun = (line: string) => line.startsWith(BEGUN);
  const lines = printed.split("\n");
  console.log([`-- ${title}`, ...lines.filter((line) => line && !begun(line))].join("\n"));
  if (status !== 0) {
    const last = lines.filter(begun).pop()?.slice(BEGUN.length) ?? "its beginning";
    if (late) console.log(`FAIL ${title}: not done within ${seconds.toFixed(0)} s, at ${last}`);
    else if (status !== 1) console.log(`FAIL ${title}: its process died, at ${last}`);
    failed.push(title);
  }
  return printed;
}

async function runAll(): Promise<boolean> {
  const description = await runApart("open");
  const waiting: [string, Record<string, string>?][] = [];
  for (const name of CHECKS.keys()) if (name !== "open") waiting.push([name]);
  // On Hopper, beside what the device chose, the other kernels; before whole models, which take longer.
  if (description.includes("compute capability 9.0")) {
    const other = /, wgmma$/m.test(description) ? "0" : "1";
    const again = WARPGROUP_FAMILIES.map((family): [string, Record<string, string>] => [
      family,
      { [WARPGROUPS]: other },
    ]);
    waiting.splice(Object.keys(families).length, 0, ...again);
  }
  const jobs = Number(flags.jobs ?? (flags.simulated ? 1 : Math.ceil(availableParallelism() / 4)));
  const worker = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) await runApart(...next);
  };
  await Promise.all(Array.from({ length: jobs }, worker));
  if (failed.length > 0) console.log(`${failed.length} checks FAILED: ${failed.join("; ")}`);
  else console.log("all checks passed");
  return failed.length === 0;
}

async function main(): Promise<boolean> {
  return flags.only === undefined ? runAll() : await runHere(flags.only);
}

// What a fault left open must not keep the process.
main().then(
  (right) => process.exit(right ? 0 : 1),
  (error) => {
    console.log(`FAIL ${flags.only ?? "checks"}: ${error.stack}`);
    process.exit(1);
  },
);
