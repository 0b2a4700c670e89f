/** The number that the addon and the CUDA library compare before anything crosses between them. */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { addon, simulatedLibrary } from "../support/ops";

const root = resolve(__dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "unifluid-boundary-"));
afterAll(() => rmSync(folder, { recursive: true }));

const sha256 = (content: string | Buffer) => createHash("sha256").update(content).digest("hex");
const headers = [
  "core/tensor.h",
  "core/backend.h",
  "core/training_backend.h",
  "cuda/boundary.h",
  "cuda/size_class.h",
];
const hashes = headers.map((name) => sha256(readFileSync(join(root, name))));
const version = sha256(hashes.join("")).slice(0, 16);

// As an operand in x64's code, which has all of its bytes in one place.
(process.arch === "x64" ? test : test.skip)(
  "a library of other headers is refused, whatever their structs' sizes",
  () => {
    const library = readFileSync(simulatedLibrary);
    const number = Buffer.from(version, "hex").reverse();
    const at = library.indexOf(number);
    expect(at).toBeGreaterThan(0);
    library[at]! ^= 1;
    const other = join(folder, "other.so");
    writeFileSync(other, library);
    expect(() => new addon.TestBackend({ library: other, compute: "f32" })).toThrow(
      expect.objectContaining({
        code: "DEVICE_ERROR",
        message: `the CUDA library at ${other} belongs to another version of this package`,
      }),
    );
  },
);

describe("a machine without cmake", () => {
  const program = (path: string, script: string) =>
    writeFileSync(path, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  const compiler = join(folder, "nvcc");
  const bin = join(folder, "bin");
  beforeAll(() => {
    // Says what it is asked for, and fails.
    program(compiler, 'printf "%s\\n" "$@"\nexit 1');
    mkdirSync(bin);
  });
  const compile = (...args: string[]) => {
    const script = join(root, "scripts", "build-cuda.mjs");
    const env = { PATH: bin, CUDACXX: compiler };
    const all = [script, "--out", join(folder, "none.so"), ...args];
    const { stdout, stderr, status } = spawnSync(process.execPath, all, { encoding: "utf8", env });
    expect(status).toBe(1);
    return { asked: stdout.split("\n"), stderr };
  };

  test("compiles the library with the same number", () => {
    expect(compile("--arch", "90a").asked).toContain(`-DUNIFLUID_BOUNDARY=0x${version}`);
  });

  const codeOf = ({ asked }: { asked: string[] }) =>
    asked.filter((argument) => argument.startsWith("arch="));

  test("compiles it for every kind of GPU that is there and not too old", () => {
    program(join(bin, "nvidia-smi"), "echo 9.0; echo 6.1; echo 8.0; echo 9.0");
    expect(codeOf(compile())).toEqual([
      "arch=compute_90a,code=[sm_90a,compute_90a]",
      "arch=compute_80,code=[sm_80,compute_80]",
    ]);
  });

  test("says what it compiles for where it cannot see one", () => {
    program(join(bin, "nvidia-smi"), "exit 9");
    const unseen = compile();
    expect(codeOf(unseen)).toEqual(["arch=compute_90a,code=[sm_90a,compute_90a]"]);
    expect(unseen.stderr).toMatch(/nvidia-smi tells of no GPU here/);
  });
});
