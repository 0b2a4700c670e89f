// A table of figures that is whole in its files after each of them: what ends the program early takes none away.
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export class Table {
  /** `name`: of the file, without ending; `folders`: where it is written; `title` and `columns`: what it says. */
  constructor({ name, folders, title, columns }) {
    Object.assign(this, { name, folders, title, columns, heading: "", rows: [] });
    console.log(line(columns));
    console.log(line(columns.map(() => "---")));
  }

  /** Adds a row of cells, which may be changed later: show() then. */
  add(cells) {
    this.rows.push(cells);
    this.show(cells);
  }

  show(cells) {
    console.log(line(cells));
    this.write();
  }

  /** Beside, then renamed: nobody reads half a table. */
  write() {
    const table = [this.columns, this.columns.map(() => "---"), ...this.rows].map(line).join("\n");
    for (const folder of this.folders) {
      const file = join(folder, `${this.name}.md`);
      mkdirSync(folder, { recursive: true });
      writeFileSync(`${file}.part`, `# ${this.title}\n\n${this.heading}\n\n${table}\n`);
      renameSync(`${file}.part`, file);
    }
  }
}

const line = (cells) => `| ${cells.join(" | ")} |`;

/** A device's name as the name of a file. */
export const fileName = (device) =>
  device
    .toLowerCase()
    .replace(/^nvidia /, "")
    .replace(/[^a-z0-9]+/g, "-");

/** A reason that fits a cell. */
export const inCell = (error) =>
  `failed: ${String(error?.message ?? error)
    .split("\n")[0]
    .replaceAll("|", "/")
    .slice(0, 200)}`;
