/** The task templates of spec section 2: what the model reads besides images. */

import type { Fields } from "./checkpoint/fields.js";

/** A task that starts from a template. */
export type TemplateTask = "generate" | "caption" | "answer" | "edit";

export type Templates = Readonly<Record<TemplateTask, string>>;

export const DEFAULT_TEMPLATES: Templates = {
  generate: "draw {prompt}\n",
  caption: "caption en\n",
  answer: "answer en {question}\n",
  edit: "edit {instruction}\n",
};

/** What stands between the braces of each task's template. */
const PLACEHOLDERS: Readonly<Record<TemplateTask, string | undefined>> = {
  generate: "{prompt}",
  caption: undefined,
  answer: "{question}",
  edit: "{instruction}",
};

export const TEMPLATE_TASKS = Object.keys(DEFAULT_TEMPLATES) as TemplateTask[];

/** Reads `prompts` of a `config.json`; absent templates are the defaults. */
export function parseTemplates(config: Fields): Templates {
  const prompts = config.child("prompts");
  const templates = { ...DEFAULT_TEMPLATES };
  for (const task of TEMPLATE_TASKS) {
    const template = prompts.string(task, { default: DEFAULT_TEMPLATES[task] });
    const placeholder = PLACEHOLDERS[task];
    if (placeholder && template.split(placeholder).length !== 2) {
      prompts.fail(task, `a template that holds ${placeholder} once`);
    }
    templates[task] = template;
  }
  return templates;
}

/** A task's template with the text in its place, whatever characters the text holds. */
export function fillTemplate(templates: Templates, task: TemplateTask, text = ""): string {
  const placeholder = PLACEHOLDERS[task];
  // A function, since a replacement string would give `$&` and the like a meaning.
  return placeholder === undefined
    ? templates[task]
    : templates[task].replace(placeholder, () => text);
}
