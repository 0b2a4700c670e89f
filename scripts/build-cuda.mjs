// Compiles the CUDA library and puts it beside the addon: `npm run build:cuda`, and `unifluid build --cuda`.
//
//   node scripts/build-cuda.mjs [--arch 90a;120] [--release] [--out FILE]
//
// Hopper is 90a whatever is asked for: without the "a" its kernels would be left out. Without --arch: the architectures of the GPUs here, or 90a where there is none. --release: all that a release has.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
// Ampere, its consumer cards, Ada, Hopper, Blackwell and its consumer cards, each as machine code; what comes
// later compiles the last one's PTX when it is loaded.
const RELEASE = "80-real;86-real;89-real;90a-real;100-real;120";

const { values } = parseArgs({
  options: {
    arch: { type: "string" },
    release: { type: "boolean", default: false },
    out: { type: "string", default: join(root, "build", "Release", "unifluid_cuda.so") },
  },
});

function fail(message) {
  console.error(`unifluid: ${message}`);
  process.exit(1);
}

function find(program) {
  const folders = (process.env.PATH ?? "").split(delimiter).concat("/usr/local/cuda/bin");
  return folders.map((folder) => join(folder, program)).find((path) => existsSync(path));
}

/** Such as "80;120": of the GPUs here that the package can use, which may be of several kinds. */
function architecturesHere() {
  const { status, stdout } = spawnSync(
    "nvidia-smi",
    ["--query-gpu=compute_cap", "--format=csv,noheader"],
    { encoding: "utf8" },
  );
  const here = (status === 0 && stdout.match(/^\d+\.\d/gm)) || [];
  const capabilities = here.filter((number) => Number(number) >= 8);
  if (capabilities.length > 0)
    return [...new Set(capabilities.map((number) => number.replace(".", "")))].join(";");
  console.error(
    "unifluid: nvidia-smi tells of no GPU here that can be used: compiling for compute capability 9.0; --arch names another",
  );
  return "90a";
}

const nvcc = process.env.CUDACXX || find("nvcc");
if (!nvcc) {
  fail(
    "compiling the CUDA library needs nvcc of the CUDA toolkit 12.8 or later, on PATH or in CUDACXX",
  );
}
const asked = values.arch ?? (values.release ? RELEASE : architecturesHere());
const architectures = asked.replace(/\b90(?=[;-]|$)/g, "90a");
const build = join(root, "build", "cuda");
const started = performance.now();

/** As cuda/boundary.cmake makes it. */
function boundaryVersion() {
  const hash = (content) => createHash("sha256").update(content).digest("hex");
  const [, headers] = /foreach\(HEADER (.+)\)/.exec(
    readFileSync(join(root, "cuda", "boundary.cmake"), "utf8"),
  );
  const hashes = headers.split(" ").map((name) => hash(readFileSync(join(root, name))));
  return `0x${hash(hashes.join("")).slice(0, 16)}`;
}

/** Without cmake, or without ninja and make, for machines that have nvcc and little else: file by file, as cuda/CMakeLists.txt has it. */
function buildPlainly() {
  const sources = (folder, ending) =>
    readdirSync(join(root, folder))
      .filter((name) => name.endsWith(ending) && name !== "loader.cpp")
      .map((name) => join(root, folder, name));
  const targets = architectures.split(";").flatMap((name) => {
    const [number, real] = name.split("-");
    const code = real ? `sm_${number}` : `[sm_${number},compute_${number}]`;
    return ["-gencode", `arch=compute_${number},code=${code}`];
  });
  mkdirSync(build, { recursive: true });
  const files = [
    ...sources("cuda", ".cpp"),
    ...sources("cuda/kernels", ".cu"),
    join(root, "core", "convert.cpp"),
  ];
  const out = join(build, "unifluid_cuda.so");
  const options = [
    "-O3",
    "-DNDEBUG",
    `-DUNIFLUID_BOUNDARY=${boundaryVersion()}`,
    "-std=c++20",
    "-fmad=false",
    "-I",
    root,
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
    "-Xlinker",
    `--version-script=${join(root, "cuda", "exports.map")}`,
  ];
  return spawnSync(
    nvcc,
    [...options, ...targets, "-t", "0", "--shared", "--cudart", "static", "-o", out, ...files],
    { stdio: "inherit", cwd: build },
  );
}

/** `generator`: where nothing is configured yet, since a folder keeps the one that it was configured for. */
function buildWithCmake(generator) {
  const configure = [
    ...(existsSync(join(build, "CMakeCache.txt")) ? [] : ["-G", generator]),
    "-S",
    join(root, "cuda"),
    "-B",
    build,
    `-DCMAKE_CUDA_COMPILER=${nvcc}`,
    `-DCMAKE_CUDA_ARCHITECTURES=${architectures}`,
    "-DCMAKE_BUILD_TYPE=Release",
  ];
  const compile = ["--build", build, "--parallel", String(availableParallelism())];
  const configured = spawnSync("cmake", configure, { stdio: "inherit" });
  if (configured.error || configured.status !== 0) return configured;
  return spawnSync("cmake", compile, { stdio: "inherit" });
}

const generator = find("ninja") ? "Ninja" : find("make") ? "Unix Makefiles" : null;
const { status, error } = find("cmake") && generator ? buildWithCmake(generator) : buildPlainly();
if (error) fail(`the compiler did not start: ${error.message}`);
if (status !== 0) fail("the CUDA library did not compile; the compiler's message is above");
// Beside, then renamed: a process that has the old one open keeps it.
const out = resolve(values.out);
mkdirSync(dirname(out), { recursive: true });
copyFileSync(join(build, "unifluid_cuda.so"), `${out}.part`);
renameSync(`${out}.part`, out);
const seconds = ((performance.now() - started) / 1000).toFixed(0);
console.log(`unifluid: ${out} is compiled for ${architectures} (${seconds} s)`);
