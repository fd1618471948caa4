// The page: tabs, keys, errors, and what is remembered.

import { escape } from "./answer.js";
import { get, hasKey, setKey } from "./api.js";
import { $, el } from "./dom.js";
import { Fill } from "./fill.js";
import { score, scoreBody } from "./score.js";
import { curlOf, pythonOf } from "./snippets.js";
import { forget, fromLink, keep, linkTo, remember, remembered, restore, state } from "./state.js";
import { insertMask, mirror } from "./text.js";
import { isChinese, speak, t } from "./words.js";

const EXAMPLES = {
  en: "And [MASK] said unto him, What is thy [MASK]?",
  zh: "床前明月[MASK]，疑是地上霜。",
};
const SCORED = { text: "In the beginning God created the [MASK] and the earth.", candidates: "heaven\nheavens\nsea" };
// Fields of a request, and where they stand on the page.
const PLACES = { text: "text", context: "score-text", spans: "candidates", targets: "candidates", order: "own-order" };

let tab = "fill";
const fill = new Fill(answered, (failure, again) => tell("error", failure, again));

function open(name, focus = false) {
  tab = name;
  for (const each of ["fill", "score"]) {
    const isOpen = each === name;
    $(`panel-${each}`).hidden = !isOpen;
    $(`tab-${each}`).setAttribute("aria-selected", String(isOpen));
    $(`tab-${each}`).tabIndex = isOpen ? 0 : -1;
  }
  if (focus) $(`tab-${name}`).focus();
  resize.forEach((show) => show());
  showCode();
}

function answered() {
  remember(state(tab));
  showHistory();
  showCode();
}

function showCode() {
  const body = tab === "fill" ? fill.body : scoreBody();
  const url = `${location.origin}/v1/${tab === "fill" ? "infill" : "score"}`;
  $("curl").textContent = body === null ? "" : curlOf(url, body, hasKey());
  $("python").textContent = body === null ? "" : pythonOf(url, body, hasKey());
}

function showHistory() {
  $("history").replaceChildren(...remembered().map((values) => {
    const text = (values.tab === "score" ? values["score-text"] : values.text) ?? "";
    const show = () => { restore(values); open(values.tab === "score" ? "score" : "fill"); };
    return el("li", {}, el("button", { onclick: show, title: text }, text));
  }));
  $("past").hidden = remembered().length === 0;
}

/** Says what went wrong, and what can be done about it. */
function tell(id, failure, again) {
  document.querySelectorAll(".invalid").forEach((field) => field.classList.remove("invalid"));
  const box = $(id);
  const say = (...children) => { box.replaceChildren(...children); box.hidden = false; };
  if (failure.status === 401) {
    say(t("needskey"));
    askKey(again);
  } else if (failure.status === 0) {
    say(t("unreachable"), el("button", { onclick: again }, t("retry")));
  } else if (failure.status === 429 || failure.status === 503) {
    const wait = failure.retryAfter ? `${t("busy")} ${failure.retryAfter} ${t("again")}` : t("later");
    say(`${failure.message} — ${wait}`, el("button", { onclick: again }, t("retry")));
  } else {
    say(failure.message || String(failure.status));
    const name = (failure.param ?? "").split(".")[0];
    const field = $(tab === "score" && name === "text" ? "score-text" : PLACES[name] ?? name);
    if (field && "value" in field) {
      if ($("settings").contains(field)) $("settings").open = true;
      field.classList.add("invalid");
      field.focus();
    }
  }
}

function askKey(then = null) {
  const dialog = $("key-dialog");
  $("key-input").value = "";
  dialog.returnValue = "";
  dialog.onclose = () => {
    if (dialog.returnValue !== "save") return;
    setKey($("key-input").value.trim());
    $("key-input").value = "";
    learn().then(() => { if (then) then(); });
  };
  dialog.showModal();
}

async function runScore() {
  $("score-error").hidden = true;
  $("score-run").disabled = true;
  try {
    await score();
    answered();
  } catch (failure) {
    tell("score-error", failure, runScore);
  } finally {
    $("score-run").disabled = false;
  }
}

