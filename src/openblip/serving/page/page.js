// The page: an image, and what the models of this server say of it. Talks to /v1 alone.
import { WORDS } from "./words.js";

const at = (id) => document.getElementById(id);
const COLOURS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]; // "inferno"
let language = localStorage.getItem("language") || (navigator.language.startsWith("zh") ? "zh" : "en");
let key = sessionStorage.getItem("key") || "";
let image = null; // a Blob
export let served = null;
export const word = (name) => WORDS[language][name];

export function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Talking to the server ---------------------------------------------------------------------------------

export async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(word("offline"));
  }
  if (answer.ok) return answer;
  if (answer.status === 401) at("key").hidden = false;
  let sentence = `${answer.status}`;
  try {
    sentence = (await answer.json()).error;
  } catch { /* not ours: a proxy's page */ }
  throw new Error(sentence);
}

function form(fields, withImage = true) {
  const data = new FormData();
  if (withImage) data.append("image", image, "image");
  for (const [name, value] of fields) data.append(name, value);
  return { method: "POST", body: data };
}

// Language ----------------------------------------------------------------------------------------------

function speak() {
  document.documentElement.lang = language;
  for (const one of document.querySelectorAll("[data-word]")) one.textContent = word(one.dataset.word);
  for (const one of document.querySelectorAll("[data-label]")) {
    one.placeholder = word(one.dataset.label);
    one.setAttribute("aria-label", word(one.dataset.label));
  }
  at("language").textContent = word("other");
  at("language").lang = word("other_code");
  document.querySelectorAll("#examples button").forEach((button, number) => {
    button.setAttribute("aria-label", `${word("example")} ${number + 1}`);
  });
  if (served?.models.length) at("served").textContent = `${word("serves")}: ${served.models.map((model) => model.id).join(", ")}`;
}

at("language").addEventListener("click", () => {
  language = word("other_code");
  localStorage.setItem("language", language);
  speak();
  document.dispatchEvent(new Event("language"));
});

// The image ---------------------------------------------------------------------------------------------

function clearResults() {
  at("heat").hidden = true;
  for (const task of document.querySelectorAll("[data-task]")) {
    if (!ALONE.has(task.dataset.task)) task.querySelector(".result").replaceChildren();
  }
}

async function show(blob, name = "") {
  at("image-error").hidden = true;
  const shown = at("shown");
  const address = URL.createObjectURL(blob);
  const before = shown.src;
  shown.src = address;
  try {
    await shown.decode();
  } catch {
    // The server reads formats that a browser does not; what is no image at all, it says in a sentence.
    if (!blob.type.startsWith("image/")) {
      at("image-error").textContent = word("no_image_file");
      at("image-error").hidden = false;
      shown.src = before;
      return;
    }
  }
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
  image = blob;
  shown.alt = name;
  at("hint").hidden = true;
  at("stage").hidden = false;
  for (const one of document.querySelectorAll("#examples button")) one.setAttribute("aria-pressed", "false");
  clearResults();
}

at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) show(file, file.name);
  event.target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) show(file);
});

// Tasks -------------------------------------------------------------------------------------------------

const ALONE = new Set(["search", "capfilt"]); // they need no image

export function task(name, run) {
  const card = document.querySelector(`[data-task="${name}"]`);
  const result = card.querySelector(".result");
  let latest = null; // what is asked anew drops what was asked before

  async function start(fields, needsImage) {
    latest?.abort();
    const own = new AbortController();
    latest = own;
    const failed = (message) => result.replaceChildren(Object.assign(element("p", "error", message), { role: "alert" }));
    if (needsImage && !image) {
      failed(word("no_image"));
      return;
    }
    result.replaceChildren(element("p", "note", word("working")));
    try {
      const parts = await run(fields, own.signal);
      if (latest === own) result.replaceChildren(...parts);
    } catch (error) {
      if (latest === own && error.name !== "AbortError") failed(error.message);
    }
  }
  card.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    start(Object.fromEntries(new FormData(event.target)), !ALONE.has(name));
  });
  return start;
}

export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;

function bar(text, share, figure) {
  const row = element("div", "bar");
  const fill = element("div", "fill");
  fill.style.width = `${100 * share}%`;
  row.append(fill, element("span", "", text), element("span", "figure", figure));
  return row;
}

task("caption", async (fields, signal) => {
  const chosen = [["count", fields.count], ["max_tokens", fields.max_tokens]];
  const own = fields.method === "beam" ? ["beams"] : ["top_p", "temperature", "seed"];
  for (const name of own) chosen.push([name, fields[name]]);
  const { captions } = await (await ask("/v1/caption", { ...form(chosen), signal })).json();
  return captions.map((caption) => element("p", "said", caption.text));
});

task("answer", async (fields, signal) => {
  const chosen = [["questions", fields.question], ["count", 3]];
  const { questions } = await (await ask("/v1/answer", { ...form(chosen), signal })).json();
  return questions[0].answers.map((one) => bar(one.text, one.probability, percent(one.probability)));
});

