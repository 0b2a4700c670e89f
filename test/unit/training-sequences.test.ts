/** Examples as sequences: what needs no model. */
import { endOfText } from "../../lib/train/sequences";

test.each([
  [[1], 1],
  [[107, 1], 1],
  [[106, 107], 106],
])("of the stop tokens %j a learned text ends in %i", (tokens, end) => {
  expect(endOfText(tokens)).toBe(end);
});
