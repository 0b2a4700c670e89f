// Packs what a machine with a GPU, but without npm, needs for scripts/gpu.mjs: the addons, the programs as one file
// each, the reference, the CUDA library if one was compiled here, and Node itself. Sources come with the repository.
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";

const MEBIBYTE = 2 ** 20;
/** Packs travel beside the repository's files, and the way that they take has room for 64 MiB in all. */
const LARGEST_LOAD = 62 * MEBIBYTE;

const RUN = `#!/bin/sh
# In a checkout of the repository: sh PACK/run.sh [arguments of npm run gpu]
set -e
pack=$(cd "$(dirname "$0")" && pwd)
unpack() {
  if command -v xz > /dev/null; then
    xz -dc "$1" > "$2"
  elif command -v python3 > /dev/null; then
    python3 -c 'import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' "$1" "$2"
  else
    echo "unifluid: expected xz or python3 on PATH, to unpack $1: neither is there" >&2
    exit 1
  fi
}
mkdir -p build
cp -r "$pack/build/." build/
node=node
if [ -f "$pack/node.xz" ]; then
  unpack "$pack/node.xz" build/node
  chmod +x build/node
  node=build/node
fi
library=build/Release/unifluid_cuda.so
if [ -f "$pack/$library.xz" ]; then
  unpack "$pack/$library.xz" $library
  rm -f $library.xz
  set -- --no-build "$@"
fi
exec "$node" scripts/gpu.mjs "$@"
`;

function bytesOf(path) {
  if (!statSync(path).isDirectory()) return statSync(path).size;
  return readdirSync(path).reduce((sum, name) => sum + bytesOf(join(path, name)), 0);
}

/** Of the files in git, which travel beside a pack; 0 outside of a repository. */
function trackedBytes(root) {
  const { status, stdout } = spawnSync("git", ["ls-files", "-z"], { cwd: root, encoding: "utf8" });
  if (status !== 0) return 0;
  const paths = stdout.split("\0").map((path) => path && join(root, path));
  return paths.reduce((sum, path) => sum + (path && existsSync(path) ? bytesOf(path) : 0), 0);
}

function compress(from, to) {
  mkdirSync(dirname(to), { recursive: true });
  const command = 'xz -9 --threads=0 --stdout "$0" > "$1"';
  if (spawnSync("sh", ["-c", command, from, to]).status !== 0)
    throw new Error(`expected xz to pack ${from}, but it failed`);
}

/** The latest change below a folder of sources. */
function changed(folder) {
  return readdirSync(folder, { recursive: true })
    .map((name) => statSync(join(folder, name)))
    .reduce((latest, stat) => (stat.isFile() ? Math.max(latest, stat.mtimeMs) : latest), 0);
}

/** Throws where the library is not there or its sources are newer: compiling would take minutes of the machine's. */
function packLibrary(root, library, to) {
  const advice = "npm run build:cuda compiles it; with --no-library the machine has to";
  if (!existsSync(library)) throw new Error(`expected ${library}, which is not there: ${advice}`);
  const sources = Math.max(...["cuda", "core"].map((name) => changed(join(root, name))));
  if (sources > statSync(library).mtimeMs)
    throw new Error(`expected ${library} to be newer than its sources: ${advice}`);
  compress(library, to);
}

/**
 * `files`: to be copied, as they lie below `root`; `library`: undefined where the machine compiles it; `reference`: its
 * folder, or ""; `node`: whether Node is packed.
 */
export function pack({ root, folder, files, library, reference, node }) {
  rmSync(folder, { recursive: true, force: true });
  const build = join(folder, "build");
  mkdirSync(build, { recursive: true });
  const placed = (file) => join(folder, file.slice(root.length));
  for (const file of files) cpSync(file, placed(file));
  if (library) packLibrary(root, library, `${placed(library)}.xz`);
  if (reference) {
    const programs = readdirSync(reference).filter((name) => name.endsWith(".py"));
    if (programs.length === 0)
      throw new Error(`expected Python files in ${reference}: there are none`);
    for (const name of programs) cpSync(join(reference, name), join(build, "reference", name));
  } else console.log("unifluid: without --reference the pack brings no PyTorch figures");
  const { status, stdout } = spawnSync("git", ["rev-parse", "--short", "HEAD"], { cwd: root });
  if (status === 0) writeFileSync(join(build, "commit"), stdout);
  if (node) compress(process.execPath, join(folder, "node.xz"));
  const script = join(folder, "run.sh");
  writeFileSync(script, RUN);
  chmodSync(script, 0o755);

  const mebibytes = (count) => `${(count / MEBIBYTE).toFixed(1)} MiB`;
  const bytes = bytesOf(folder);
  const size = mebibytes(bytes);
  const tracked = trackedBytes(root);
  if (bytes + tracked > LARGEST_LOAD)
    throw new Error(
      `${folder} takes ${size} and the repository's files ${mebibytes(tracked)}: together more than ` +
        `${mebibytes(LARGEST_LOAD)}`,
    );
  console.log(
    `unifluid: ${folder} holds what a machine without npm needs, ${size}: run.sh says how`,
  );
}
