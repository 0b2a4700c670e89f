// Describes every image of a folder. The engine is kept full, and memory does not grow with the folder.
//   node examples/describe-folder.mjs FOLDER
import { opendir } from "node:fs/promises";
import { join } from "node:path";
import { UniFluid } from "unifluid";

const folder = process.argv[2] ?? ".";

async function* images() {
  for await (const { name } of await opendir(folder)) {
    if (/\.(png|jpe?g|webp)$/i.test(name)) yield join(folder, name);
  }
}

const model = await UniFluid.load("shapes-64");
for await (const { item, value, error } of model.captionAll(images())) {
  if (error) console.error(`${item}\t${error.code}: ${error.message}`);
  else console.log(`${item}\t${value}`);
}
await model.dispose();
