/** Contact sheets: layout, labels, and labels that are no XML. */

import { checkContactSheet, contactSheet, wrapLabel } from "../../lib/contact-sheet.js";
import { Image } from "../../lib/image.js";

function plain(width: number, height: number, color: [number, number, number]): Image {
  const pixels = new Uint8Array(width * height * 3);
  for (let i = 0; i < pixels.length; i += 3) pixels.set(color, i);
  return Image.fromPixels(pixels, width, height);
}

const at = ({ pixels, width }: Image, x: number, y: number) => [
  ...pixels.subarray((y * width + x) * 3, (y * width + x) * 3 + 3),
];

/** The middle of place `index` of a sheet with `columns` columns and labels of `lines` lines. */
const middle = (index: number, columns: number, lines: number) =>
  [
    12 + (index % columns) * 268 + 128,
    12 + Math.floor(index / columns) * (268 + lines * 18) + 128,
  ] as const;

test("images stand in rows, from left to right", async () => {
  const colors: [number, number, number][] = [
    [255, 0, 0],
    [0, 200, 0],
    [0, 0, 255],
    [9, 9, 9],
    [90, 0, 90],
  ];
  const entries = colors.map((color, i) => ({ image: plain(64, 64, color), label: `image ${i}` }));
  const sheet = await contactSheet(entries);
  expect([sheet.width, sheet.height]).toEqual([3 * 268 + 12, 2 * (268 + 18) + 12]);
  colors.forEach((color, i) => {
    expect(at(sheet, ...middle(i, 3, 1))).toEqual(color);
  });
  expect(at(sheet, ...middle(5, 3, 1))).toEqual([255, 255, 255]);
  const column = await contactSheet(entries, { columns: 1 });
  expect([column.width, column.height]).toEqual([280, 5 * (268 + 18) + 12]);
});

test("images of other sizes keep their shape within their place", async () => {
  const entries = [
    { image: plain(600, 300, [255, 0, 0]), label: "" },
    { image: plain(100, 10, [0, 0, 255]), label: "" },
  ];
  const sheet = await contactSheet(entries);
  expect(at(sheet, ...middle(0, 2, 0))).toEqual([255, 0, 0]);
  const [x, y] = middle(0, 2, 0);
  expect(at(sheet, x, y - 60)).toEqual([255, 0, 0]);
  expect(at(sheet, x, y - 68)).toEqual([255, 255, 255]);
  const [x1, y1] = middle(1, 2, 0);
  expect(at(sheet, x1, y1 + 9)).toEqual([0, 0, 255]);
  expect(at(sheet, x1, y1 + 11)).toEqual([255, 255, 255]);
});

test.each([
  "</text></svg><script>alert(1)</script>",
  "a & b < c > d \"e\" 'f'",
  "\u0000\u0007\ud800 lone \udc00",
  "两只绿色的星星在粉红色的背景上".repeat(9),
  "🙂".repeat(99),
  "]]> <![CDATA[",
])("the label %j does no harm", async (label) => {
  const sheet = await contactSheet([{ image: plain(8, 8, [1, 2, 3]), label }]);
  expect(sheet.width).toBe(280);
  expect(at(sheet, 140, 140)).toEqual([1, 2, 3]);
});

test("labels are wrapped at words, and shortened", () => {
  expect(wrapLabel("")).toEqual([]);
  expect(wrapLabel("  a red   circle ")).toEqual(["a red circle"]);
  expect(wrapLabel("a large red circle left of a small blue square on a pink background")).toEqual([
    "a large red circle left of a",
    "small blue square on a pink",
    "background",
  ]);
  const long = wrapLabel("word ".repeat(50));
  expect(long.length).toBe(3);
  expect(long[2]).toMatch(/…$/);
  expect(wrapLabel("x".repeat(70)).map((line) => line.length)).toEqual([33, 33, 4]);
});

test("refuses an empty sheet and odd columns", async () => {
  await expect(contactSheet([])).rejects.toMatchObject({ code: "INVALID_OPTION" });
  const one = [{ image: plain(8, 8, [1, 2, 3]), label: "" }];
  await expect(contactSheet(one, { columns: 0 })).rejects.toMatchObject({ code: "INVALID_OPTION" });
});

test("a sheet may have more pixels than sharp reads of a file", async () => {
  const one = [{ image: plain(8, 8, [1, 2, 3]), label: "" }];
  const sheet = await contactSheet(one, { columns: 3600 });
  expect(sheet.width * sheet.height).toBeGreaterThan(0x3fff ** 2);
  expect(at(sheet, ...middle(0, 3600, 0))).toEqual([1, 2, 3]);
});

test("a sheet that is too large is known before its images are", () => {
  const labels = (count: number) => Array.from({ length: count }, (_, i) => `a red circle (${i})`);
  const refused = expect.objectContaining({ code: "IMAGE_TOO_LARGE" });
  expect(() => checkContactSheet(labels(3900), "png")).not.toThrow();
  expect(() => checkContactSheet(labels(3000), "webp")).not.toThrow();
  expect(() => checkContactSheet(labels(3900), "webp")).toThrow(refused);
  expect(() => checkContactSheet(labels(9000), "png")).toThrow(refused);
});
