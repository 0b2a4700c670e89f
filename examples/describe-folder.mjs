// Captions every image of a folder; all are worked on together.
//   node examples/describe-folder.mjs FOLDER
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { UniFluid } from "unifluid";

const folder = process.argv[2] ?? ".";
const names = (await readdir(folder)).filter((name) => /\.(png|jpe?g|webp)$/i.test(name));
const model = await UniFluid.load("shapes-64");
await Promise.all(
  names.map(async (name) => {
    try {
      console.log(`${name}\t${await model.caption(join(folder, name))}`);
    } catch (error) {
      console.error(`${name}\t${error.code}: ${error.message}`);
    }
  }),
);
await model.dispose();
