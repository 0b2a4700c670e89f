/** Manifests and tar shards for tests of training's sources. */
import { createWriteStream } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { pack } from "tar-stream";

export async function writeTar(
  path: string,
  files: Record<string, string | Uint8Array>,
): Promise<void> {
  const archive = pack();
  for (const [name, content] of Object.entries(files))
    archive.entry({ name }, typeof content === "string" ? content : Buffer.from(content));
  archive.finalize();
  await pipeline(archive, createWriteStream(path));
}

/** In `folder`, shards `a-0.tar`, … whose records have the captions 0, 1, 2, … */
export async function captionShards(folder: string, sizes: readonly number[]): Promise<string> {
  let n = 0;
  for (const [shard, size] of sizes.entries()) {
    const files: Record<string, string> = {};
    for (let i = 0; i < size; i++, n++) {
      files[`${n}.png`] = "picture";
      files[`${n}.json`] = JSON.stringify({ task: "caption", text: String(n) });
    }
    await writeTar(join(folder, `a-${shard}.tar`), files);
  }
  return join(folder, `a-{0..${sizes.length - 1}}.tar`);
}

/** In `folder`, a manifest `a.jsonl` of the same. */
export async function captionManifest(folder: string, count: number): Promise<string> {
  const path = join(folder, "a.jsonl");
  const record = (n: number) => ({ task: "caption", image: "a.png", text: String(n) });
  const lines = Array.from({ length: count }, (_, n) => JSON.stringify(record(n)));
  await writeFile(path, lines.join("\n"));
  return path;
}
