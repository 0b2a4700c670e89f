/** Where prepared pictures are kept. */
import { PicturePlaces } from "../../lib/train/picture-places";

test("a place is what was last said of its key", () => {
  const places = new PicturePlaces();
  const COUNT = 20_000;
  const key = (i: number) => `/data/images/${i}.png\n${1000 + i}\n1700000000000.25`;
  for (let i = 0; i < COUNT; i++) places.set(key(i), { pack: i % 7, slot: i });
  const far = { pack: 2 ** 20, slot: 2 ** 32 - 1 };
  places.set(key(3), far);
  for (let i = 0; i < COUNT; i++)
    if (i !== 3) expect(places.get(key(i))).toEqual({ pack: i % 7, slot: i });
  expect(places.get(key(3))).toEqual(far);
  expect(places.get(key(COUNT))).toBeUndefined();
});
