/** The package as npm would publish it: what is in it, and that it works where it is installed. */

import { execFile } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { satisfies } from "semver";
import { findAddon } from "../../lib/addon.js";

const execute = promisify(execFile);
const root = join(__dirname, "../..");
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
  version: string;
  engines: { node: string };
  dependencies: Record<string, string>;
  scripts: Record<string, string>;
};
const target = `${process.platform}-${process.arch}`;

let project: string;
let installed: string;
let files: string[];

/** Packs the package and unpacks it as a project's dependency, beside its own dependencies. */
beforeAll(async () => {
  project = mkdtempSync(join(tmpdir(), "unifluid-package-"));
  const args = ["pack", "--json", "--ignore-scripts", "--pack-destination", project];
  const { stdout } = await execute("npm", args, { cwd: root, maxBuffer: 1 << 24 });
  const [packed] = JSON.parse(stdout) as [{ filename: string; files: { path: string }[] }];
  files = packed.files.map(({ path }) => path);
  const modules = join(project, "node_modules");
  installed = join(modules, "unifluid");
  mkdirSync(installed, { recursive: true });
  await execute("tar", [
    "-xzf",
    join(project, packed.filename),
    "-C",
    installed,
    "--strip-components=1",
  ]);
  for (const name of [...Object.keys(manifest.dependencies), "@types/node"]) {
    mkdirSync(dirname(join(modules, name)), { recursive: true });
    symlinkSync(join(root, "node_modules", name), join(modules, name));
  }
  writeFileSync(join(project, "package.json"), '{ "private": true }\n');
});
afterAll(() => rmSync(project, { recursive: true, force: true }));

test("README names the versions of Node that the package asks for", () => {
  const [, first, second] = /^\^(\d+\.\d+)\.0 \|\| >=(\d+\.\d+)\.0$/.exec(manifest.engines.node)!;
  const readme = readFileSync(join(root, "README.md"), "utf8");
  expect(readme).toContain(`with Node ${first}, ${second} or later`);
});

test("what it depends on asks for no later versions", () => {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")) as {
    packages: Record<string, { dev?: boolean; optional?: boolean; engines?: { node?: string } }>;
  };
  const [, first] = /^\^(\d+\.\d+\.\d+)/.exec(manifest.engines.node)!;
  const late = Object.entries(lock.packages).filter(
    ([, { dev, optional, engines }]) =>
      !dev && !optional && engines?.node && !satisfies(first!, engines.node),
  );
  expect(late.map(([path]) => path)).toEqual([]);
});

/** Runs node in the project, without what this test's own environment says about the addon. */
function node(args: string[]) {
  const { UNIFLUID_NATIVE: _, ...env } = process.env;
  return execute(process.execPath, args, { cwd: project, env });
}

