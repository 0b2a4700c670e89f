/** What progress lines are made of. */
import { duration, startTimeLeft } from "../../lib/cli/progress";

test.each([
  [44.6, "45 s"],
  [60, "1 min 0 s"],
  [200, "3 min 20 s"],
  [7500, "2 h 5 min"],
  [-1, "0 s"],
])("%p seconds are told as %p", (seconds, text) => {
  expect(duration(seconds)).toBe(text);
});

test("the time left of a run that goes on is told by the steps of now, not by those before it stopped", () => {
  const timeLeft = startTimeLeft();
  // 100 steps took an hour elsewhere; here two steps take a second.
  expect(timeLeft({ step: 101, seconds: 3600.5 }, 201)).toBeUndefined();
  expect(timeLeft({ step: 103, seconds: 3601.5 }, 201)).toBeCloseTo(49);
  expect(timeLeft({ step: 201, seconds: 3650.5 }, 201)).toBe(0);
});
