import { Fields } from "../../lib/checkpoint/fields";
import { fillTemplate, parseTemplates } from "../../lib/prompts";

const templates = parseTemplates(new Fields({}, "config.json"));

test("the default templates", () => {
  expect(fillTemplate(templates, "generate", "a star")).toBe("draw a star\n");
  expect(fillTemplate(templates, "generate", "")).toBe("draw \n");
  expect(fillTemplate(templates, "caption")).toBe("caption en\n");
  expect(fillTemplate(templates, "answer", "why?")).toBe("answer en why?\n");
  expect(fillTemplate(templates, "edit", "make it blue")).toBe("edit make it blue\n");
});

test.each([["$&"], ["$1 $$ $`"], ["{prompt}"], ["{question}"], ["\\n"]])(
  "%j is taken as it is",
  (text) => {
    expect(fillTemplate(templates, "generate", text)).toBe(`draw ${text}\n`);
  },
);

test("a configuration's own templates", () => {
  const own = parseTemplates(new Fields({ prompts: { generate: "{prompt} as a picture" } }, "c"));
  expect(fillTemplate(own, "generate", "a heart")).toBe("a heart as a picture");
  expect(fillTemplate(own, "caption")).toBe("caption en\n");
});
