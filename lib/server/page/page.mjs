/** The page: what is shown, what was asked for, and what came of it. */

import { ApiError, draw, edit, model as loadModel, read } from "./api.mjs";

const $ = (id) => document.getElementById(id);
const tasks = [...document.querySelectorAll("input[name=task]")];

const WORDS = {
  generate: { go: "Draw", label: "Prompt", example: "a red circle left of a blue square" },
  edit: { go: "Edit", label: "What to change", example: "make the circle blue" },
  answer: { go: "Ask", label: "Question", example: "how many objects are there?" },
  caption: { go: "Describe", label: "", example: "" },
};

const state = {
  /** The server's model. */
  model: undefined,
  /** What is shown: `{ blob, url }`, the source of edits and questions. */
  image: undefined,
  /** Set while something is under way. */
  controller: undefined,
};

const task = () => tasks.find((each) => each.checked).value;
const key = () => $("key").value.trim() || undefined;

// ---- the server ----

async function connect() {
  try {
    state.model = await loadModel(key());
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) {
      $("key-field").hidden = false;
      if ($("key").value) fail(error);
      else $("key").focus();
      return;
    }
    fail(error);
    return;
  }
  fail();
  const { id, unifluid } = state.model;
  $("model").textContent = id;
  for (const each of tasks) each.disabled = !unifluid.tasks.includes(each.value);
  const first = tasks.find((each) => !each.disabled);
  if (tasks.find((each) => each.checked).disabled && first) first.checked = true;
  const defaults = unifluid.generation.image;
  $("steps").placeholder = String(defaults.steps);
  $("steps").max = String(unifluid.image?.timesteps ?? "");
  $("guidance").placeholder = String(defaults.guidance);
  $("order").value = defaults.order;
  showTask();
}

// ---- what is shown ----

function fail(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

function showTask() {
  const words = WORDS[task()];
  const draws = task() === "generate" || task() === "edit";
  $("text-field").hidden = task() === "caption";
  $("text-label").textContent = words.label;
  $("text").placeholder = words.example;
  $("settings").hidden = !draws;
  $("go").textContent = words.go;
  $("go").disabled = !state.model || state.controller !== undefined;
}

function showImage(image, text = "") {
  state.image = image;
  $("picture").hidden = !image;
  $("hint").hidden = Boolean(image);
  $("download").hidden = $("clear").hidden = !image;
  if (image) {
    $("picture").src = image.url;
    $("picture").alt = text || "the picture";
  }
  $("caption").textContent = text;
  $("cells").replaceChildren();
}

function busy(controller) {
  state.controller = controller;
  $("stop").hidden = !controller;
  $("progress").hidden = true;
  showTask();
}

/** A grid of cells over the picture, dark until they are drawn. */
function showCells(grid) {
  $("cells").style.gridTemplate = `repeat(${grid}, 1fr) / repeat(${grid}, 1fr)`;
  $("cells").replaceChildren(
    ...Array.from({ length: grid * grid }, () => document.createElement("i")),
  );
  return [...$("cells").children];
}

/** The bytes of base64; the page's policy lets it fetch nothing but its own server, data URLs counted in. */
function bytesOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type });
}

// ---- what is done ----

async function paint(text, options) {
  const settings = {
    partial_images: state.model.unifluid.image.grid ** 2,
    order: $("order").value,
  };
  for (const name of ["seed", "steps", "guidance"]) {
    const value = $(name).value.trim();
    if (value === "") continue;
    // Numbers beyond 2^53 go as text, or they would be rounded.
    settings[name] = name === "seed" && value.length > 15 ? value : Number(value);
  }
  const steps =
    task() === "edit"
      ? edit(state.image.blob, text, settings, options)
      : draw(text, settings, options);
  let cells;
  let last;
  for await (const step of steps) {
    const { cell, drawn, cells: total, position, grid } = step.unifluid;
    if (!cells) {
      showImage(undefined, text);
      cells = showCells(grid);
      $("hint").hidden = true;
      $("progress").hidden = false;
    }
    last?.classList.remove("last");
    last = cells[cell];
    last.classList.add("last");
    for (const each of drawn) cells[each].classList.add("drawn");
    $("picture").src = `data:image/png;base64,${step.b64_json}`;
    $("picture").hidden = false;
    $("progress").value = (position + 1) / total;
    if (!step.type.endsWith(".completed")) continue;
    const image = { url: $("picture").src, blob: bytesOf(step.b64_json, "image/png") };
    const line = `${text} (seed ${step.seed})`;
    showImage(image, line);
    remember(image, line);
  }
}

async function tell(text, options) {
  const { url } = state.image;
  $("caption").textContent = "";
  const question = task() === "answer" ? text : "";
  let answer = "";
  for await (const piece of read(url, question, state.model.id, options)) {
    answer += piece;
    $("caption").textContent = question ? `${question} ${answer}` : answer;
  }
  remember(state.image, $("caption").textContent);
}

async function go() {
  if (state.controller || !state.model) return;
  const text = $("text").value.trim();
  fail();
  if (task() !== "caption" && text === "") {
    $("text").focus();
    return fail(new Error(`${WORDS[task()].label} is empty`));
  }
  if (task() !== "generate" && !state.image) {
    $("choose").focus();
    return fail(new Error("Choose an image first, or draw one"));
  }
  const controller = new AbortController();
  busy(controller);
  const before = state.image;
  const options = { key: key(), signal: controller.signal };
  try {
    await (task() === "generate" || task() === "edit" ? paint(text, options) : tell(text, options));
  } catch (error) {
    showImage(before, $("caption").textContent);
    if (!controller.signal.aborted) fail(error);
  } finally {
    busy();
  }
}

function remember(image, text) {
  const button = document.createElement("button");
  const picture = document.createElement("img");
  const label = document.createElement("span");
  button.type = "button";
  picture.src = image.url;
  picture.alt = "";
  label.textContent = text;
  button.append(picture, label);
  button.addEventListener("click", () => {
    if (!state.controller) showImage(image, text);
  });
  const item = document.createElement("li");
  item.append(button);
  $("history").prepend(item);
  $("past").hidden = false;
}

/** A file that was chosen or dropped. */
function open(file) {
  if (!file || state.controller) return;
  if (!file.type.startsWith("image/")) return fail(new Error(`${file.name} is not an image`));
  fail();
  const reader = new FileReader();
  reader.onerror = () => fail(new Error(`${file.name} cannot be read`));
  reader.onload = () => {
    showImage({ blob: file, url: reader.result }, "");
    const wanted = tasks.find((each) => each.value === "caption" && !each.disabled);
    if (task() === "generate" && wanted) {
      wanted.checked = true;
      showTask();
    }
  };
  reader.readAsDataURL(file);
}

// ---- hands on it ----

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  void go();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void go();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") state.controller?.abort();
});
for (const each of tasks) each.addEventListener("change", showTask);
$("stop").addEventListener("click", () => state.controller?.abort());
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  open($("file").files[0]);
  $("file").value = "";
});
$("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = state.image.url;
  link.download = "unifluid.png";
  link.click();
});
$("clear").addEventListener("click", () => {
  if (!state.controller) showImage(undefined);
});
$("key").addEventListener("change", () => void connect());
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("frame").classList.toggle("over", name === "dragover");
    if (name === "drop") open(event.dataTransfer.files[0]);
  });
}

showTask();
void connect();
