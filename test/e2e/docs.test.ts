/** What README, the documentation and the examples say, held against the program. */

import { execFile } from "node:child_process";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { promisify } from "node:util";
import sharp from "sharp";
import { parse as parseYaml } from "yaml";
import { parseModelConfig } from "../../lib/checkpoint/config.js";
import { Fields } from "../../lib/checkpoint/fields.js";
import { parseVaeConfig } from "../../lib/checkpoint/vae-config.js";
import { ExitCode } from "../../lib/cli/exit-codes.js";
import { errorClass, errorCodes } from "../../lib/errors.js";
import { generationBody } from "../../lib/server/schemas.js";
import { parseRunConfig } from "../../lib/train/config.js";

const execute = promisify(execFile);
const root = join(__dirname, "../..");
const read = (path: string) => readFileSync(join(root, path), "utf8");
const markdown = (folder: string) =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith(".md"))
    .map((name) => join(folder, name));
const pages = [...markdown("."), ...markdown("docs"), "models/shapes-64/README.md"];

let project: string;
beforeEach(() => {
  project = mkdtempSync(join(tmpdir(), "unifluid-docs-"));
  mkdirSync(join(project, "node_modules"));
  symlinkSync(root, join(project, "node_modules/unifluid"));
});
afterEach(() => rmSync(project, { recursive: true, force: true }));

/** Code blocks of a language, with the page and the line they begin at. */
function blocks(language: string): [string, string][] {
  return pages.flatMap((page) => {
    const text = read(page);
    return [...text.matchAll(new RegExp(`^\`\`\`${language}\n([^]*?)^\`\`\``, "gm"))].map(
      (match): [string, string] => [
        `${page}:${text.slice(0, match.index).split("\n").length}`,
        match[1]!,
      ],
    );
  });
}

/** Languages of code blocks; the tests below run, compile or parse those of each. */
const LANGUAGES = ["js", "ts", "sh", "bash", "json", "jsonl", "yaml"];
/** Settings of other programs, which are not here: what they say of this one is tested. */
const SETTINGS = ["nginx", "ini", "dockerfile"];

