/** What a terminal shows while a command is at work: bars come and go, and lines stay. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "../../lib/cli/program";
import { startRecords } from "../../lib/cli/progress";
import { Screen } from "../support/screen";

let folder: string;
let screen: Screen;
let isTTY: boolean;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "unifluid-terminal-"));
  screen = new Screen();
  for (const stream of [process.stdout, process.stderr]) {
    jest.spyOn(stream, "write").mockImplementation((text, encoding, done) => {
      screen.write(String(text));
      const written = typeof encoding === "function" ? encoding : done;
      written?.();
      return true;
    });
  }
  ({ isTTY } = process.stderr);
  process.stderr.isTTY = true;
});
afterEach(() => {
  process.stderr.isTTY = isTTY;
  jest.restoreAllMocks();
  rmSync(folder, { recursive: true, force: true });
});

test("names of files stay, however the bar moves between them", async () => {
  const out = join(folder, "x.png");
  const grid = join(folder, "sheet.png");
  const args = ["generate", "a star", "a heart", "a circle", "-n", "20", "--steps", "1"];
  await run([...args, "--out", out, "--grid", grid, "--seed", "1"]);
  const names = Array.from({ length: 60 }, (_, i) =>
    join(folder, `x-${String(i + 1).padStart(4, "0")}.png`),
  );
  expect(screen.lines).toEqual([
    ...names,
    grid,
    expect.stringMatching(/^unifluid: 60 images from seed 1, [\d.]+ s$/),
    "",
  ]);
});

test("lines between the steps of a bar of records stay", () => {
  const progress = startRecords({ json: false, quiet: false, signal: AbortSignal.abort() }, 4);
  for (const line of ["first", "second"]) {
    progress.step("done");
    progress.clear();
    process.stderr.write(`${line}\n`);
    progress.step("failed");
  }
  expect(screen.lines.slice(0, 2)).toEqual(["first", "second"]);
  expect(screen.lines[2]).toMatch(/4 of 4, 2 failed/);
  progress.stop();
  expect(screen.lines).toEqual(["first", "second", ""]);
});
