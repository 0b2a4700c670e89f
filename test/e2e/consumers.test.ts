/** The packed package in other people's projects: no compiler, no install scripts, every way to import it. */

import { execFile } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { findAddon } from "../../lib/addon.js";

const execute = promisify(execFile);
const root = join(__dirname, "../..");
const target = `${process.platform}-${process.arch}`;
const DRAW = `
  const model = await UniFluid.load("shapes-64", { threads: 1 });
  const image = await model.generate("a blue star", { seed: 1, steps: 1 });
  await model.dispose();
  console.log(image.width);
`;

let work: string;
let tarball: string;
let path: string;
let project: string;

/** Runs a program of the project, with a PATH that has Node and npm, and no compiler. */
async function run(command: string, args: string[], cwd = project) {
  const { UNIFLUID_NATIVE: _, ...env } = process.env;
  try {
    return await execute(command, args, {
      cwd,
      env: { ...env, PATH: path, npm_config_fund: "false", npm_config_audit: "false" },
      maxBuffer: 1 << 26,
    });
  } catch (error) {
    const { stdout, stderr } = error as { stdout: string; stderr: string };
    throw new Error(`${command} ${args.join(" ")}\n${stdout}\n${stderr}`);
  }
}

const node = (...args: string[]) => run(process.execPath, args);
const bin = (name: string) => join(root, "node_modules", ".bin", name);

/** An empty project with the package installed in it. */
async function install(name: string, ...flags: string[]): Promise<string> {
  const folder = join(work, name);
  mkdirSync(folder);
  writeFileSync(join(folder, "package.json"), '{ "private": true }\n');
  await run("npm", ["install", tarball, "--prefer-offline", "--no-save", ...flags], folder);
  return folder;
}

beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), "unifluid-consumers-"));
  // What npm would publish, with this build's addon as the prebuilt one.
  const pack = async (from: string) => {
    const args = ["pack", from, "--json", "--ignore-scripts", "--pack-destination", work];
    const { stdout } = await execute("npm", args, { cwd: root, maxBuffer: 1 << 26 });
    return join(work, (JSON.parse(stdout) as [{ filename: string }])[0].filename);
  };
  const plain = await pack(root);
  await execute("tar", ["-xzf", plain, "-C", work]);
  const prebuilt = join(work, "package", "prebuilds", target, "unifluid.node");
  mkdirSync(dirname(prebuilt), { recursive: true });
  cpSync(findAddon().path, prebuilt);
  tarball = await pack(join(work, "package"));
  path = join(work, "bin");
  mkdirSync(path);
  for (const name of ["node", "npm", "npx", "sh", "env", "dirname", "uname", "sed", "basename"]) {
    const { stdout } = await execute("which", [name]);
    symlinkSync(stdout.trim(), join(path, name));
  }
  project = await install("project");
}, 300_000);
afterAll(() => rmSync(work, { recursive: true, force: true }));

test("installed without a compiler, the program draws", async () => {
  await expect(run("g++", ["--version"])).rejects.toThrow();
  await run("npx", ["--no-install", "unifluid", "generate", "a blue star", "--out", "star.png"]);
  expect(readFileSync(join(project, "star.png")).subarray(1, 4).toString()).toBe("PNG");
  // Nothing was compiled, and what compiles is not dragged along.
  expect(existsSync(join(project, "node_modules/unifluid/build"))).toBe(false);
  expect(existsSync(join(project, "node_modules/cmake-js"))).toBe(false);
});

test("asked to compile, it says what that needs", async () => {
  const asked = run("npx", ["--no-install", "unifluid", "build"]);
  await expect(asked).rejects.toThrow(/cmake \(3\.15 or later\), make, a C\+\+20 compiler/);
});

test("as an ES module", async () => {
  writeFileSync(join(project, "esm.mjs"), `import { UniFluid } from "unifluid";${DRAW}`);
  expect((await node("esm.mjs")).stdout).toBe("64\n");
});

