// npm's `install` step, and what `unifluid build` runs (`--build`).
//
// Compiling is a matter of minutes and needs a toolchain, so it happens only where it is expected:
//   - a prebuilt addon for this platform lies under prebuilds/: nothing is to be done;
//   - a clone of the repository: the addon is compiled;
//   - an installed package without a prebuilt addon: one line says what to run. An install that starts
//     a compiler by itself surprises people, and breaks images that have none.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { delimiter, join, sep } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

// Only a clone has the tests: `files` of package.json leaves them out.
const isClone = existsSync(join(root, "test")) && !root.split(sep).includes("node_modules");
const target = `${process.platform}-${process.arch}`;
const prebuilt = join(root, "prebuilds", target, "unifluid.node");

function onPath(program) {
  const suffixes = process.platform === "win32" ? [".exe", ".cmd", ""] : [""];
  return (process.env.PATH ?? "")
    .split(delimiter)
    .some(
      (folder) => folder && suffixes.some((suffix) => existsSync(join(folder, program + suffix))),
    );
}

function fail(message) {
  console.error(`unifluid: ${message}`);
  process.exit(1);
}

// Not everybody who installs the package compiles it, so these are no dependencies of it.
function findCmakeJs() {
  try {
    const require = createRequire(import.meta.url);
    require.resolve("node-addon-api");
    return require.resolve("cmake-js/bin/cmake-js");
  } catch {
    return fail(
      "compiling the addon needs the packages cmake-js and node-addon-api. " +
        "Install them in your project, then build again: npm install --save-dev cmake-js@8 node-addon-api@8",
    );
  }
}

function build() {
  if (!existsSync(join(root, "CMakeLists.txt")))
    fail("CMakeLists.txt is not here: nothing to compile");
  const missing = [];
  if (!onPath("cmake")) missing.push("cmake (3.15 or later)");
  if (process.platform !== "win32") {
    if (!onPath("make") && !onPath("ninja")) missing.push("make");
    if (!process.env.CXX && !["c++", "g++", "clang++"].some(onPath)) {
      missing.push("a C++20 compiler (g++ 12 or later)");
    }
  }
  if (missing.length > 0) {
    fail(
      `compiling the addon needs ${missing.join(", ")}, not found on PATH. ` +
        "On Debian or Ubuntu: apt-get install g++ cmake make",
    );
  }

  const args = [
    "compile",
    "--config",
    "Release",
    "--out",
    join(root, "build"),
    "--directory",
    root,
  ];
  // CMake itself honours CMAKE_BUILD_PARALLEL_LEVEL.
  if (!process.env.CMAKE_BUILD_PARALLEL_LEVEL)
    args.push("--parallel", String(availableParallelism()));
  const cmakeJs = findCmakeJs();
  const started = performance.now();
  const { status, error } = spawnSync(process.execPath, [cmakeJs, ...args], {
    cwd: root,
    stdio: "inherit",
  });
  if (error) fail(`cmake-js did not start: ${error.message}`);
  if (status !== 0) {
    fail(
      "the addon did not compile; the compiler's message is above. It needs g++ 12 or later and CMake 3.15 or later.",
    );
  }
  if (!existsSync(join(root, "build", "Release", "unifluid.node"))) {
    fail("the compiler reported success, but build/Release/unifluid.node is not there");
  }
  console.log(
    `unifluid: the addon is compiled (${((performance.now() - started) / 1000).toFixed(0)} s)`,
  );
}

if (process.argv.includes("--build") || (isClone && !existsSync(prebuilt))) {
  build();
} else if (!existsSync(prebuilt)) {
  console.log(
    `unifluid: no prebuilt addon for ${target} in this package; to compile it here, run: npx unifluid build`,
  );
}
