/** The two forms that a data set is written in: pictures beside manifests, or tar shards (WebDataset). */
import { createWriteStream, type WriteStream } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { finished, pipeline } from "node:stream/promises";
import { type Pack, pack } from "tar-stream";
import type { TemplateTask } from "../prompts.js";
import { allSettled } from "../settled.js";

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
  /** Gives up: once it is done no file is open and none is made any more, so that the folder can be deleted. */
  discard(): Promise<void>;
}

/** A promise whose failure is told when it is waited for, however late that is. */
function toldLater<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  return promise;
}

/** A manifest that is being written. */
interface OpenManifest {
  task: TemplateTask;
  stream: WriteStream;
  written: Promise<void>;
}

/** `images/`, and a manifest of JSON lines for each task. */
export class ManifestWriter implements DatasetWriter {
  private constructor(
    private readonly folder: string,
    private readonly manifests: readonly OpenManifest[],
  ) {}

  static async open(folder: string, tasks: readonly TemplateTask[]): Promise<ManifestWriter> {
    await mkdir(join(folder, "images"));
    const manifests = tasks.map((task) => {
      const stream = createWriteStream(join(folder, `${task}.jsonl`));
      return { task, stream, written: toldLater(finished(stream)) };
    });
    return new ManifestWriter(folder, manifests);
  }

  async write(scenes: readonly DrawnScene[]): Promise<void> {
    const pictures = scenes.flatMap(({ pictures }) =>
      [...pictures].map(([name, png]) => writeFile(join(this.folder, name), png)),
    );
    // None may be made after `discard`.
    await allSettled(pictures);
    for (const { task, stream, written } of this.manifests) {
      const text = scenes.map(({ records }) => `${JSON.stringify(records[task])}\n`).join("");
      if (stream.write(text)) continue;
      const drained = new Promise<void>((done) => stream.once("drain", () => done()));
      // A stream that failed never drains.
      await Promise.race([drained, written]);
    }
  }

  async end(): Promise<void> {
    for (const { stream } of this.manifests) stream.end();
    await Promise.all(this.manifests.map(({ written }) => written));
  }

  async discard(): Promise<void> {
    for (const { stream } of this.manifests) stream.destroy();
    await Promise.allSettled(this.manifests.map(({ written }) => written));
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
        const shard = await this.shardOf(task, number);
        await addFile(shard, `${key}.json`, Buffer.from(JSON.stringify(record)));
        await addFile(shard, `${key}.png`, pictures.get(image) as Buffer);
        if (target) await addFile(shard, `${key}.target.png`, pictures.get(target) as Buffer);
      }
    }
  }

  private async shardOf(task: TemplateTask, number: number): Promise<OpenShard> {
    const current = this.open.get(task);
    if (current?.number === number) return current;
    if (current) await close(current);
    const archive = pack();
    const name = `${task}-${String(number).padStart(6, "0")}.tar`;
    const written = toldLater(pipeline(archive, createWriteStream(join(this.folder, name))));
    const shard = { number, archive, written };
    this.open.set(task, shard);
    return shard;
  }

  async end(): Promise<void> {
    for (const shard of this.open.values()) await close(shard);
  }

  async discard(): Promise<void> {
    for (const { archive } of this.open.values()) archive.destroy();
    await Promise.allSettled([...this.open.values()].map(({ written }) => written));
  }
}

async function close({ archive, written }: OpenShard): Promise<void> {
  archive.finalize();
  await written;
}

/** Waits until there is room for more. All files are of one time: one seed, the same bytes. */
async function addFile({ archive, written }: OpenShard, name: string, bytes: Buffer) {
  const added = new Promise<void>((done, fail) => {
    const entry = archive.entry({ name, mtime: new Date(0) }, bytes, (error) =>
      error ? fail(error) : done(),
    );
    // What the archive ends with it also tells each entry: the callback has it.
    entry.on("error", () => {});
  });
  await added.catch(async (error) => {
    // Where writing failed an entry knows only that; the file knows why.
    await written;
    throw error;
  });
}
