import { fixtureJson, fixtureTensors } from "../support/fixtures";
import { addon, type DiffusionStep } from "../support/ops";

describe.each(["unifluid-tiny", "unifluid-flow-tiny"])("draws and schedules of %s", (fixture) => {
  const expected = fixtureTensors(fixture);
  const seeds = fixtureJson<{ philox_seeds: string[] }>(fixture).philox_seeds.map(BigInt);

  test("Philox words", () => {
    const counters = expected.get("philox.counters").data;
    const words = expected.get("philox.words").data;
    seeds.forEach((seed, s) => {
      for (let k = 0; k < 4; k++) {
        const [c0, c1, c2, c3] = counters.slice(4 * k, 4 * k + 4);
        const at = 4 * (4 * s + k);
        expect([...addon.philox(seed, c0!, c1!, c2!, c3!)]).toEqual([...words.slice(at, at + 4)]);
      }
    });
  });

  test.each([16, 25, 64])("orders of %d cells", (n) => {
    const orders = expected.get(`philox.order${n}`).data;
    seeds.forEach((seed, s) => {
      expect([...addon.randomOrder(seed, n)]).toEqual([...orders.slice(s * n, (s + 1) * n)]);
    });
  });

  test("noise, rounded to float32", () => {
    const [start, step] = [
      expected.floats("philox.start_noise"),
      expected.floats("philox.step_noise"),
    ];
    const channels = expected.get("philox.start_noise").shape[1]!;
    seeds.forEach((seed, s) => {
      const rows = [s * channels, (s + 1) * channels] as const;
      expect([...addon.noise(seed, 5, channels)]).toEqual([...start.slice(...rows)]);
      expect([...addon.noise(seed, 5, channels, 3)]).toEqual([...step.slice(...rows)]);
    });
  });

  test("uniform draws of text", () => {
    const uniform = expected.get("philox.text_uniform").data;
    seeds.forEach((seed, s) => {
      for (let i = 0; i < 4; i++) expect(addon.textUniform(seed, i)).toBe(uniform[4 * s + i]);
    });
  });

  const schedules = expected.names.filter((name) => /^schedule\d+\.times$/.test(name));
  test.each(schedules.map((name) => Number(name.match(/\d+/)![0])))("schedule of %d steps", (n) => {
    const steps = addon.ddpmSteps(1000, n);
    expect(steps.length).toBe(n);
    const tables: [string, keyof DiffusionStep][] = [
      ["times", "time"],
      ["recip", "recip"],
      ["recipm1", "recipm1"],
      ["coef_x0", "coefX0"],
      ["coef_x", "coefX"],
      ["log_beta", "logBeta"],
      ["log_tilde", "logTilde"],
    ];
    for (const [table, field] of tables) {
      const values = expected.get(`schedule${n}.${table}`).data;
      // The first step is the noisiest, the last of the table. Values are float64 tables rounded once;
      // two of them may lie on either side of a rounding boundary.
      steps.forEach((step, i) => {
        const value = values[n - 1 - i]!;
        const bound = 2 ** -23 * Math.abs(value) * (1 + 1e-9);
        expect(Math.abs((step[field] as number) - value)).toBeLessThanOrEqual(bound);
      });
    }
    expect(steps.map((step) => step.noise)).toEqual([...Array(n - 1).fill(true), false]);
  });
});

test("an order holds every cell once, whatever its length", () => {
  for (const n of [1, 2, 3, 4, 5, 7, 1024]) {
    const order = addon.randomOrder(123n, n);
    expect([...order].sort((a, b) => a - b)).toEqual([...Array(n).keys()]);
  }
  expect([...addon.randomOrder(0n, 0)]).toEqual([]);
});

test("the noise of a few channels begins that of many", () => {
  const many = addon.noise(9n, 4, 19, 2);
  for (const n of [1, 2, 3, 4, 5, 18]) expect(addon.noise(9n, 4, n, 2)).toEqual(many.slice(0, n));
});

test("noise is standard normal", () => {
  const n = 40000;
  const values = addon.noise(77n, 1, n);
  const mean = values.reduce((sum, x) => sum + x, 0) / n;
  const variance = values.reduce((sum, x) => sum + x * x, 0) / n;
  // Five standard errors.
  expect(Math.abs(mean)).toBeLessThan(5 / Math.sqrt(n));
  expect(Math.abs(variance - 1)).toBeLessThan(5 * Math.sqrt(2 / n));
});

test("a schedule of one step goes straight to the clean token", () => {
  const [step, ...rest] = addon.ddpmSteps(1000, 1);
  expect(rest).toEqual([]);
  expect(step).toMatchObject({ time: 0, coefX0: 1, coefX: 0, noise: false });
  expect(step!.logTilde).toBe(step!.logBeta);
});

test("kept timesteps run from last to first, halves rounded to even", () => {
  const times = addon.ddpmSteps(1000, 1000).map((step) => step.time);
  expect(times).toEqual([...Array(1000).keys()].reverse());
  // 999 / 2 = 499.5
  expect(addon.ddpmSteps(1000, 3).map((step) => step.time)).toEqual([999, 500, 0]);
  // 9 * 0.5 = 4.5 and 4 * 2.25 = 9
  expect(addon.ddpmSteps(10, 3).map((step) => step.time)).toEqual([9, 4, 0]);
});

test("a flow's steps are equal", () => {
  const steps = addon.flowSteps(1000, 7);
  expect(steps.map((step) => step.tau)).toEqual(
    [...Array(7).keys()].map((s) => Math.fround(1 - s / 7)),
  );
  expect(steps.map((step) => step.time)).toEqual(
    [...Array(7).keys()].map((s) => Math.fround((1 - s / 7) * 1000)),
  );
  expect(addon.flowSteps(1000, 1)).toMatchObject([{ tau: 1, time: 1000 }]);
});
