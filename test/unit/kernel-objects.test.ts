/**
 * Kernels are compiled once per instruction set. A function that a shared header defines would be compiled
 * several times under one name, and the linker would keep any one of them, perhaps one with instructions
 * that the processor lacks (`cpu/simd.h`). Such functions show as weak symbols of the object files.
 */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join, resolve } from "node:path";

const root = resolve(__dirname, "../../build");
const build = join(root, "CMakeFiles");

function objects(): string[] {
  // A build that was broken off has only some of the objects.
  if (!existsSync(build) || !existsSync(join(root, "Release", "unifluid.node"))) return [];
  return readdirSync(build)
    .filter((name) => /^kernels_\w+\.dir$/.test(name))
    .flatMap((name) =>
      readdirSync(join(build, name), { recursive: true })
        .map((file) => join(build, name, String(file)))
        .filter((file) => file.endsWith(".o")),
    );
}

function hasNm(): boolean {
  try {
    execFileSync("nm", ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

const found = hasNm() ? objects() : [];

// Without a build of our own (a prebuilt addon) there is nothing to look at.
(found.length ? test : test.skip)(
  "kernel objects define nothing that is shared between them",
  () => {
    const isas = new Set(found.map((file) => file.match(/kernels_(\w+)\.dir/)![1]!));
    const owners = new Map<string, string>();
    for (const file of found) {
      const isa = file.match(/kernels_(\w+)\.dir/)![1]!;
      const lines = execFileSync("nm", ["--defined-only", file], { encoding: "utf8" }).split("\n");
      for (const line of lines) {
        const [, type, name] = line.match(/^[0-9a-f]+ (\w) (\S+)$/) ?? [];
        if (!type || !name) continue;
        // Weak and unique symbols are those that the linker merges.
        expect({ file, name, type }).not.toMatchObject({
          type: expect.stringMatching(/^[WwVvu]$/),
        });
        // Lower case is local to the file.
        if (type !== type.toUpperCase()) continue;
        expect({ name, owners: [owners.get(name) ?? isa, isa] }).toEqual({
          name,
          owners: [isa, isa],
        });
        owners.set(name, isa);
      }
    }
    // All variants were looked at, and the table of each among them.
    expect([...owners.keys()].filter((name) => name.includes("kKernels")).length).toBe(isas.size);
  },
);