test("as CommonJS, the server too", async () => {
  writeFileSync(
    join(project, "common.cjs"),
    `const { UniFluid } = require("unifluid");
     const { createServer } = require("unifluid/server");
     (async () => {${DRAW}
       const other = await UniFluid.load("shapes-64", { threads: 1 });
       const app = createServer(other);
       console.log((await app.inject("/ready")).statusCode, (await app.inject("/")).statusCode);
       await app.close();
       await other.dispose();
     })();`,
  );
  expect((await node("common.cjs")).stdout).toBe("64\n200 200\n");
});

test("what JavaScript may do and types forbid is told", async () => {
  writeFileSync(
    join(project, "construct.cjs"),
    `const { UniFluid } = require("unifluid");
     try { new UniFluid(); } catch (error) { console.log(error.code, error.message); }`,
  );
  expect((await node("construct.cjs")).stdout).toMatch(/^INVALID_OPTION use UniFluid\.load: /);
});

test("in a worker thread", async () => {
  writeFileSync(
    join(project, "worker.mjs"),
    `import { isMainThread, Worker } from "node:worker_threads";
     import { UniFluid } from "unifluid";
     if (isMainThread) new Worker(new URL(import.meta.url));
     else {${DRAW}}`,
  );
  expect((await node("worker.mjs")).stdout).toBe("64\n");
});

/** Programs of the pages for people who begin; others look into caught errors or optional parts as JavaScript may. */
const snippets = ["README.md", "docs/batch.md", "docs/edit.md"].flatMap((page) =>
  [...readFileSync(join(root, page), "utf8").matchAll(/^```js\n(.*?)^```/gms)].map(
    ([, program]) => program!,
  ),
);

test.each([
  ["node16", "node16"],
  ["nodenext", "nodenext"],
  ["esnext", "bundler"],
])("in TypeScript, module %s with resolution %s", async (module, resolution) => {
  expect(snippets.some((program) => program.includes("generateAll"))).toBe(true);
  const pages = snippets.map((program, i) => {
    writeFileSync(join(project, `snippet-${i}.mts`), `${program}\nexport {};\n`);
    return `snippet-${i}.mts`;
  });
  const source = `import { UniFluid, type GenerateItem, type Image } from "unifluid";
    import fastify from "fastify";
    import { createServer, type UniFluidServer } from "unifluid/server";
    const model = await UniFluid.load("shapes-64");
    const image: Image = await model.generate("x");
    const server: UniFluidServer = createServer(model, { maxImages: 2 });
    server.draining satisfies boolean;
    await server.drain(1000);
    // @ts-expect-error: other servers are as fastify declares them
    fastify().drain(1000);
    for await (const { value, error } of model.generateAll(["a"])) {
      if (error) error.message satisfies string;
      else value.width satisfies number;
      if (error === undefined) value.width satisfies number;
      else error satisfies Error;
      if (value) value.width satisfies number;
      else error satisfies Error;
    }
    for await (const result of model.captionAll([new Blob([])])) {
      if (!("error" in result)) result.value satisfies string;
      if (!("value" in result)) result.error satisfies Error;
    }
    async function* jobs() {
      yield { prompt: "a", steps: 1, data: { key: "k" } };
    }
    for await (const { item } of model.generateAll(jobs())) item.data.key satisfies string;
    for await (const { item } of model.generateAll(["a", { prompt: "b", seed: 1 }])) {
      if (typeof item !== "string") item.seed satisfies number;
    }
    const items: GenerateItem[] = ["a", { prompt: "b" }];
    model.generateAll(items);
    model.captionAll([new Blob([]), "x.png", image, new Uint8Array(1)]);
    model.captionAll([{ image, maxNewTokens: 1, signal: AbortSignal.timeout(1) }]);
    model.answerAll([{ image, question: "a", data: 1 }]);
    const keyed = [{ prompt: "a", key: 1 }];
    // @ts-expect-error: what is the caller's goes into data
    model.generateAll(keyed);
    // @ts-expect-error: misspelt
    model.generateAll([{ prompt: "a", stepz: 1 }]);
    // @ts-expect-error: misspelt
    model.captionAll([{ image, maxNewTokenz: 1 }]);
    // @ts-expect-error: an option of drawing
    model.answerAll([{ image, question: "a", steps: 1 }]);
    // @ts-expect-error: an option of writing
    model.editAll([{ image, instruction: "a", maxNewTokens: 1 }]);
    // @ts-expect-error: misspelt
    model.generateAll(["a"], { stepz: 1 });
    const either = await model.generate(["x"] as string | string[]);
    either satisfies Image | Image[];
    const text = "a" as string | string[];
    const pictures = image as Image | Image[];
    (await model.edit(image, "a")) satisfies Image;
    (await model.edit([image], text)) satisfies Image[];
    (await model.edit(image, ["a"])) satisfies Image[];
    (await model.edit(pictures, text)) satisfies Image | Image[];
    // @ts-expect-error: it may be one
    (await model.edit(image, text)) satisfies Image[];
    // @ts-expect-error: it may be one
    (await model.edit(pictures, "a")) satisfies Image[];
    (await model.answer(image, "a")) satisfies string;
    (await model.answer([image], text)) satisfies string[];
    (await model.answer(image, ["a"])) satisfies string[];
    // @ts-expect-error: it may be one
    (await model.answer(image, text)) satisfies string[];
    // @ts-expect-error: it may be one
    (await model.answer(pictures, "a")) satisfies string[];
    await image.save(new URL("file:///x.png"));
    // @ts-expect-error: a number is no prompt
    await model.generate(5);
    export { image };\n`;
  writeFileSync(join(project, "types.mts"), source);
  const types = join(project, "node_modules", "@types");
  if (!existsSync(types)) symlinkSync(join(root, "node_modules", "@types"), types);
  const options = ["--noEmit", "--strict", "--target", "es2022", "--types", "node"];
  await node(
    join(root, "node_modules/typescript/bin/tsc"),
    ...options,
    ...["--lib", "es2023,esnext.disposable,dom", "--skipLibCheck"],
    ...["--module", module!, "--moduleResolution", resolution!, "types.mts", ...pages],
  );
});

