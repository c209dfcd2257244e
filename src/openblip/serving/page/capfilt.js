// The card that browses CapFilt's decisions: samples with their texts, scores and reasons, a page at a time.
import { ask, element, percent, served, task, word } from "./page.js";

const card = document.querySelector('[data-task="capfilt"]');
const controls = card.querySelector("form").elements;
const result = card.querySelector(".result");
let summary = null;
let filter = {}; // of the page that is shown
let starts = [0]; // of this page and those before it
let shown = null; // the last reply
let pictures = []; // object URLs of its thumbnails

const why = (reason) => word(`why_${reason.replaceAll("-", "_")}`) || reason;

function sumUp() {
  if (!summary) return;
  const texts = (kept) => summary.counts.filter((one) => one.kept >= kept).reduce((sum, one) => sum + one.texts, 0);
  const parts = [`${summary.samples} ${word("samples")}`, `${texts(true)} / ${texts(false)} ${word("texts_kept")}`];
  if (summary.unusable) parts.push(`${summary.unusable} ${word("unusable")}`);
  if (summary.policy !== "blip2") parts.push(`${word("threshold")} ${summary.threshold}`);
  card.querySelector("#capfilt-sum").textContent = parts.join(" · ");
  const found = new Set(summary.counts.map((one) => one.reason));
  for (const option of controls.reason.options) option.hidden = option.value !== "" && !found.has(option.value);
}

function verdict(text) {
  const row = element("li", text.kept ? "kept" : "dropped");
  if (!text.fits) row.classList.add("other");
  const scores = [word(text.kept ? "kept" : "dropped"), word(text.origin === "web" ? "web" : "synthetic")];
  if (text.itm !== null) scores.push(`ITM ${percent(text.itm)}`);
  row.append(element("span", "said", text.text || "—"), element("span", "note", `${scores.join(" · ")} · ${why(text.reason)}`));
  return row;
}

function sample(one) {
  const article = element("article");
  const frame = element("div", "frame");
  if (one.image) {
    const picture = element("img");
    picture.alt = one.name;
    frame.append(picture);
    // With fetch, so that the key goes along.
    ask(one.image).then((answer) => answer.blob()).then((blob) => {
      picture.src = URL.createObjectURL(blob);
      pictures.push(picture.src);
    }, (error) => { picture.title = error.message; });
  }
  const texts = element("ul");
  texts.append(...one.texts.map(verdict));
  if (one.status !== "ok") texts.append(element("li", "error", `${word("unusable")}: ${one.status}`));
  const words = element("div");
  words.append(element("p", "note", one.name), texts);
  article.append(frame, words);
  return article;
}

function step(name, enabled, go) {
  const button = element("button", "", word(name));
  button.type = "button";
  button.name = name;
  button.disabled = !enabled;
  button.addEventListener("click", go);
  return button;
}

function draw() {
  for (const address of pictures) URL.revokeObjectURL(address);
  pictures = [];
  const list = element("div", "judged");
  list.append(...shown.samples.map(sample));
  const parts = [list];
  if (!shown.samples.length) parts.push(element("p", "note", word(shown.next === null ? "nothing" : "go_on")));
  const pager = element("form", "line pager");
  pager.append(
    step("previous", starts.length > 1, () => turn(starts.slice(0, -1), "previous")),
    step("next", shown.next !== null, () => turn([...starts, shown.next], "next")),
  );
  return [...parts, pager];
}

const start = task("capfilt", async (fields, signal) => {
  if (!fields.starts) filter = Object.fromEntries(Object.entries(fields).filter(([, value]) => value));
  starts = fields.starts || [0];
  const body = new FormData();
  for (const [name, value] of Object.entries({ ...filter, start: starts.at(-1), count: 12 })) body.append(name, value);
  shown = await (await ask("/v1/capfilt", { method: "POST", body, signal })).json();
  return draw();
});

async function turn(places, name) {
  await start({ starts: places }, false);
  // The button that was pressed is a new one now; the keyboard stays on it, or on its neighbour at an end.
  const again = result.querySelector(`button[name=${name}]:enabled`) || result.querySelector(".pager button:enabled");
  again?.focus({ preventScroll: true });
  card.scrollIntoView({ block: "start" });
}

document.addEventListener("language", () => {
  sumUp();
  if (shown && result.querySelector(".judged")) result.replaceChildren(...draw());
});

async function open() {
  if (!served?.capfilt) return;
  summary = await (await ask("/v1/capfilt")).json();
  sumUp();
  if (!shown) await start({}, false);
}

document.addEventListener("served", open);
if (served) open(); // the page was faster than this file
