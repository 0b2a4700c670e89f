// Draws the prompts given on the command line, together, and saves them.
//   node examples/generate.mjs "a red circle" "two green stars"
import { UniFluid } from "unifluid";

const prompts = process.argv.slice(2);
if (prompts.length === 0) prompts.push("a red circle left of a blue square");
const model = await UniFluid.load("shapes-64");
const images = await model.generate(prompts, { seed: 7 });
for (const [i, image] of images.entries()) {
  const name = `image-${i + 1}.png`;
  await image.save(name);
  console.log(`${name}: ${prompts[i]} (seed ${image.seed})`);
}
await model.dispose();
