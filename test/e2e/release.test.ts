/** What makes a release: its version and tag, its notices, its report, and a package that is the same bytes twice. */

import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { promisify } from "node:util";

const execute = promisify(execFile);
const root = join(__dirname, "../..");
const script = (name: string) => join(root, "scripts", name);

let work: string;
beforeEach(() => {
  work = mkdtempSync(join(tmpdir(), "unifluid-release-"));
});
afterEach(() => rmSync(work, { recursive: true, force: true }));

describe("a version", () => {
  const env = {
    ...process.env,
    GIT_CONFIG_GLOBAL: "/dev/null",
    GIT_CONFIG_NOSYSTEM: "1",
    GITHUB_REPOSITORY: undefined as string | undefined,
    ...Object.fromEntries(
      ["AUTHOR", "COMMITTER"].flatMap((who) => [
        [`GIT_${who}_NAME`, "Test"],
        [`GIT_${who}_EMAIL`, "test@example.com"],
      ]),
    ),
  };
  const git = async (...args: string[]) =>
    (await execute("git", args, { cwd: work, env })).stdout.trim();
  const release = (...args: string[]) =>
    execute(process.execPath, [script("release-version.mjs"), ...args], { cwd: work, env });
  const write = (name: string, text: string) => writeFileSync(join(work, name), text);
  const read = (name: string) => readFileSync(join(work, name), "utf8");
  const CHANGELOG = "# Changelog\n\n## Unreleased\n\n- Draws circles.\n\n## 0.1.0\n\nFirst.\n";

  beforeEach(async () => {
    const peerDependencies = { "@unifluid/cuda-linux-x64": "0.1.0", other: "^1.0.0" };
    const manifest = { name: "thing", version: "0.1.0", peerDependencies };
    write("package.json", `${JSON.stringify(manifest, null, 2)}\n`);
    const lock = { ...manifest, lockfileVersion: 3, requires: true, packages: { "": manifest } };
    write("package-lock.json", `${JSON.stringify(lock, null, 2)}\n`);
    write("CHANGELOG.md", CHANGELOG);
    await git("init", "--quiet");
    await git("add", ".");
    await git("commit", "--quiet", "--message", "first");
  });

  test("is written where it stands, dated, committed and tagged", async () => {
    const { stdout } = await release("0.2.0");
    expect(stdout).toContain("git push --atomic origin HEAD v0.2.0");
    // The package of the CUDA library goes along.
    const raised = {
      version: "0.2.0",
      peerDependencies: { "@unifluid/cuda-linux-x64": "0.2.0", other: "^1.0.0" },
    };
    expect(JSON.parse(read("package.json"))).toMatchObject(raised);
    expect(JSON.parse(read("package-lock.json"))).toMatchObject({
      version: "0.2.0",
      packages: { "": raised },
    });
    expect(read("CHANGELOG.md").replace(/\d{4}-\d\d-\d\d/, "DATE")).toBe(
      "# Changelog\n\n## Unreleased\n\n## 0.2.0 (DATE)\n\n- Draws circles.\n\n## 0.1.0\n\nFirst.\n",
    );
    expect(await git("status", "--porcelain")).toBe("");
    expect(await git("log", "-1", "--format=%s")).toBe("Release 0.2.0");
    expect(await git("rev-parse", "v0.2.0^{commit}")).toBe(await git("rev-parse", "HEAD"));
    expect((await release("--check", "v0.2.0")).stdout).toContain("agree");
  });

  test.each<[string, () => unknown, string, RegExp]>([
    ["that is none", () => 0, "0.2", /expected a version such as 0\.2\.0 but received 0\.2/],
    ["that is older", () => 0, "0.0.9", /expected a version after 0\.1\.0 but received 0\.0\.9/],
    ["that is the same", () => 0, "0.1.0", /expected a version after 0\.1\.0/],
    ["from a changed tree", () => write("new.txt", ""), "0.2.0", /not committed:\n\?\? new\.txt/],
    ["that is tagged", () => git("tag", "v0.2.0"), "0.2.0", /the tag v0\.2\.0 is there already/],
    [
      "without changes for users",
      async () => {
        write("CHANGELOG.md", CHANGELOG.replace("- Draws circles.\n\n", ""));
        await git("commit", "--quiet", "--all", "--message", "none");
      },
      "0.2.0",
      /no entries under Unreleased/,
    ],
  ])("%s is refused, and nothing is written", async (_, prepare, version, message) => {
    await prepare();
    const before = await git("rev-parse", "HEAD");
    await expect(release(version)).rejects.toMatchObject({
      code: 1,
      stderr: expect.stringMatching(message),
    });
    expect(await git("rev-parse", "HEAD")).toBe(before);
    expect(JSON.parse(read("package.json")).version).toBe("0.1.0");
  });

  test("a tag that does not fit is refused before anything is published", async () => {
    const refused = (message: RegExp) =>
      expect.objectContaining({ code: 1, stderr: expect.stringMatching(message) });
    await expect(release("--check", "v0.2.0")).rejects.toEqual(
      refused(/the tag is v0\.2\.0, and package\.json has version 0\.1\.0/),
    );
    expect((await release("--check", "v0.1.0")).stdout).toContain("agree");
    env.GITHUB_REPOSITORY = "somebody/thing";
    await expect(release("--check", "v0.1.0")).rejects.toEqual(
      refused(/package\.json needs "repository" with the address of somebody\/thing/),
    );
    env.GITHUB_REPOSITORY = undefined;
    write("CHANGELOG.md", "# Changelog\n\n## 0.1.0\n");
    await expect(release("--check", "v0.1.0")).rejects.toEqual(
      refused(/no entries under "## 0\.1\.0"/),
    );
  });
});

