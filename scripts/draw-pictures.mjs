// Draws the pictures of README with the model that ships: npm run docs:pictures [-- FOLDER]
// Picture i has seed 7 + i, and the prompts are as they stand: what comes is shown, good or bad.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { contactSheet } from "../dist/contact-sheet.js";
import { UniFluid } from "../dist/index.mjs";

const SEED = 7;
const PROMPTS = [
  "a red circle left of a blue square",
  "three small orange hearts on a white background",
  "a large cyan star on a pink background",
  "two green stars",
  "a purple heart on a gray background",
  "an orange square above a cyan circle",
  "three yellow stars on a blue background",
  "a large green triangle",
];

const folder = process.argv[2] ?? fileURLToPath(new URL("../docs/images/", import.meta.url));
mkdirSync(folder, { recursive: true });
const model = await UniFluid.load("shapes-64");
try {
  const images = await model.generate(PROMPTS, { seed: SEED });
  const sheet = await contactSheet(
    images.map((image, i) => ({ image, label: PROMPTS[i] })),
    { columns: 4 },
  );
  const path = join(folder, "contact-sheet.png");
  await sheet.save(path);
  console.log(path);
} finally {
  await model.dispose();
}
