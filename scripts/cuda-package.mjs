// Makes the package of the CUDA library, which `npm install @unifluid/cuda-linux-x64` puts where the addon finds it.
//
//   npm run cuda:package -- [--library FILE] [--out DIR] [--max-glibc 2.28] [--max-glibcxx 3.4.25]
//
// FILE: by default what `npm run build:cuda -- --release` compiled. DIR, by default build/cuda-linux-x64, is made anew;
// `npm publish DIR` publishes it. It has the version of this package, and that of no other works with it.
import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { readSharedObject } from "./elf.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const LIBRARY = "unifluid_cuda.so";
const { values } = parseArgs({
  options: {
    library: { type: "string", default: join(root, "build", "Release", LIBRARY) },
    out: { type: "string", default: join(root, "build", "cuda-linux-x64") },
    "max-glibc": { type: "string" },
    "max-glibcxx": { type: "string" },
  },
});
const floors = ["max-glibc", "max-glibcxx"].flatMap((name) =>
  values[name] ? [`--${name}`, values[name]] : [],
);
try {
  const script = join(root, "scripts", "check-binary.mjs");
  execFileSync(process.execPath, [script, values.library, ...floors], { stdio: "inherit" });
} catch {
  process.exit(1); // it has said why
}
const { machine } = readSharedObject(values.library);
if (machine !== "x64") {
  console.error(`${values.library}: expected a library for x64 but it is for ${machine}`);
  process.exit(1);
}

const { name, version, license, engines, repository } = JSON.parse(
  readFileSync(join(root, "package.json"), "utf8"),
);
const manifest = {
  name: "@unifluid/cuda-linux-x64",
  version,
  description: `The CUDA library of ${name} ${version}, for NVIDIA GPUs on Linux x64`,
  license,
  ...(repository ? { repository } : {}),
  engines,
  os: ["linux"],
  cpu: ["x64"],
  libc: ["glibc"],
  // Opened by its path: where packages stay zipped it has to be a file all the same.
  preferUnplugged: true,
  exports: { [`./${LIBRARY}`]: `./${LIBRARY}`, "./package.json": "./package.json" },
  files: [LIBRARY, "THIRD_PARTY_NOTICES.md"],
  // Else a first version under a scope would be private.
  publishConfig: { access: "public" },
};
const readme = `# ${manifest.name}

The CUDA library of [${name}](https://www.npmjs.com/package/${name}), compiled for NVIDIA GPUs of compute capability 8.0
and later. Install it beside the package of the same version:

\`\`\`sh
npm install ${name}@${version} ${manifest.name}@${version}
npx ${name} doctor
\`\`\`

It needs the NVIDIA driver and no CUDA toolkit. It has no code of its own to import.
`;
const notices = `# Third-party notices

The library is under the Apache License 2.0 (LICENSE). Linked into it is the CUDA runtime (cudart), copyright NVIDIA
Corporation, which the CUDA Toolkit End User License Agreement (Attachment A) allows to distribute as part of an
application: https://docs.nvidia.com/cuda/eula/

Inline functions and templates of GCC's headers, and the parts of \`libstdc++\` that an older system lacks, are compiled
in: they are under GPL-3.0 with the GCC Runtime Library Exception, which puts no condition on the program that was
compiled: https://www.gnu.org/licenses/gcc-exception-3.1.html
`;

const out = resolve(values.out);
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
copyFileSync(values.library, join(out, LIBRARY));
copyFileSync(join(root, "LICENSE"), join(out, "LICENSE"));
writeFileSync(join(out, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
writeFileSync(join(out, "README.md"), readme);
writeFileSync(join(out, "THIRD_PARTY_NOTICES.md"), notices);
// The mode is part of the package's bytes.
chmodSync(join(out, LIBRARY), 0o644);
console.log(`${out}: ${manifest.name} ${version}`);
