// What the benchmarks have in common: how a figure comes of several, what it is measured with, and of which commit.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** The one in the middle; of an even number, the mean of the two. */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** That `run` takes. */
export async function seconds(run) {
  const begin = process.hrtime.bigint();
  await run();
  return Number(process.hrtime.bigint() - begin) / 1e9;
}

/** Of the checkout, or of the pack that brought this program; "unknown" where there is neither. */
export function commit() {
  const root = fileURLToPath(new URL("..", import.meta.url));
  const packed = join(root, "build", "commit");
  if (existsSync(packed)) return readFileSync(packed, "utf8").trim();
  const { status, stdout } = spawnSync("git", ["rev-parse", "--short", "HEAD"], { cwd: root });
  return status === 0 ? stdout.toString().trim() : "unknown";
}