test("in a bundle by esbuild, with the package outside", async () => {
  writeFileSync(join(project, "entry.mjs"), `import { UniFluid } from "unifluid";${DRAW}`);
  const options = ["--bundle", "--platform=node", "--format=esm", "--outfile=bundle.mjs"];
  await run(bin("esbuild"), ["entry.mjs", ...options, "--external:unifluid"]);
  expect((await node("bundle.mjs")).stdout).toBe("64\n");
});

test("in a bundle by esbuild, with the addon alone outside", async () => {
  const options = ["--bundle", "--platform=node", "--format=cjs", "--outfile=whole/bundle.cjs"];
  const outside = ["--external:*.node", "--external:sharp", "--external:cmake-js"];
  writeFileSync(
    join(project, "entry.cjs"),
    `const { UniFluid } = require("unifluid"); (async () => {${DRAW.replace('"shapes-64"', "process.argv[2]")}})();`,
  );
  await run(bin("esbuild"), ["entry.cjs", ...options, ...outside]);
  const installed = join(project, "node_modules", "unifluid");
  const { UNIFLUID_NATIVE: _, ...env } = process.env;
  const { stdout } = await execute(
    process.execPath,
    ["whole/bundle.cjs", join(installed, "models/shapes-64")],
    {
      cwd: project,
      env: { ...env, UNIFLUID_NATIVE: join(installed, "prebuilds", target, "unifluid.node") },
    },
  );
  expect(stdout).toBe("64\n");
});

