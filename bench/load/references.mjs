// What the server is asked, with the right answers, computed by the library in this process.
import sharp from "sharp";

const PROMPTS = [
  "a red circle left of a blue square",
  "two green stars",
  "a yellow triangle on a black background",
  "a small blue circle",
];
const QUESTIONS = ["how many objects are there?", "what color is the background?"];
const SETTINGS = [
  { steps: 2 },
  { steps: 4, guidance: 1 },
  { steps: 3, order: "raster" },
  { steps: 6, temperature: 0.5 },
];

/** Bodies and answers, and a picture too large to be decoded. */
export async function makeReferences(model) {
  const base64 = async (image) => (await image.toBuffer()).toString("base64");
  const draws = await Promise.all(
    PROMPTS.flatMap((prompt, i) =>
      SETTINGS.map(async (settings, j) => {
        const options = { ...settings, seed: 100 * i + j };
        // One and its successor, for requests of two.
        const images = await model.generate([prompt, prompt], options);
        return { body: { prompt, ...options }, images: await Promise.all(images.map(base64)) };
      }),
    ),
  );
  const photo = await (await model.generate(PROMPTS[0], { seed: 7, steps: 8 })).toBuffer();
  const edits = await Promise.all(
    ["make the circle blue", "remove the square"].map(async (prompt, seed) => {
      const image = await model.edit(photo, prompt, { seed, steps: 3 });
      return { body: { prompt, seed, steps: 3 }, image: await base64(image) };
    }),
  );
  const texts = await Promise.all(
    ["", ...QUESTIONS].map(async (question) => ({
      question,
      text: question === "" ? await model.caption(photo) : await model.answer(photo, question),
    })),
  );
  const create = { width: 5000, height: 5000, channels: 3, background: "#808080" };
  const bomb = await sharp({ create }).png().toBuffer();
  return { draws, edits, texts, photo, bomb };
}
