// What tsc leaves undone in dist/: the ES module face of the CommonJS build, and a program that can be run.
//
// index.mjs re-exports the CommonJS module instead of being a second build, so that a process in which
// one library says `import` and another `require` has one instance of every class and of the addon.
import { chmodSync, cpSync, existsSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const dist = new URL("../dist/", import.meta.url);
const require = createRequire(import.meta.url);

for (const [entry, file] of [
  ["index", "index"],
  ["server/server", "server"],
]) {
  const names = Object.keys(require(fileURLToPath(new URL(`${entry}.js`, dist))));
  const invalid = names.filter((name) => !/^[A-Za-z_$][\w$]*$/.test(name) || name === "default");
  if (names.length === 0 || invalid.length > 0) {
    throw new Error(`cannot re-export ${invalid.join(", ") || "nothing"} from dist/${entry}.js`);
  }
  writeFileSync(
    new URL(`${entry}.mjs`, dist),
    `import cjs from "./${file}.js";\n\nexport const {\n${names.map((name) => `  ${name},\n`).join("")}} = cjs;\n`,
  );
  writeFileSync(new URL(`${entry}.d.mts`, dist), `export * from "./${file}.js";\n`);
}

// Files that are no modules go along as they are.
cpSync(new URL("../lib/server/page/", import.meta.url), new URL("server/page/", dist), {
  recursive: true,
});

// What an earlier build left of a module that is no more would be published with the rest.
const sourceOf = (name) => name.replace(/\.(d\.[cm]?ts|[cm]?js)$/, "");
for (const entry of readdirSync(dist, { recursive: true, withFileTypes: true })) {
  if (!entry.isFile()) continue;
  const path = relative(fileURLToPath(dist), join(entry.parentPath, entry.name));
  const lib = new URL(`../lib/${sourceOf(path)}`, import.meta.url);
  if (!existsSync(new URL(`${lib}.ts`)) && !existsSync(new URL(`../lib/${path}`, import.meta.url)))
    rmSync(new URL(path, dist));
}

// npm does this when it links a program, but not when a linked clone is built again.
chmodSync(new URL("cli/main.js", dist), 0o755);