test("every code block is of a language that is tested here", () => {
  const known = [...LANGUAGES, ...SETTINGS];
  for (const page of pages) {
    const fences = [...read(page).matchAll(/^ *```(.*)$/gm)].map(([, language]) => language!);
    expect([page, fences.length % 2]).toEqual([page, 0]);
    // Every other fence closes a block.
    for (const language of fences.filter((_, i) => i % 2 === 0)) {
      expect({ page, language, known: known.includes(language) }).toMatchObject({
        known: true,
      });
    }
  }
});

test.each(blocks("js"))("the program at %s runs", async (_, program) => {
  writeFileSync(join(project, "program.mjs"), program);
  const { stderr } = await execute(process.execPath, ["program.mjs"], { cwd: project });
  expect(stderr).toBe("");
});

test.each(blocks("json"))("the document at %s is one", (_, text) => {
  expect(() => JSON.parse(text)).not.toThrow();
});

test.each(blocks("yaml"))(
  "the YAML at %s is some, and names options that exist",
  async (page, text) => {
    const manifest = parseYaml(text);
    if (manifest.sources) {
      parseRunConfig(manifest, page, "/");
      return;
    }
    if (manifest.text_config) {
      parseModelConfig(Fields.of({ model_type: "unifluid", ...manifest }, page));
      return;
    }
    if (manifest.vae) {
      parseVaeConfig(Fields.of(manifest.vae, page));
      return;
    }
    expect(manifest).toMatchObject({ apiVersion: expect.any(String), kind: expect.any(String) });
    for (const { command, args = [] } of manifest.spec.template?.spec.containers ?? []) {
      const [node, program, name, ...rest] = command as string[];
      // npx would keep the signal that ends a container to itself.
      expect([node, program]).toEqual(["node", "node_modules/unifluid/dist/cli/main.js"]);
      const main = join(root, "dist/cli/main.js");
      const { stdout } = await execute(process.execPath, [main, name!, "--help"]);
      const flags = [...rest, ...args].filter((arg) => arg.startsWith("--"));
      for (const flag of flags) expect(stdout).toContain(flag);
    }
  },
);

test.each(blocks("jsonl"))("every line of the jobs at %s is one", (_, text) => {
  for (const line of text.trimEnd().split("\n")) expect(() => JSON.parse(line)).not.toThrow();
});

/** Programs in JavaScript are held to what it can say: no types of caught errors, no absence. */
test.each([
  ["ts", ["--strict"]],
  ["js", ["--strict", "false"]],
])("the programs of the pages in %s hold against the types", async (language, strictness) => {
  const programs = blocks(language);
  expect(programs.length).toBeGreaterThan(0);
  symlinkSync(join(root, "node_modules/openai"), join(project, "node_modules/openai"));
  symlinkSync(join(root, "node_modules/@types"), join(project, "node_modules/@types"));
  const files = programs.map(([, program], i) => {
    // Without an export two programs would share their names.
    writeFileSync(join(project, `page-${i}.mts`), `${program}\nexport {};\n`);
    return `page-${i}.mts`;
  });
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  const options = ["--noEmit", "--module", "node20", "--types", "node", "--skipLibCheck"];
  await execute(process.execPath, [tsc, ...options, ...strictness, ...files], {
    cwd: project,
  }).catch((error) => {
    throw new Error(`${error.stdout}${programs.map(([at], i) => `page-${i}: ${at}\n`).join("")}`);
  });
});

test("every option of the larger commands is explained", async () => {
  for (const [command, page] of [
    ["serve", "docs/serve.md"],
    ["batch", "docs/batch.md"],
    ["enqueue", "docs/queue.md"],
    ["worker", "docs/queue.md"],
    ["scenes", "docs/scenes.md"],
    ["tokenizer", "docs/train.md"],
    ["init", "docs/train.md"],
    ["eval", "docs/evaluate.md"],
  ] as const) {
    const main = join(root, "dist/cli/main.js");
    const { stdout } = await execute(process.execPath, [main, command, "--help"]);
    const flags = [...stdout.matchAll(/^ {2}(?:-\w, )?(--[a-z0-9-]+)/gm)].map(([, flag]) => flag!);
    expect(flags.length).toBeGreaterThan(4);
    const text = `${read(page)}${read("docs/cli.md")}`;
    expect(flags.filter((flag) => flag !== "--help" && !text.includes(flag))).toEqual([]);
  }
});

test("what the programs print is what their comments say", async () => {
  const printed = blocks("js").flatMap(([page, program]) =>
    [...program.matchAll(/^\s*console\.log\(.*\); \/\/ (.+)$/gm)].map((m) => ({
      page,
      program,
      line: m[1]!,
    })),
  );
  expect(printed.length).toBeGreaterThan(2);
  for (const { program, line } of printed) {
    writeFileSync(join(project, "program.mjs"), program);
    const { stdout } = await execute(process.execPath, ["program.mjs"], { cwd: project });
    const said = line.replace(/\s/g, "");
    expect(stdout.split("\n").map((text) => text.replace(/\s/g, ""))).toContain(said);
  }
});

/** Commands of this program; those of a clone (npm, npx jest) are what runs these tests. */
const commands = blocks("sh").flatMap(([page, block]) =>
  block
    .split("\n")
    .flatMap((line) => line.split("&&"))
    // A server and a worker run until they are stopped; they have tests of their own.
    .filter((line) => /^npx unifluid (?!serve|worker|enqueue|queue)/.test(line.trim()))
    .map((line): [string, string] => [page, line.trim()]),
);

test("the commands of README and of the command line's page run one after the other", async () => {
  expect(commands.length).toBeGreaterThan(5);
  writeFileSync(join(project, "jobs.jsonl"), blocks("jsonl")[0]![1]);
  // Files whose name is in their first line.
  for (const [, text] of blocks("yaml")) {
    const name = /^# (\w+\.yaml)$/m.exec(text.split("\n")[0]!)?.[1];
    if (name) writeFileSync(join(project, name), text);
  }
  for (const [page, command] of commands) {
    const line = command.replace(
      /^npx unifluid/,
      `"${process.execPath}" "${root}/dist/cli/main.js"`,
    );
    await execute("bash", ["-c", line], { cwd: project }).catch((error) => {
      throw new Error(`${page}: ${command}\n${error.stderr}`);
    });
  }
}, 300_000);

test.each(blocks("sh"))(
  "the shell understands %s, and npm the scripts it names",
  async (_, block) => {
    await execute("bash", ["-n", "-c", block]);
    const { scripts } = JSON.parse(read("package.json"));
    for (const [, name] of block.matchAll(/\bnpm run ([\w:-]+)/g)) {
      expect(Object.keys(scripts)).toContain(name);
    }
  },
);

test("requests that the pages send by curl have bodies that the server takes", () => {
  const bodies = blocks("bash").flatMap(([, block]) =>
    [...block.matchAll(/-d '(.*?)'/g)].map(([, body]) => body!),
  );
  expect(bodies.length).toBeGreaterThan(0);
  for (const body of bodies) generationBody.parse(JSON.parse(body));
});

test("settings of other programs name options of the server that exist", async () => {
  const main = join(root, "dist/cli/main.js");
  const { stdout } = await execute(process.execPath, [main, "serve", "--help"]);
  const lines = SETTINGS.flatMap(blocks).flatMap(([, block]) =>
    block.split("\n").filter((line) => /\bserve\b/.test(line)),
  );
  expect(lines.length).toBeGreaterThan(0);
  for (const flag of lines.flatMap((line) => line.match(/--[a-z-]+/g) ?? [])) {
    expect(stdout).toMatch(new RegExp(`${flag}\\b`));
  }
});

test("commands that go on until they are stopped name options that exist", async () => {
  const lines = blocks("sh").flatMap(([, block]) =>
    [...block.matchAll(/npx unifluid ((?:serve|worker|enqueue|queue \w+).*)$/gm)].map((m) => m[1]!),
  );
  expect(lines.length).toBeGreaterThan(3);
  for (const line of lines) {
    const words = line.split(/\s+/);
    const command = words.slice(0, words[0] === "queue" ? 2 : 1);
    const main = join(root, "dist/cli/main.js");
    const { stdout } = await execute(process.execPath, [main, ...command, "--help"]);
    expect(stdout).toContain(`unifluid ${command.join(" ")}`);
    for (const flag of words.filter((word) => word.startsWith("--"))) {
      expect(stdout).toMatch(new RegExp(`${flag}\\b`));
    }
  }
});

test("typedoc makes the API's pages without a warning", async () => {
  const typedoc = join(root, "node_modules/typedoc/bin/typedoc");
  const out = join(project, "api");
  await execute(process.execPath, [typedoc, "--out", out], { cwd: root }).catch((error) => {
    throw new Error(`${error.stdout}${error.stderr}`);
  });
  expect(readFileSync(join(out, "classes/index.UniFluid.html"), "utf8")).toContain(
    "generateStream",
  );
}, 120_000);

test("the script of README's pictures draws them", async () => {
  const script = join(root, "scripts/draw-pictures.mjs");
  await execute(process.execPath, [script, project]);
  for (const picture of [project, join(root, "docs/images")]) {
    // The same size, not the same bytes: they depend on the instruction set and the labels on the fonts.
    const { width, height } = await sharp(join(picture, "contact-sheet.png")).metadata();
    expect({ width, height }).toEqual({ width: 1084, height: expect.any(Number) });
  }
  expect(read("README.md")).toContain("docs/images/contact-sheet.png");
});

test("every error code is explained, with its class", () => {
  const rows = [...read("docs/errors.md").matchAll(/^\| `([A-Z_]+)` \| `(\w+)` \|/gm)];
  const explained = rows.map(([, code, name]) => [code, name]);
  expect(explained.sort()).toEqual(
    errorCodes.map((code) => [code, (errorClass(code) as { name: string }).name]).sort(),
  );
});

test("every exit code is explained", () => {
  const page = read("docs/cli.md");
  for (const code of Object.values(ExitCode))
    expect(page).toMatch(new RegExp(`^\\| ${code}\\b`, "m"));
});

/** The anchors that GitHub gives a page's headings. */
const anchors = (page: string) =>
  [...page.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading!
      .toLowerCase()
      .replace(/[^\w\- ]/g, "")
      .replaceAll(" ", "-"),
  );

test("links within the repository lead somewhere", () => {
  for (const page of pages) {
    for (const [link, target, anchor] of read(page).matchAll(/\]\(([^)#\s]*)(?:#([^)]*))?\)/g)) {
      if (/^https?:/.test(target!)) continue;
      const path = target ? relative(root, join(root, dirname(page), target)) : page;
      expect(() => read(path)).not.toThrow();
      if (anchor)
        expect({ link, anchors: anchors(read(path)) }).toMatchObject({
          anchors: expect.arrayContaining([anchor]),
        });
    }
  }
});
