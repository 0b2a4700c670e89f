// Draws an image and shows how far it is.
//   node examples/stream.mjs "a red circle" out.png
import { UniFluid } from "unifluid";

const [prompt = "a red circle", out = "stream.png"] = process.argv.slice(2);
const model = await UniFluid.load("shapes-64");
for await (const progress of model.generateStream(prompt)) {
  process.stderr.write(`\r${progress.done} of ${progress.total}`);
  if (progress.image) await progress.image.save(out);
}
process.stderr.write(`\n${out}\n`);
await model.dispose();
