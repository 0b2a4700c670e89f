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
const headers = ["core/tensor.h", "core/backend.h", "core/training_backend.h", "cuda/boundary.h"];
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

test("a machine without cmake compiles the library with the same number", () => {
  // Says what it is asked for, and fails.
  const compiler = join(folder, "nvcc");
  writeFileSync(compiler, '#!/bin/sh\nprintf "%s\\n" "$@"\nexit 1\n', { mode: 0o755 });
  const empty = join(folder, "empty");
  mkdirSync(empty);
  const script = join(root, "scripts", "build-cuda.mjs");
  const args = [script, "--arch", "90a", "--out", join(folder, "none.so")];
  const env = { PATH: empty, CUDACXX: compiler };
  const { stdout, status } = spawnSync(process.execPath, args, { encoding: "utf8", env });
  expect(status).toBe(1);
  expect(stdout.split("\n")).toContain(`-DUNIFLUID_BOUNDARY=0x${version}`);
});
