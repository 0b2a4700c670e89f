/** What a checkpoint has beside the weights that a run trains: configuration, tokenizer, autoencoder. */
import { mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

/**
 * Those of one directory, in memory: a run takes them as it opens, for the directory may be gone by its next
 * checkpoint, as where another run wrote it and keeps only its last ones.
 */
export class SideFiles {
  private constructor(private readonly files: ReadonlyMap<string, Buffer>) {}

  /** The JSON files of a directory but those in `without`, and all of its `vae/`. */
  static async read(directory: string, without: readonly string[]): Promise<SideFiles> {
    const names: string[] = [];
    for (const name of await readdir(directory)) {
      if (name === "vae") {
        const inner = await readdir(join(directory, name), { recursive: true });
        names.push(...inner.map((path) => join(name, path)));
      } else if (
        name.endsWith(".json") &&
        !/^model.*\.safetensors/.test(name) &&
        !without.includes(name)
      ) {
        names.push(name);
      }
    }
    const files = new Map<string, Buffer>();
    for (const name of names) {
      const path = join(directory, name);
      if ((await stat(path)).isFile()) files.set(name, await readFile(path));
    }
    return new SideFiles(files);
  }

  /** The fields of a JSON file; undefined where there is none. */
  fields(name: string): Record<string, unknown> | undefined {
    const bytes = this.files.get(name);
    return bytes && JSON.parse(bytes.toString());
  }

  async write(folder: string): Promise<void> {
    for (const [name, bytes] of this.files) {
      const path = join(folder, name);
      await mkdir(dirname(path), { recursive: true });
      await writeFile(path, bytes);
    }
  }
}