test("without the binaries of both machines nothing is published, by hand either", async () => {
  for (const name of ["package.json", "scripts/check-binary.mjs", "scripts/elf.mjs"]) {
    mkdirSync(dirname(join(work, name)), { recursive: true });
    copyFileSync(join(root, name), join(work, name));
  }
  await expect(execute("npm", ["publish", "--dry-run"], { cwd: work })).rejects.toMatchObject({
    stderr: expect.stringMatching(
      /linux-x64\/unifluid\.node: not there\n.*linux-arm64\/unifluid\.node: not there\n/,
    ),
  });
});

test("the notices of other people's work are those of the lock file", async () => {
  await execute(process.execPath, [script("notices.mjs"), "--check"]);
  const notices = readFileSync(join(root, "THIRD_PARTY_NOTICES.md"), "utf8");
  const { dependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  for (const name of Object.keys(dependencies)) expect(notices).toContain(`| ${name} | `);
  for (const name of ["node-addon-api", "node-api-headers"])
    expect(notices).toContain(`### ${name}`);
  // The resampling follows Pillow's, whose license asks for its own words.
  expect(notices).toMatch(
    /### Pillow .*> Copyright © 1997-2011 by Secret Labs AB.*MIT-CMU License/s,
  );
});

test("docs/release.md lists the files and the exported names that there are", async () => {
  await execute(process.execPath, [script("release-report.mjs"), "--check"]);
  const other = join(work, "release.md");
  await execute(process.execPath, [script("release-report.mjs"), "--out", other]);
  expect(readFileSync(other, "utf8")).toMatch(/\| packed \| \d+\.\d MB \|/);
  // It is written before the version is raised, and would name the one before.
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  expect(readFileSync(other, "utf8")).not.toContain(version);
  writeFileSync(other, readFileSync(other, "utf8").replace("addon.cpp, ", ""));
  await expect(
    execute(process.execPath, [script("release-report.mjs"), "--check", "--out", other]),
  ).rejects.toMatchObject({ stderr: expect.stringContaining("npm run release:report") });
});

test("the package is the same bytes from another folder, at another time, with another umask", async () => {
  const pack = async (from: string, to: string) => {
    mkdirSync(join(work, to));
    const args = ["pack", from, "--json", "--ignore-scripts", "--pack-destination", join(work, to)];
    const { stdout } = await execute("npm", args, { cwd: work, maxBuffer: 1 << 24 });
    return join(work, to, (JSON.parse(stdout) as [{ filename: string }])[0].filename);
  };
  const hash = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
  const first = await pack(root, "first");

  // Written the other way round, so that the file system may list them in another order.
  const unpacked = join(work, "unpacked");
  mkdirSync(unpacked);
  await execute("tar", ["-xzf", first, "-C", unpacked, "--strip-components=1"]);
  const copy = join(work, "copy");
  const files = readdirSync(unpacked, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(unpacked, join(entry.parentPath, entry.name)))
    .reverse();
  expect(files.length).toBeGreaterThan(100);
  for (const [i, file] of files.entries()) {
    const to = join(copy, file);
    mkdirSync(dirname(to), { recursive: true });
    writeFileSync(to, readFileSync(join(unpacked, file)));
    // The bits for the group are the umask's, the one to execute the build's own.
    const { mode } = statSync(join(unpacked, file));
    chmodSync(to, i % 2 === 0 ? mode | 0o020 : mode);
    utimesSync(to, 1e9 + i, 1e9 + i);
  }
  expect(hash(await pack(copy, "second"))).toBe(hash(first));
});
