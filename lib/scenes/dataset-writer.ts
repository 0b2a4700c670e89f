/** The two forms that a data set is written in: pictures beside manifests, or tar shards (WebDataset). */
import { createWriteStream, type WriteStream } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { finished, pipeline } from "node:stream/promises";
import { type Pack, pack } from "tar-stream";
import type { TemplateTask } from "../prompts.js";

/** A record of one task, which names its pictures. */
export interface DatasetRecord {
  image: string;
  target?: string;
  [field: string]: unknown;
}

/** A scene as it is written. */
export interface DrawnScene {
  index: number;
  /** PNG files by the names that the records have for them. */
  pictures: ReadonlyMap<string, Buffer>;
  records: Partial<Record<TemplateTask, DatasetRecord>>;
}

export interface DatasetWriter {
  /** Scenes in the order of their numbers. */
  write(scenes: readonly DrawnScene[]): Promise<void>;
  end(): Promise<void>;
}

/** `images/`, and a manifest of JSON lines for each task. */
export class ManifestWriter implements DatasetWriter {
  private constructor(
    private readonly folder: string,
    private readonly manifests: readonly { task: TemplateTask; stream: WriteStream }[],
  ) {}

  static async open(folder: string, tasks: readonly TemplateTask[]): Promise<ManifestWriter> {
    await mkdir(join(folder, "images"));
    const manifests = tasks.map((task) => ({
      task,
      stream: createWriteStream(join(folder, `${task}.jsonl`)),
    }));
    return new ManifestWriter(folder, manifests);
  }

  async write(scenes: readonly DrawnScene[]): Promise<void> {
    await Promise.all(
      scenes.flatMap(({ pictures }) =>
        [...pictures].map(([name, png]) => writeFile(join(this.folder, name), png)),
      ),
    );
    for (const { task, stream } of this.manifests) {
      const text = scenes.map(({ records }) => `${JSON.stringify(records[task])}\n`).join("");
      if (!stream.write(text))
        await new Promise<void>((done) => stream.once("drain", () => done()));
    }
  }

  async end(): Promise<void> {
    await Promise.all(
      this.manifests.map(({ stream }) => {
        stream.end();
        return finished(stream);
      }),
    );
  }
}

/** A tar file that is being written. */
interface OpenShard {
  number: number;
  archive: Pack;
  written: Promise<void>;
}

/** `TASK-000000.tar`, …: of each task so many shards of successive scenes. */
export class ShardWriter implements DatasetWriter {
  private readonly open = new Map<TemplateTask, OpenShard>();

  /** `count`: scenes in all. */
  constructor(
    private readonly folder: string,
    private readonly tasks: readonly TemplateTask[],
    private readonly shards: number,
    private readonly count: number,
  ) {}

  async write(scenes: readonly DrawnScene[]): Promise<void> {
    for (const { index, pictures, records } of scenes) {
      const number = Math.floor((index * this.shards) / this.count);
      const key = String(index).padStart(6, "0");
      for (const task of this.tasks) {
        const { image, target, ...record } = records[task] as DatasetRecord;
        const { archive } = await this.shardOf(task, number);
        await addFile(archive, `${key}.json`, Buffer.from(JSON.stringify(record)));
        await addFile(archive, `${key}.png`, pictures.get(image) as Buffer);
        if (target) await addFile(archive, `${key}.target.png`, pictures.get(target) as Buffer);
      }
    }
  }

  private async shardOf(task: TemplateTask, number: number): Promise<OpenShard> {
    const current = this.open.get(task);
    if (current?.number === number) return current;
    if (current) await close(current);
    const archive = pack();
    const name = `${task}-${String(number).padStart(6, "0")}.tar`;
    const written = pipeline(archive, createWriteStream(join(this.folder, name)));
    written.catch(() => {}); // told when it is closed
    const shard = { number, archive, written };
    this.open.set(task, shard);
    return shard;
  }

  async end(): Promise<void> {
    for (const shard of this.open.values()) await close(shard);
  }
}

async function close({ archive, written }: OpenShard): Promise<void> {
  archive.finalize();
  await written;
}

/** Waits until there is room for more. All files are of one time: one seed, the same bytes. */
function addFile(archive: Pack, name: string, bytes: Buffer): Promise<void> {
  return new Promise((done, fail) => {
    archive.entry({ name, mtime: new Date(0) }, bytes, (error) => (error ? fail(error) : done()));
  });
}
