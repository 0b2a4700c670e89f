// Writes THIRD_PARTY_NOTICES.md: the licences of what ends up in the binary, and of what is installed with the package.
//
//   npm run notices [-- --check]    --check writes nothing and fails where the file is not what it would write
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const file = join(root, "THIRD_PARTY_NOTICES.md");
const read = (...path) => readFileSync(join(root, ...path), "utf8").replaceAll("\r\n", "\n");
const { packages } = JSON.parse(read("package-lock.json"));

const quote = (text) => text.replace(/^/gm, "> ").replace(/ +$/gm, "");

/** What is compiled into the addon: headers, with the texts that their licences want kept. */
const COMPILED = [
  ["node-addon-api", "LICENSE.md"],
  ["node-api-headers", "LICENSE"],
].map(([name, license]) => {
  const entry = packages[`node_modules/${name}`];
  const text = read("node_modules", name, license)
    .trim()
    .replace(/^.*\n+(?=Copyright)/, "");
  return `### ${name} ${entry.version} (${entry.license})\n\n${quote(text)}\n`;
});

/** LICENSE of Pillow, of which no file is here to be read. */
const PILLOW = `The Python Imaging Library (PIL) is

Copyright © 1997-2011 by Secret Labs AB
Copyright © 1995-2011 by Fredrik Lundh and contributors

Pillow is the friendly PIL fork. It is

Copyright © 2010 by Jeffrey 'Alex' Clark and contributors

Like PIL, Pillow is licensed under the open source MIT-CMU License:

By obtaining, using, and/or copying this software and/or its associated
documentation, you agree that you have read, understood, and will comply
with the following terms and conditions:

Permission to use, copy, modify and distribute this software and its
documentation for any purpose and without fee is hereby granted,
provided that the above copyright notice appears in all copies, and that
both that copyright notice and this permission notice appear in supporting
documentation, and that the name of Secret Labs AB or the author not be
used in advertising or publicity pertaining to distribution of the software
without specific, written prior permission.

SECRET LABS AB AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS
SOFTWARE, INCLUDING ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS.
IN NO EVENT SHALL SECRET LABS AB OR THE AUTHOR BE LIABLE FOR ANY SPECIAL,
INDIRECT OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM
LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE
OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR
PERFORMANCE OF THIS SOFTWARE.`;

/** What npm installs for whoever installs the package: name, version, licence, where it is not for all. */
const INSTALLED = new Set(
  Object.entries(packages)
    .filter(([path, entry]) => path && !entry.dev && !entry.devOptional && !entry.peer)
    .map(([path, entry]) => {
      const name = path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
      if (!entry.license) throw new Error(`package-lock.json tells no licence of ${name}`);
      const machine = [entry.os, entry.cpu, entry.libc].flatMap((list) => list ?? []).join(" ");
      return `| ${name} | ${entry.version} | ${entry.license} | ${machine} |`;
    }),
);

const text = `# Third-party notices

Written by \`npm run notices\` from the lock file; not edited by hand. This package itself is under the Apache License 2.0
([LICENSE](LICENSE)).

## In the binary

The addon \`unifluid.node\` is compiled from this package's sources and the headers below. It links the C library and
\`libstdc++\` of the system dynamically. Inline functions and templates of GCC's headers, and the parts of \`libstdc++\`
that an older system lacks, are compiled in: they are under GPL-3.0 with the
[GCC Runtime Library Exception](https://www.gnu.org/licenses/gcc-exception-3.1.html), which puts no condition on the
program that was compiled. Nothing else is linked in.

${COMPILED.join("\n")}
### Pillow (MIT-CMU)

\`core/image_resize.cpp\` resizes pictures with the results of Pillow, and its filters, coefficients and passes follow
Pillow's \`src/libImaging/Resample.c\`.

${quote(PILLOW)}

## In the package

\`dist\` is this package's TypeScript, compiled and not bundled with anything; \`models/shapes-64\` was trained for this
package on pictures made by a program, and is under the package's licence. Of the C++ sources,
\`core/image_resize.cpp\` follows Pillow's, as said above. No other work is copied into it.

## Installed with the package

npm installs these ${INSTALLED.size} from the registry, each under its own licence; they are not part of this package's files. A
machine gets those without a last column and those that name it.

| package | version | licence | only for |
| --- | --- | --- | --- |
${[...INSTALLED].sort().join("\n")}
`;

if (!parseArgs({ options: { check: { type: "boolean" } } }).values.check) writeFileSync(file, text);
else if (read("THIRD_PARTY_NOTICES.md") !== text) {
  console.error("THIRD_PARTY_NOTICES.md is not up to date: npm run notices");
  process.exit(1);
}
