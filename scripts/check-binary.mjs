// Prints what an addon, or the CUDA library, gives and needs, and fails where it gives more than is looked for or needs
// newer libraries than it may.
//
//   node scripts/check-binary.mjs FILE... [--max-glibc 2.28] [--max-glibcxx 3.4.25]
import { existsSync } from "node:fs";
import { parseArgs } from "node:util";
import { compareVersions, floorOf, readSharedObject } from "./elf.mjs";

// Memory of ours in JavaScript's hands: Electron's heap forbids it.
const FORBIDDEN = ["napi_create_external_arraybuffer", "napi_create_external_buffer"];
const ADDON = ["napi_register_module_v1", "node_api_module_get_api_version_v1"];
const CUDA_LIBRARY = ["unifluid_cuda_open"];

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { "max-glibc": { type: "string" }, "max-glibcxx": { type: "string" } },
});
let failed = positionals.length === 0;
for (const path of positionals) {
  if (!existsSync(path)) {
    console.error(`${path}: not there`);
    failed = true;
    continue;
  }
  const { machine, exported, imported, versions } = readSharedObject(path);
  const floors = { glibc: floorOf(versions, "GLIBC"), glibcxx: floorOf(versions, "GLIBCXX") };
  console.log(`${path}: ${machine}, glibc ${floors.glibc}, libstdc++ GLIBCXX_${floors.glibcxx}`);
  const problem = (text) => {
    console.error(`${path}: ${text}`);
    failed = true;
  };
  const expected = path.endsWith(".node") ? ADDON : CUDA_LIBRARY;
  if (String(exported) !== String(expected)) {
    problem(`expected to export ${expected.join(", ")} but exports ${exported.join(", ")}`);
  }
  const foreign = FORBIDDEN.filter((name) => imported.includes(name));
  if (foreign.length > 0) problem(`expected no use of ${foreign.join(", ")}`);
  for (const [name, floor] of Object.entries(floors)) {
    const most = values[`max-${name}`];
    if (most && floor && compareVersions(floor, most) > 0) {
      problem(`expected to need at most ${name} ${most} but needs ${floor}`);
    }
  }
}
process.exit(failed ? 1 : 0);