test("in a bundle by esbuild, with the addon along", async () => {
  writeFileSync(
    join(project, "along.cjs"),
    `const { UniFluid } = require("unifluid");
     const { createServer } = require("unifluid/server");
     (async () => {
       const model = await UniFluid.load(process.argv[2], { threads: 1 });
       const app = createServer(model, { page: false });
       console.log((await app.inject("/ready")).statusCode);
       await app.close();
       await createServer(model).ready().catch(({ code, message }) => console.log(code, message));
       await model.dispose();
     })();`,
  );
  const options = ["--bundle", "--platform=node", "--outfile=along/bundle.cjs"];
  const outside = ["--loader:.node=copy", "--external:sharp"];
  await run(bin("esbuild"), ["along.cjs", ...options, ...outside]);
  // Nothing else of the package is needed but the model.
  const installed = join(project, "node_modules", "unifluid");
  const away = join(project, "node_modules", "unifluid-away");
  renameSync(installed, away);
  try {
    const { stdout } = await node("along/bundle.cjs", join(away, "models/shapes-64"));
    expect(stdout).toMatch(/^200\nINVALID_OPTION .*index\.html is not there: .*page to false\n$/);
  } finally {
    renameSync(away, installed);
  }
});

test("where install scripts do not run", async () => {
  const folder = await install("no-scripts", "--ignore-scripts");
  const args = ["--no-install", "unifluid", "generate", "a blue star", "--out", "star.png"];
  await run("npx", args, folder);
  expect(existsSync(join(folder, "star.png"))).toBe(true);
}, 120_000);

test("in a project with an older cmake-js, which it does not use", async () => {
  const folder = join(work, "older");
  mkdirSync(join(folder, "old"), { recursive: true });
  const manifest = { name: "cmake-js", version: "7.4.0" };
  writeFileSync(join(folder, "old", "package.json"), JSON.stringify(manifest));
  const dependencies = { "cmake-js": "file:old", unifluid: `file:${tarball}` };
  writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true, dependencies }));
  await run("npm", ["install", "--prefer-offline"], folder);
  expect(existsSync(join(folder, "node_modules/unifluid"))).toBe(true);
}, 120_000);

test("with pnpm", async () => {
  const folder = join(work, "pnpm");
  mkdirSync(folder);
  writeFileSync(
    join(folder, "package.json"),
    JSON.stringify({ private: true, dependencies: { unifluid: `file:${tarball}` } }),
  );
  await run(bin("pnpm"), ["install", "--prefer-offline", "--ignore-scripts"], folder);
  writeFileSync(join(folder, "draw.mjs"), `import { UniFluid } from "unifluid";${DRAW}`);
  const { stdout } = await run(process.execPath, ["draw.mjs"], folder);
  expect(stdout).toBe("64\n");
}, 120_000);

describe("with the package of the CUDA library", () => {
  let library: string;
  beforeAll(async () => {
    // Of the right name, and of no version that the addon could take for its own.
    const source = join(work, "library.cpp");
    writeFileSync(source, 'extern "C" const void* unifluid_cuda_open() { return nullptr; }\n');
    const compiled = join(work, "unifluid_cuda.so");
    await execute("g++", ["-shared", "-fPIC", "-nostdlib", "-o", compiled, source]);
    const folder = join(work, "cuda-package");
    const script = join(root, "scripts", "cuda-package.mjs");
    await execute(process.execPath, [script, "--library", compiled, "--out", folder]);
    const args = ["pack", folder, "--json", "--ignore-scripts", "--pack-destination", work];
    const { stdout } = await execute("npm", args);
    library = join(work, (JSON.parse(stdout) as [{ filename: string }])[0].filename);
  });

  /** Which library a machine with a driver would open, as a program of the project finds it. */
  async function found(folder: string, addonPath?: string) {
    writeFileSync(
      join(folder, "found.cjs"),
      `const { dirname, join } = require("node:path");
       const dist = dirname(require.resolve("unifluid"));
       const { surveyDevices } = require(join(dist, "device.js"));
       const { addon, path } = require(join(dist, "addon.js")).findAddon();
       const cudaDevices = (path) => addon.cudaDevices(path);
       const from = ${JSON.stringify(addonPath)} ?? path;
       surveyDevices({ cudaDriverPresent: () => true, cudaDevices }, from).then((found) => console.log(JSON.stringify(found)));`,
    );
    return JSON.parse((await run(process.execPath, ["found.cjs"], folder)).stdout);
  }
  const asPackaged = {
    library: expect.stringMatching(/@unifluid\/cuda-linux-x64\/unifluid_cuda\.so$/),
    devices: [],
    reason: expect.stringMatching(/cuda-linux-x64.* belongs to another version of this package/),
  };

  test("anybody may install it, however its first version is published", () => {
    const file = join(work, "cuda-package", "package.json");
    expect(JSON.parse(readFileSync(file, "utf8")).publishConfig).toEqual({ access: "public" });
    const notices = readFileSync(join(work, "cuda-package", "THIRD_PARTY_NOTICES.md"), "utf8");
    expect(notices).toMatch(/CUDA runtime .*GCC Runtime Library Exception/s);
  });

  const onX64 = process.arch === "x64" ? test : test.skip;
  onX64(
    "installed beside, it is found",
    async () => {
      expect((await found(project)).reason).toMatch(/"npm install @unifluid\/cuda-linux-x64"/);
      const folder = await install("cuda", library);
      expect(await found(folder)).toEqual(asPackaged);
      // With an addon that UNIFLUID_NATIVE names, and no node_modules above it.
      expect(await found(folder, "/nowhere/unifluid.node")).toEqual(asPackaged);
    },
    120_000,
  );

  onX64(
    "with pnpm",
    async () => {
      const folder = join(work, "cuda-pnpm");
      mkdirSync(folder);
      const dependencies = {
        unifluid: `file:${tarball}`,
        "@unifluid/cuda-linux-x64": `file:${library}`,
      };
      writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true, dependencies }));
      await run(bin("pnpm"), ["install", "--prefer-offline", "--ignore-scripts"], folder);
      expect(await found(folder)).toEqual(asPackaged);
    },
    120_000,
  );
});

