// Builds the addon for the package: prebuilds/linux-x64/unifluid.node, and with --arch arm64 the cross-compiled one.
//
//   npm run prebuilds -- [--arch x64|arm64] ...
import { chmodSync, mkdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const require = createRequire(import.meta.url);
const prebuildify = require("prebuildify");
const root = fileURLToPath(new URL("..", import.meta.url));
const { values } = parseArgs({
  options: { arch: { type: "string", multiple: true, default: [process.arch] } },
});

for (const arch of values.arch) {
  if (!["x64", "arm64"].includes(arch))
    throw new Error(`expected x64 or arm64 but received ${arch}`);
  // A folder of its own: build/ holds the addon of the tests as well, and prebuildify takes what it finds.
  const cwd = join(root, "build", `prebuild-${arch}`);
  rmSync(cwd, { recursive: true, force: true });
  mkdirSync(cwd, { recursive: true });
  await new Promise((resolve, reject) => {
    prebuildify(
      {
        cwd,
        arch,
        platform: process.platform,
        out: root,
        name: "unifluid",
        napi: true,
        nodeGyp: join(root, "scripts", "cmake-js-shim.mjs"),
      },
      (error) => (error ? reject(error) : resolve()),
    );
  });
  // As it comes out of the release workflow's artifacts: the mode is part of the package's bytes.
  chmodSync(join(root, "prebuilds", `${process.platform}-${arch}`, "unifluid.node"), 0o644);
  console.log(`prebuilds/${process.platform}-${arch}/unifluid.node`);
}
