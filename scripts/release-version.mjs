// Makes the commit and the tag of a release, in the git repository it is started in:
//
//   npm run release:version -- 0.2.0           raises the version, dates the changelog, commits and tags
//   npm run release:version -- --check v0.2.0  fails where package, changelog and tag are not of one version
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { compareVersions } from "./elf.mjs";

const FILES = ["package.json", "package-lock.json", "CHANGELOG.md"];
const CUDA_PACKAGE = "@unifluid/cuda-linux-x64";
const UNRELEASED = "## Unreleased\n";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { check: { type: "string" } },
});
const run = (command, ...args) => execFileSync(command, args, { encoding: "utf8" }).trim();
const readJson = (file) => JSON.parse(readFileSync(file, "utf8"));

function fail(message) {
  console.error(`release: ${message}`);
  process.exit(1);
}

/** The entries of the changelog under the heading of a version, which may go on with its date. */
function entriesOf(changelog, name) {
  const [, ...sections] = changelog.split(/^## /m);
  const section = sections.find((text) => text.split(/[ \n]/, 1)[0] === name);
  return section?.slice(section.indexOf("\n")).trim() ?? "";
}

function check(tag) {
  const name = tag.replace(/^v/, "");
  for (const file of ["package.json", "package-lock.json"]) {
    const json = readJson(file);
    const { version } = json;
    if (`v${version}` !== tag) fail(`the tag is ${tag}, and ${file} has version ${version}`);
    const peer = (json.packages?.[""] ?? json).peerDependencies?.[CUDA_PACKAGE];
    if (peer && peer !== version) fail(`${file} asks for ${CUDA_PACKAGE} ${peer}, not ${version}`);
  }
  if (entriesOf(readFileSync("CHANGELOG.md", "utf8"), name) === "")
    fail(`CHANGELOG.md has no entries under "## ${name}"`);
  // The registry refuses a statement of origin that names another repository, after everything was built.
  const origin = process.env.GITHUB_REPOSITORY;
  const { repository } = readJson("package.json");
  if (origin && !(repository?.url ?? repository ?? "").includes(origin))
    fail(
      `package.json needs "repository" with the address of ${origin}: the statement of origin is held against it`,
    );
  console.log(`${tag}: package, changelog and tag agree`);
}

/** The package of the CUDA library has the same version, and belongs to no other. */
function followVersion(next) {
  for (const file of ["package.json", "package-lock.json"]) {
    const json = readJson(file);
    const peers = (json.packages?.[""] ?? json).peerDependencies;
    if (!peers?.[CUDA_PACKAGE]) continue;
    peers[CUDA_PACKAGE] = next;
    writeFileSync(file, `${JSON.stringify(json, null, 2)}\n`);
  }
}

function release(next) {
  if (!/^\d+\.\d+\.\d+$/.test(next ?? ""))
    fail(`expected a version such as 0.2.0 but received ${next ?? "nothing"}`);
  const { version: current } = readJson("package.json");
  if (compareVersions(next, current) <= 0)
    fail(`expected a version after ${current} but received ${next}`);
  const changed = run("git", "status", "--porcelain");
  if (changed) fail(`expected a clean tree, but these are not committed:\n${changed}`);
  if (run("git", "tag", "--list", `v${next}`)) fail(`the tag v${next} is there already`);
  const changelog = readFileSync("CHANGELOG.md", "utf8");
  if (entriesOf(changelog, "Unreleased") === "")
    fail("CHANGELOG.md has no entries under Unreleased: write what changed for users first");

  const date = new Date().toISOString().slice(0, 10);
  run("npm", "version", next, "--no-git-tag-version", "--ignore-scripts");
  followVersion(next);
  writeFileSync(
    "CHANGELOG.md",
    changelog.replace(UNRELEASED, `${UNRELEASED}\n## ${next} (${date})\n`),
  );
  try {
    run("git", "commit", "--quiet", "--message", `Release ${next}`, "--", ...FILES);
    run("git", "tag", "--annotate", `v${next}`, "--message", `Version ${next}`);
  } catch {
    fail(
      `git's message is above. To undo what was written: git restore --staged --worktree ${FILES.join(" ")}`,
    );
  }
  console.log(`v${next} is committed and tagged. Look at it, then publish it:

  git show v${next}
  git push --atomic origin HEAD v${next}`);
}

if (values.check) check(values.check);
else release(positionals[0]);