describe("doctor says in one line what is the case and what to do", () => {
  const installed = () =>
    join(project, "node_modules", "unifluid", "prebuilds", target, "unifluid.node");
  let whole: Buffer;
  beforeAll(() => {
    whole = readFileSync(installed());
  });
  afterEach(() => writeFileSync(installed(), whole));
  const doctor = () => run("npx", ["--no-install", "unifluid", "doctor"]);

  test("here", async () => {
    const { stdout } = await doctor();
    expect(stdout).toMatch(/^binary +.*from the package/m);
    expect(stdout).toMatch(/^device +cpu/m);
  });

  test.each<[string, (bytes: Buffer) => Buffer, RegExp]>([
    [
      "of another machine",
      (bytes) => {
        bytes.writeUInt16LE(process.arch === "x64" ? 183 : 62, 18);
        return bytes;
      },
      /it is for (arm64|x64), and this is/,
    ],
    [
      "that needs a newer C library",
      (bytes) => {
        // The name of a version it needs, whichever that is, made one that no system has.
        const name = "\0GLIBC_";
        const at = bytes.lastIndexOf(`${name}2.`);
        expect(at).toBeGreaterThan(0);
        bytes.write("9", at + name.length, "latin1");
        return bytes;
      },
      /it needs glibc 9\.[\d.]+ or later, and this machine has 2\./,
    ],
    ["that is cut short", (bytes) => bytes.subarray(0, 40_000), /it is cut short: 40000 of/],
    ["that is none", () => Buffer.from("<html>"), /it is damaged: 6 bytes/],
  ])("with a binary %s", async (_name, change, message) => {
    writeFileSync(installed(), change(Buffer.from(whole)));
    const said = await doctor().then(
      () => "",
      (error: Error) => error.message,
    );
    expect(said).toMatch(message);
    expect(said).toMatch(/NATIVE_LOAD_FAILED: .*npx unifluid build/);
  });
});

test("publint and are-the-types-wrong find nothing", async () => {
  const lint = await execute(bin("publint"), [tarball, "--strict"], { cwd: root });
  expect(lint.stdout).toContain("All good!");
  // Also as TypeScript resolved before packages had exports (node10), which many projects still have it do.
  const args = [tarball, "--format", "ascii", "--no-color", "--profile", "strict"];
  const { stdout } = await execute(bin("attw"), args, { cwd: root });
  // It ends with 1 where there is a problem; what it looked at is told.
  expect(stdout).toContain('"unifluid/server"');
});
