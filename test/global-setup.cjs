/** Builds dist/ where it is older than the sources: the end-to-end tests run what a user runs. */

const { execFileSync } = require("node:child_process");
const { readdirSync, statSync } = require("node:fs");
const { join } = require("node:path");

const root = join(__dirname, "..");

function modified(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

module.exports = () => {
  const sources = readdirSync(join(root, "lib"), { recursive: true }).map((name) =>
    join(root, "lib", name),
  );
  const newest = Math.max(...sources.map(modified));
  if (modified(join(root, "dist", "index.mjs")) > newest) return;
  const tsc = require.resolve("typescript/bin/tsc");
  execFileSync(process.execPath, [tsc, "-p", "tsconfig.build.json"], {
    cwd: root,
    stdio: "inherit",
  });
  execFileSync(process.execPath, ["scripts/finish-dist.mjs"], { cwd: root, stdio: "inherit" });
};
