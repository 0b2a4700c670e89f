/** A command that is stopped while the system does not answer a read, as on a network disk that is gone. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { writeDataset } from "../../lib/scenes/dataset";

test("SIGTERM ends a training run, though a picture is never read", async () => {
  const folder = await mkdtemp(join(tmpdir(), "unifluid-blocked-"));
  try {
    const data = join(folder, "data");
    await writeDataset(data, { count: 2, seed: 1n, tasks: ["generate"] });
    // Opening a pipe that nobody writes blocks a thread of Node's.
    const blocked = join(data, "images", "000001.png");
    await rm(blocked);
    execFileSync("mkfifo", [blocked]);
    const run = {
      model: "shapes-64",
      sources: [{ manifest: join(data, "generate.jsonl"), examples: 1, shuffle: 1 }],
      steps: 50,
      learningRate: 1e-4,
    };
    await writeFile(join(folder, "run.yaml"), stringify(run));
    const main = join(__dirname, "../../dist/cli/main.js");
    const child = spawn(process.execPath, [main, "train", "run.yaml", "--out", "run"], {
      cwd: folder,
      stdio: ["ignore", "ignore", "pipe"],
    });
    let told = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      // After the step that needs no other picture, or before it.
      if (!told.includes("done") && (told + text).includes("done"))
        setTimeout(() => child.kill("SIGTERM"), 1500);
      told += text;
    });
    const patience = setTimeout(() => child.kill("SIGKILL"), 40_000);
    const [code, signal] = await once(child, "close");
    clearTimeout(patience);
    expect(told).toMatch(/INTERRUPTED: terminated/);
    expect(code === 143 || signal === "SIGTERM").toBe(true);
  } finally {
    await rm(folder, { recursive: true });
  }
});
