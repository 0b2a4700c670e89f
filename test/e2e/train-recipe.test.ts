/** The recipe of `examples/train`, command by command as its page has it, with few scenes and few steps. */
import { execFile } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { parse, stringify } from "yaml";

const execute = promisify(execFile);
const root = join(__dirname, "../..");
const recipe = join(root, "examples/train");

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "unifluid-recipe-"));
  cpSync(recipe, folder, { recursive: true });
});
afterAll(() => rmSync(folder, { recursive: true }));

/** The runs' settings. */
const RUNS = [
  "autoencoder.yaml",
  "run.yaml",
  "finer-run.yaml",
  "crowded-run.yaml",
  "longer-run.yaml",
  "stars-run.yaml",
  "noisy-run.yaml",
  "threes-run.yaml",
  "decoder.yaml",
  "edits-run.yaml",
];
/** Steps of the short runs; the page's own are exchanged for them. */
const SHORT = 2;
const short = (step: number) => `step-${String(step).padStart(8, "0")}`;

/** The page's commands on fewer scenes, with the names of the short runs' checkpoints. */
function commands(): string[] {
  const page = readFileSync(join(recipe, "README.md"), "utf8");
  const blocks = [...page.matchAll(/^```sh\n([\s\S]*?)^```/gm)].map(([, block]) => block!);
  return blocks.flatMap((block) =>
    block
      .trimEnd()
      .split("\n")
      .map((line) =>
        line
          .replace(/--count \d+/, "--count 30")
          .replace(/--scenes \d+/, "--scenes 1")
          .replace(/step-\d{8}/g, short(SHORT)),
      ),
  );
}

test("its settings are those of whole runs, and its commands name their ends", () => {
  const page = readFileSync(join(recipe, "README.md"), "utf8");
  const settings = RUNS.map((name) => readFileSync(join(recipe, name), "utf8"));
  const steps = settings.map((text) => parse(text).steps as number);
  const names = [page, ...settings].flatMap((text) => [...text.matchAll(/step-\d{8}/g)]);
  const named = new Set(names.map(([name]) => name));
  expect([...named].sort()).toEqual(steps.map(short).sort());
  for (const name of readdirSync(recipe).filter((file) => file.endsWith(".yaml")))
    expect(page).toContain(name);
});

test("each command does its part", async () => {
  for (const name of RUNS) {
    const settings = parse(readFileSync(join(recipe, name), "utf8"));
    const samples = { ...settings.samples, every: SHORT };
    const checkpoint = { every: SHORT, keep: 1 };
    const shorter = (path?: string) => path?.replace(/step-\d{8}/, short(SHORT));
    const start = settings.autoencoder
      ? { autoencoder: shorter(settings.autoencoder) }
      : { model: shorter(settings.model) };
    const changed = { ...settings, ...start, steps: SHORT, checkpoint, samples };
    writeFileSync(join(folder, name), stringify(changed));
  }
  const all = commands();
  expect(all.length).toBeGreaterThan(9);
  for (const command of all) {
    const line = command.replace(
      /^npx unifluid/,
      `"${process.execPath}" "${root}/dist/cli/main.js"`,
    );
    expect(command).toMatch(/^(npx unifluid|cp) /);
    await execute("bash", ["-c", line], { cwd: folder }).catch((error) => {
      throw new Error(`${command}\n${error.stderr}`);
    });
  }
  const runs = RUNS.map((name) => name.replace(/(-run)?\.yaml$/, "-run").replace(/^run-/, ""));
  for (const run of runs) {
    expect(readdirSync(join(folder, run, "checkpoints"))).toEqual([short(SHORT)]);
    expect(readdirSync(join(folder, run, "samples"))).toEqual([`${short(SHORT)}.png`]);
    expect(existsSync(join(folder, run, "report.html"))).toBe(true);
  }
  const evaluation = JSON.parse(readFileSync(join(folder, "evaluation.json"), "utf8"));
  expect(evaluation.vae.psnr).toBeGreaterThan(0);
  expect(existsSync(join(folder, "drawn.png"))).toBe(true);
}, 600_000);