test("holds what is needed, and nothing else", () => {
  for (const needed of [
    "dist/index.js",
    "dist/index.mjs",
    "dist/index.d.ts",
    "dist/index.d.mts",
    "dist/cli/main.js",
    "models/shapes-64/config.json",
    "models/shapes-64/model.safetensors",
    "models/shapes-64/vae/diffusion_pytorch_model.safetensors",
    "CMakeLists.txt",
    "core/backend.h",
    "cpu/backend.cpp",
    "binding/addon.cpp",
    "scripts/install.mjs",
    "LICENSE",
    "THIRD_PARTY_NOTICES.md",
    "README.md",
    "CHANGELOG.md",
  ]) {
    expect(files).toContain(needed);
  }
  const folders = [
    "dist",
    "models",
    "prebuilds",
    "core",
    "cpu",
    "binding",
    "cuda",
    "scripts",
    "docs",
  ];
  const single = [
    ...["CMakeLists.txt", "LICENSE", "THIRD_PARTY_NOTICES.md", "README.md", "CHANGELOG.md"],
    "package.json",
  ];
  const others = files.filter(
    (path) => !single.includes(path) && !folders.includes(path.split("/", 1)[0]!),
  );
  expect(others).toEqual([]);
  expect(files.filter((path) => /(^|\/)(test|fixtures|node_modules)\//.test(path))).toEqual([]);
});

test("installing runs nothing: package managers warn of scripts that do, or refuse them", () => {
  for (const name of ["preinstall", "install", "postinstall"])
    expect(manifest.scripts).not.toHaveProperty(name);
  // Without a script of its own npm would run node-gyp for this file.
  expect(files).not.toContain("binding.gyp");
});

test("without a binary, it says what to do", async () => {
  const doctor = node([join(installed, "dist/cli/main.js"), "doctor"]);
  await expect(doctor).rejects.toMatchObject({
    code: 5,
    stderr: expect.stringContaining("npx unifluid build"),
  });
});

test("asked to compile with packages that are too old, it says which it needs", async () => {
  const tools = join(project, "tools");
  mkdirSync(tools);
  for (const name of ["cmake", "make", "c++"]) writeFileSync(join(tools, name), "");
  const compile = () =>
    execute(process.execPath, [join(installed, "scripts/install.mjs"), "--build"], {
      env: { PATH: tools },
    });
  const install = (name: string, version: string) => {
    mkdirSync(join(project, "node_modules", name), { recursive: true });
    const file = join(project, "node_modules", name, "package.json");
    writeFileSync(file, JSON.stringify({ name, version }));
  };
  await expect(compile()).rejects.toMatchObject({
    stderr: expect.stringMatching(/needs the packages cmake-js and node-addon-api\. Install them/),
  });
  install("cmake-js", "7.4.0");
  await expect(compile()).rejects.toMatchObject({
    stderr: expect.stringMatching(/needs cmake-js 8 or later, found 7\.4\.0\. Install them/),
  });
  install("cmake-js", "8.0.0");
  install("node-addon-api", "7.1.1");
  await expect(compile()).rejects.toMatchObject({
    stderr: expect.stringMatching(/needs node-addon-api 8 or later, found 7\.1\.1/),
  });
});

describe("with a prebuilt binary", () => {
  beforeAll(() => {
    const folder = join(installed, "prebuilds", target);
    mkdirSync(folder, { recursive: true });
    cpSync(findAddon().path, join(folder, "unifluid.node"));
  });

  test("import and require give the same classes, and they draw", async () => {
    writeFileSync(
      join(project, "both.mjs"),
      `import { createRequire } from "node:module";
       import * as esm from "unifluid";
       const cjs = createRequire(import.meta.url)("unifluid");
       const names = Object.keys(cjs);
       const model = await esm.UniFluid.load("shapes-64", { threads: 1 });
       const image = await model.generate("a red circle", { seed: 1, steps: 1 });
       await model.dispose();
       console.log(JSON.stringify({
         same: names.length > 0 && names.every((name) => esm[name] === cjs[name]),
         sameSize: Object.keys(esm).length === names.length,
         width: image.width,
         instance: image instanceof cjs.Image,
       }));`,
    );
    const { stdout } = await node(["both.mjs"]);
    expect(JSON.parse(stdout)).toEqual({ same: true, sameSize: true, width: 64, instance: true });
  });

  test("the program runs, and knows its version and binary", async () => {
    const main = join(installed, "dist/cli/main.js");
    expect((await node([main, "--version"])).stdout).toBe(`${manifest.version}\n`);
    expect((await node([main, "doctor"])).stdout).toContain("from the package");
  });

  test("its types hold for import and for require", async () => {
    const program = `import { countParameters, readCheckpoint, UniFluid, InvalidOptionError, type Image, type ImageInput } from "unifluid";
      export async function draw(input: ImageInput): Promise<Image[]> {
        await using model = await UniFluid.load("shapes-64", { threads: 2 });
        const text: string = await model.caption(input);
        for await (const step of model.generateStream(text)) step.cells satisfies number[];
        try {
          return await model.generate([text], { seed: 7n, order: "random" });
        } catch (error) {
          if (error instanceof InvalidOptionError) error.code satisfies "INVALID_OPTION";
          throw error;
        }
      }
      export async function look(): Promise<number> {
        const checkpoint = await readCheckpoint("x");
        // @ts-expect-error: a part that is the package's own
        checkpoint.spec;
        return countParameters(checkpoint).vae;
      }
      // @ts-expect-error: there is no such option
      export const wrong = (model: UniFluid) => model.generate("x", { step: 1 });\n`;
    writeFileSync(join(project, "types.mts"), program);
    writeFileSync(join(project, "types.cts"), program);
    const options = ["--noEmit", "--strict", "--module", "node16", "--target", "es2022"];
    const libraries = ["--lib", "es2022,esnext.disposable", "--types", "node"];
    const tsc = join(root, "node_modules/typescript/bin/tsc");
    await node([tsc, ...options, ...libraries, "types.mts", "types.cts"]).catch((error) => {
      throw new Error(error.stdout);
    });
  });
});
