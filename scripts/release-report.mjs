// Writes docs/release.md: what the package holds, how large it is, and what its binaries give and need.
//
//   npm run release:report [-- --out FILE] [--check]
//
// It reports on the binaries under prebuilds/ where there are some, as a release has them, else on this machine's
// build/Release. --check writes nothing and fails where the list of files or of exported names is not the written one.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { floorOf, readSharedObject } from "./elf.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values } = parseArgs({
  options: {
    out: { type: "string", default: join(root, "docs", "release.md") },
    check: { type: "boolean", default: false },
  },
});

/** "1.2 MB": sizes in powers of 1000, as npm prints them. */
function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** What `npm pack` would write: { size, unpackedSize, files: [{ path, size }] }. */
function packed() {
  const args = ["pack", "--dry-run", "--json", "--ignore-scripts"];
  const options = { cwd: root, encoding: "utf8", maxBuffer: 1 << 24 };
  // npm tells the list on stderr as well.
  return JSON.parse(
    execFileSync("npm", args, { ...options, stdio: ["ignore", "pipe", "ignore"] }),
  )[0];
}

function binaries() {
  const prebuilds = join(root, "prebuilds");
  if (existsSync(prebuilds)) {
    return readdirSync(prebuilds)
      .sort()
      .map((target) => join(prebuilds, target, "unifluid.node"));
  }
  return [join(root, "build", "Release", "unifluid.node")];
}

const pack = packed();
const isBinary = ({ path }) => path.startsWith("prebuilds/");
const addons = binaries().map((path) => ({
  path: relative(root, path),
  ...readSharedObject(path),
}));
const exported = [...new Set(addons.flatMap((addon) => addon.exported))].sort();

/** Folder => its files, the binaries left out: a clone has none, or those of one machine. */
const folders = new Map();
for (const file of pack.files.filter((one) => !isBinary(one))) {
  const folder = dirname(file.path);
  folders.set(folder, [...(folders.get(folder) ?? []), { ...file, name: basename(file.path) }]);
}
const named = [...folders]
  .map(([folder, files]) => [folder === "." ? "(top)" : `${folder}/`, files])
  .sort(([a], [b]) => (a < b ? -1 : 1));
const total = (files) => size(files.reduce((sum, file) => sum + file.size, 0));

/** What is the same on every machine; `--check` looks at this. */
const stable = `## Exported names

An addon gives these names and no others; \`npm run check:binary\` fails where it gives more.

${exported.map((name) => `- \`${name}\``).join("\n")}

## Files

Besides the binaries under \`prebuilds/\`:

${named.map(([folder, files]) => `- \`${folder}\`: ${files.map(({ name }) => name).join(", ")}`).join("\n")}
`;

const text = `# What a release holds

Written by \`npm run release:report\`; not edited by hand. The sizes are those of the tree it was run in, whose binaries
are named below. A test holds the exported names and the list of files against the package.

## Size

| | |
| --- | --- |
| version | ${pack.version} |
| packed | ${size(pack.size)} |
| unpacked | ${size(pack.unpackedSize)} |
| files | ${pack.files.length}, of which ${pack.files.filter(isBinary).length} are binaries |

| folder | files | size |
| --- | --- | --- |
${[...named, ["prebuilds/", pack.files.filter(isBinary)]]
  .map(([folder, files]) => `| \`${folder}\` | ${files.length} | ${total(files)} |`)
  .join("\n")}

## Binaries

What each needs of a system, the newest version of the symbols that it takes from each library:

| binary | machine | size | glibc | libstdc++ |
| --- | --- | --- | --- | --- |
${addons
  .map(
    ({ path, machine, versions }) =>
      `| \`${path}\` | ${machine} | ${size(statSync(join(root, path)).size)} | ${floorOf(versions, "GLIBC")} | GLIBCXX_${floorOf(versions, "GLIBCXX")} |`,
  )
  .join("\n")}

Those of a published release are built in a container with glibc 2.28, and the workflow fails where one needs more than
glibc 2.28 or GLIBCXX_3.4.25 (that of GCC 8). A build on another system, such as the one above may be, needs what that
system has.

${stable}`;

if (!values.check) writeFileSync(values.out, text);
else if (!readFileSync(values.out, "utf8").endsWith(stable)) {
  console.error(`${relative(root, values.out)} is not up to date: npm run release:report`);
  process.exit(1);
}