task("match", async (fields, signal) => {
  const texts = fields.texts.split("\n").map((text) => text.trim()).filter(Boolean);
  const { matches } = await (await ask("/v1/match", { ...form(texts.map((text) => ["texts", text])), signal })).json();
  const bars = matches.map((one) => {
    const figure = `ITM ${percent(one.itm_probability)} · ITC ${one.itc_similarity.toFixed(2)}`;
    return bar(one.text, one.itm_probability, figure);
  });
  return [...bars, element("p", "note", word("matches"))];
});

function paint(weights) {
  const small = document.createElement("canvas");
  small.height = weights.length;
  small.width = weights[0].length;
  const pen = small.getContext("2d");
  const pixels = pen.createImageData(small.width, small.height);
  const most = Math.max(...weights.flat(), 1e-12);
  weights.flat().forEach((weight, place) => {
    const position = (weight / most) * (COLOURS.length - 1);
    const low = Math.min(Math.floor(position), COLOURS.length - 2);
    for (let channel = 0; channel < 3; channel += 1) {
      const [a, b] = [COLOURS[low][channel], COLOURS[low + 1][channel]];
      pixels.data[4 * place + channel] = a + (b - a) * (position - low);
    }
    pixels.data[4 * place + 3] = 255;
  });
  pen.putImageData(pixels, 0, 0);
  const heat = at("heat");
  heat.width = at("shown").naturalWidth || 256;
  heat.height = at("shown").naturalHeight || 256;
  const over = heat.getContext("2d");
  over.imageSmoothingQuality = "high";
  over.globalAlpha = 0.6;
  over.drawImage(small, 0, 0, heat.width, heat.height);
  heat.hidden = false;
}

task("explain", async (fields, signal) => {
  const chosen = fields.text.trim() ? [["text", fields.text]] : [];
  const found = await (await ask("/v1/explain", { ...form(chosen), signal })).json();
  const mean = found.words[0].weights.map((row, y) => row.map((_, x) => {
    return found.words.reduce((sum, one) => sum + one.weights[y][x], 0) / found.words.length;
  }));
  const list = element("div", "words");
  const add = (text, weights) => {
    const button = element("button", "", text);
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const again = button.getAttribute("aria-pressed") === "true";
      for (const one of list.children) one.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(!again));
      if (again) at("heat").hidden = true;
      else paint(weights);
    });
    list.append(button);
  };
  add(word("all_words"), mean);
  for (const one of found.words) add(one.word, one.weights);
  list.firstChild.click();
  return [list];
});

const search = task("search", async (fields, signal) => {
  const request = fields.similar ? form([]) : form([["text", fields.text]], false);
  const { hits } = await (await ask("/v1/search", { ...request, signal })).json();
  if (!hits.length) return [element("p", "note", word("nothing"))];
  const grid = element("div", "found");
  for (const hit of hits) {
    const figure = element("figure");
    const button = element("button");
    button.type = "button";
    button.title = word("take");
    button.disabled = true; // until its image is there
    const small = element("img");
    small.alt = hit.caption || "";
    button.append(small);
    const score = hit.itm === null ? hit.score.toFixed(2) : `ITM ${percent(hit.itm)}`;
    figure.append(button, element("figcaption", "", hit.caption ? `${score} · ${hit.caption}` : score));
    grid.append(figure);
    // With fetch, so that the key goes along.
    ask(hit.thumbnail, { signal }).then((answer) => answer.blob()).then((blob) => {
      small.src = URL.createObjectURL(blob);
      button.addEventListener("click", () => show(blob, hit.caption || ""));
      button.disabled = false;
    }, () => {});
  }
  return [grid];
});
at("similar").addEventListener("click", () => search({ similar: true }, true));

const caption = document.querySelector('[data-task="caption"] form');
caption.elements.method.addEventListener("change", () => {
  for (const one of caption.querySelectorAll("[data-for]")) one.hidden = one.dataset.for !== caption.elements.method.value;
});

// Start -------------------------------------------------------------------------------------------------

function fill(example) {
  const fields = [["answer", "question", example.question], ["match", "texts", example.texts.join("\n")],
    ["explain", "text", example.texts[0]], ["search", "text", example.texts[0]]];
  for (const [name, field, value] of fields) {
    document.querySelector(`[data-task="${name}"] form`).elements[field].value = value;
  }
}

async function begin() {
  try {
    served = await (await ask("/v1/models")).json();
  } catch (error) {
    at("served").textContent = error.message;
    return;
  }
  at("key").hidden = true;
  const can = new Set(served.models.flatMap((model) => model.can));
  if (served.search) can.add("search");
  if (served.capfilt) can.add("capfilt");
  for (const card of document.querySelectorAll("[data-task]")) card.hidden = !can.has(card.dataset.task);
  at("examples").replaceChildren(...served.examples.map((example) => {
    const button = element("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const small = element("img");
    small.src = example.image;
    small.alt = "";
    button.append(small);
    button.addEventListener("click", async () => {
      await show(await (await ask(example.image)).blob());
      button.setAttribute("aria-pressed", "true");
      fill(example);
    });
    return button;
  }));
  at("image").classList.toggle("unused", !served.models.length);
  speak();
  document.dispatchEvent(new Event("served"));
}

at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = event.target.elements.key.value.trim();
  sessionStorage.setItem("key", key);
  begin();
});
speak();
begin();