/** Asks what the model is and can do. */
async function learn() {
  let models;
  try {
    models = (await get("/v1/models")).data;
  } catch (failure) {
    tell(tab === "fill" ? "error" : "score-error", failure, learn);
    return;
  }
  $("error").hidden = $("score-error").hidden = true;
  const [model] = models;
  const { capabilities, limits } = model;
  $("model").textContent = `${model.id} · ${model.quantization}`;
  document.title = `${model.id} · glm-infill`;
  const masks = capabilities.masks.length ? capabilities.masks : [];
  $("masks").replaceChildren(...masks.map((mask) => el("button", { onclick: () => insertMask($("text"), mask) }, mask)));
  const value = $("strategy").value;
  $("strategy").replaceChildren($("strategy").options[0], ...capabilities.strategies.map((name) => el("option", { value: name }, name)));
  $("strategy").value = value;
  $("max_tokens").max = Math.min(limits.max_tokens, limits.max_span);
  $("n").max = limits.n;
  const adapters = (model.adapters ?? []).map((each) => each.id ?? each.name ?? each);
  $("adapter").replaceChildren($("adapter").options[0], ...adapters.map((name) => el("option", { value: name }, name)));
  $("adapter-label").hidden = adapters.length === 0;
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    const was = button.textContent;
    button.textContent = t("copied");
    setTimeout(() => { button.textContent = was; }, 1200);
  } catch {
    prompt("", text);
  }
}

function paint(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").dataset.t = theme === "dark" ? "light" : "theme";
  $("theme").textContent = t($("theme").dataset.t);
}

function name(language) {
  speak(language);
  $("language").textContent = isChinese() ? "English" : "中文";
  $("language").lang = isChinese() ? "en" : "zh";
  paint(document.documentElement.dataset.theme);
  showForm();
}

function showForm() {
  const form = $("form").value;
  $("candidates-label").hidden = form === "whole";
  $("candidates-label").firstElementChild.textContent = t(form === "conditional" ? "contextlines" : "lines");
  $("all-orders").parentElement.hidden = form !== "candidates";
}

const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.dataset.theme = localStorage.getItem("theme") ?? (dark ? "dark" : "light");
const spoken = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
name(spoken);
$("text").value = EXAMPLES[isChinese() ? "zh" : "en"];
$("score-text").value = SCORED.text;
$("candidates").value = SCORED.candidates;
const resize = [mirror($("text"), $("backdrop"))];
const linked = fromLink();
if (linked) restore(linked);
open(linked?.tab === "score" ? "score" : "fill");
showHistory();
learn();

$("run").onclick = () => fill.run();
$("stop").onclick = () => fill.stop();
$("undo").onclick = () => fill.undo();
$("score-run").onclick = runScore;
$("form").onchange = showForm;
$("order").onchange = () => { $("own-label").hidden = $("order").value !== "own"; };
$("key").onclick = () => askKey();
$("theme").onclick = () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  keep("theme", theme);
  paint(theme);
};
$("language").onclick = () => {
  const language = isChinese() ? "en" : "zh";
  keep("language", language);
  name(language);
};
$("copy-curl").onclick = (event) => copy(event.target, $("curl").textContent);
$("copy-python").onclick = (event) => copy(event.target, $("python").textContent);
$("share").onclick = (event) => copy(event.target, linkTo(state(tab)));
$("forget").onclick = () => { forget(); showHistory(); };
for (const each of ["fill", "score"]) {
  $(`tab-${each}`).onclick = () => open(each);
  $(`tab-${each}`).onkeydown = (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") open(each === "fill" ? "score" : "fill", true);
  };
}
document.addEventListener("input", showCode);
document.addEventListener("change", showCode);
window.addEventListener("hashchange", () => {
  const values = fromLink();
  if (values) { restore(values); open(values.tab === "score" ? "score" : "fill"); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (tab === "fill") fill.run();
    else runScore();
  } else if (event.key === "Escape" && !$("key-dialog").open) {
    if (!escape()) fill.stop();
  } else if (event.altKey && event.code === "KeyM") {
    event.preventDefault();
    const field = tab === "score" ? $("score-text") : $("text");
    insertMask(field, $("masks").firstElementChild?.textContent ?? "[MASK]");
  } else if (event.altKey && event.code === "KeyZ") {
    event.preventDefault();
    fill.undo();
  } else if (event.altKey && (event.code === "Digit1" || event.code === "Digit2")) {
    event.preventDefault();
    open(event.code === "Digit1" ? "fill" : "score", true);
  }
});
