// Compiles the addon: for `npm install` in a clone (`prepare`), and for `unifluid build` (`--build`).
//
// Compiling is a matter of minutes and needs a toolchain, so it happens only where it is expected: in a clone without a
// prebuilt addon under prebuilds/, and where somebody asks for it. An installed package has no install script: it would
// have nothing to do, and package managers warn of such scripts or refuse them. Where a binary is missing, the error at
// the first use says what to run.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { delimiter, join, sep } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

// Only a clone has the tests: `files` of package.json leaves them out.
const isClone = existsSync(join(root, "test")) && !root.split(sep).includes("node_modules");
const prebuilt = join(root, "prebuilds", `${process.platform}-${process.arch}`, "unifluid.node");

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

// Not everybody who installs the package compiles it, so these are no dependencies of it. Nor does package.json ask for
// their versions: a project that has others for something else could not install this package at all.
const LEAST = 8;
const PACKAGES = ["cmake-js", "node-addon-api"];

function findCmakeJs() {
  const require = createRequire(import.meta.url);
  const advice =
    "Install them in your project, then build again: " +
    `npm install --save-dev ${PACKAGES.map((name) => `${name}@${LEAST}`).join(" ")}`;
  for (const name of PACKAGES) {
    let version;
    try {
      ({ version } = require(`${name}/package.json`));
    } catch {
      fail(`compiling the addon needs the packages ${PACKAGES.join(" and ")}. ${advice}`);
    }
    if (Number.parseInt(version, 10) < LEAST)
      fail(`compiling the addon needs ${name} ${LEAST} or later, found ${version}. ${advice}`);
  }
  return require.resolve("cmake-js/bin/cmake-js");
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

if (process.argv.includes("--build") || (isClone && !existsSync(prebuilt))) build();
