/** How the operation tests compare numbers. */
import { expectClose } from "../support/numbers";

const one = Float32Array.of(1);

test.each([Number.NaN, -1, 0, [], [undefined as never]])(
  "nothing is within a bound of %p",
  (bound) => {
    expect(() => expectClose(one, [1.5], bound)).toThrow(/element 0 of 1 is 1, expected 1.5/);
    expectClose(one, [1], bound);
  },
);

test("what lies within the bound is close, and nothing beyond it or that is no number", () => {
  expectClose(one, [1.5], 0.5);
  for (const wrong of [1.6, Number.NaN, Number.POSITIVE_INFINITY])
    expect(() => expectClose(one, [wrong], 0.5)).toThrow(/element 0/);
});
