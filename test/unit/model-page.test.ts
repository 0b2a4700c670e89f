/** The figures on the page of the included model are those that were measured. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Rate, SuiteReport } from "../../lib/evaluate/scenes-suite";

const folder = join(__dirname, "../../models/shapes-64");
const page = readFileSync(join(folder, "README.md"), "utf8");
const report = JSON.parse(
  readFileSync(join(folder, "evaluation.json"), "utf8"),
) as Required<SuiteReport> & { model: string };

const number = (share: number) => (share === 1 ? "100" : (100 * share).toFixed(1));
const percent = (...rates: (Rate | undefined)[]) =>
  `${rates.map((r) => number(r!.rate)).join(" / ")} %`;

test("each row of the table has the figures of evaluation.json", () => {
  const { generation, heldOut, captions, answers, edits, vae, frechet } = report;
  const { tasks, attributes, byObjects, byShape } = generation;
  const shapes = ["circle", "square", "heart", "triangle", "star"].map((shape) => byShape[shape]);
  const rows: [RegExp, string][] = [
    [/^generation, GenEval's six tasks/, `${number(generation.score)} %`],
    [
      /^— single object \/ two \/ counting \/ colours \/ position \/ attribution$/,
      percent(
        tasks["single object"],
        tasks["two objects"],
        tasks.counting,
        tasks.colors,
        tasks.position,
        tasks["color attribution"],
      ),
    ],
    [/^generation from full captions: everything right$/, percent(attributes.all)],
    [/^— of one object \/ two \/ three$/, percent(byObjects[1], byObjects[2], byObjects[3])],
    [
      /^— background \/ number \/ colours \/ shapes$/,
      percent(attributes.background, attributes.count, attributes.color, attributes.shape),
    ],
    [/^— of circles \/ squares \/ hearts \/ triangles \/ stars there/, percent(...shapes)],
    [/^— relation of two objects$/, percent(attributes.relation)],
    [
      new RegExp(
        `^colour–shape pairs never seen .*\\(pairs that were: ${percent(heldOut.seen)}\\)$`,
      ),
      percent(heldOut.heldOut),
    ],
    [/^captions exactly right$/, percent(captions.exact)],
    [
      new RegExp(
        `^questions .*: ${number(answers.majority)} %; of the question: ${number(answers.blind)} %\\)$`,
      ),
      percent(answers.all),
    ],
    [/^edits: change made/, percent(edits.all)],
    [
      /^autoencoder, PSNR$/,
      `${vae.psnr.toFixed(1)} dB; ${percent(vae.parsedAfter)} of reconstructions parse fully right`,
    ],
    [
      /^Fréchet distance of drawings \/ of true pictures/,
      `${frechet.drawn.toFixed(3)} / ${frechet.floor.toFixed(3)}`,
    ],
  ];
  const table = page.slice(page.indexOf("| what | result | aim |"));
  const lines = table.slice(0, table.indexOf("\n\n")).split("\n").slice(2);
  expect(lines).toHaveLength(rows.length);
  for (const [i, [what, result]] of rows.entries()) {
    const cells = lines[i]!.split("|").map((cell) => cell.trim());
    expect(cells[1]).toMatch(what);
    expect(cells[2]).toBe(result);
  }
});

test("they are of the command that the page names", () => {
  const [, model, scenes] = /`npx unifluid eval (\S+) --scenes (\d+)`/.exec(page)!;
  const { suite, seed, steps, guidance, order, captions } = report;
  expect([suite, report.model, captions.exact.n]).toEqual(["scenes", model, Number(scenes)]);
  const { image } = JSON.parse(readFileSync(join(folder, "generation_config.json"), "utf8"));
  expect({ seed, steps, guidance, order }).toEqual({
    seed: 0,
    steps: image.steps,
    guidance: image.guidance,
    order: image.order,
  });
});
