/**
 * The whole way against the reference implementation's numbers, on every fixture and every instruction
 * set of this processor, and on CUDA.
 */

import { readdirSync, readFileSync } from "node:fs";
import { loadAddon } from "../../lib/addon";
import { decodeImage } from "../../lib/image-input";
import { type LoadOptions, UniFluid } from "../../lib/index";
import { FIXTURES } from "../support/fixtures";
import { simulatedLibrary } from "../support/ops";
import { openFixture } from "../support/parity";
import { parityCases } from "../support/parity-cases";
import { decodePng } from "../support/png";

/** UNIFLUID_FIXTURES names a folder of other fixtures to check instead. */
const other = process.env.UNIFLUID_FIXTURES;
const folder = other ?? FIXTURES;
const names = readdirSync(folder).filter((name) => /-tiny$|^shapes-64$/.test(name));

const isas = loadAddon()
  .instructionSets()
  .filter((set) => set.supported)
  .map((set) => set.name);

/** CUDA in float32, on a simulated device; the tiny ones only, for it is slow. */
const cudaNames = names.filter((name) => name.endsWith("-tiny"));

/** The CPU's own products in bfloat16, of weights stored in it; where it has none they are float32's. */
const pairs = { device: "cpu", dtype: "bfloat16", threads: 2 } as const;

const cases: { name: string; on: string; load: LoadOptions }[] = [
  ...names.flatMap((name) =>
    isas.map((isa) => ({ name, on: isa, load: { device: "cpu" as const, isa, threads: 2 } })),
  ),
  ...names
    .filter((name) => !name.endsWith("-tiny"))
    .map((name) => ({ name, on: "cpu bfloat16", load: pairs })),
  ...cudaNames.map((name) => ({
    name,
    on: "cuda-simulated",
    load: { device: "cuda" as const, dtype: "float32" as const },
  })),
];

beforeAll(() => {
  process.env.UNIFLUID_CUDA_LIBRARY = simulatedLibrary;
});

test("all fixtures are here", () => {
  if (other === undefined) expect(names).toHaveLength(8);
});

describe.each(cases)("$name on $on", ({ name, load }) => {
  const fixture = openFixture(name, folder);
  let model: UniFluid;

  beforeAll(async () => {
    model = await UniFluid.load(fixture.directory, load);
  });
  afterAll(() => model.dispose());

  const parity = parityCases(fixture, {
    precision: load === pairs ? "bfloat16" : "float32",
    image: (path) => path,
  });
  test.each(parity.map((c) => [c.name, c] as const))("%s", async (_name, c) => {
    const findings = await c.run(model);
    expect(findings.length).toBeGreaterThan(0);
    expect(findings.filter(({ error, tolerance }) => !(error <= tolerance))).toEqual([]);
  });
});

test("the images read as device checks read them, without sharp, are the same", async () => {
  const paths = names.flatMap((name) => {
    const { inputs, imageOf } = openFixture(name, folder);
    return inputs.filter(({ image }) => image !== undefined).map(imageOf);
  });
  expect(paths.length).toBeGreaterThan(0);
  for (const path of paths) expect(decodePng(readFileSync(path))).toEqual(await decodeImage(path));
});
