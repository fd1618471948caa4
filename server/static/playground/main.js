// The page: its tabs, keys, errors, and what is remembered.

import { escape } from "./answer.js";
import { get, hasKey, setKey } from "./api.js";
import { copy } from "./clipboard.js";
import { Code, PATH } from "./code.js";
import { Connect, writesBetween } from "./connect.js";
import { $, el } from "./dom.js";
import { examples, showExamples } from "./examples.js";
import { Fill } from "./fill.js";
import { score, scoreBody } from "./score.js";
import { curlOf, pythonOf } from "./snippets.js";
import { forget, fromLink, keep, linkTo, remember, remembered, restore, state } from "./state.js";
import { Tabs } from "./tabs.js";
import { mirror, typeIn } from "./text.js";
import { isChinese, speak, t } from "./words.js";

const SCORED = { text: "In the beginning God created the [MASK] and the earth.", candidates: "heaven\nheavens\nsea" };
// Fields of a request, and where they stand on the page.
const PLACES = { text: "text", context: "score-text", spans: "candidates", targets: "candidates", order: "own-order" };

const complain = (id) => (failure, again) => tell(id, failure, again);
const fill = new Fill(answered, complain("error"));
const code = new Code(complain("code-error"));
const connect = new Connect(complain("connect-error"));
const NOTHING = { path: "", body: () => null, run: () => {}, error: "connect-error" };
// What each tab asks of the server.
const ASKS = {
  fill: { path: "/v1/infill", body: () => fill.body, run: () => fill.run(), error: "error" },
  score: { path: "/v1/score", body: scoreBody, run: runScore, error: "score-error" },
  code: { path: PATH, body: () => code.body, run: () => code.suggest(), error: "code-error" },
  connect: NOTHING,
};
const tabs = new Tabs(Object.keys(ASKS), opened);

function opened(name) {
  if (name !== "code") code.cancel();
  if (name === "connect") connect.open();
  $("code").hidden = name === "connect";
  showMasks();
  showCode();
}

function answered() {
  remember(state(tabs.current));
  showHistory();
  showCode();
}

function showCode() {
  const { path, body } = ASKS[tabs.current];
  const asked = body();
  $("curl").textContent = asked === null ? "" : curlOf(location.origin + path, asked, hasKey());
  $("python").textContent = asked === null ? "" : pythonOf(location.origin + path, asked, hasKey());
}

/** Brings back what a link, an example or the history holds. */
function bring(values) {
  restore(values);
  code.restore(values);
  tabs.open(values.tab);
}

function showHistory() {
  $("history").replaceChildren(...remembered().map((values) => {
    const text = (values.tab === "score" ? values["score-text"] : values.text) ?? "";
    return el("li", {}, el("button", { onclick: () => bring(values), title: text }, text));
  }));
  $("past").hidden = remembered().length === 0;
}

/** Says what went wrong, and what can be done about it. */
function tell(id, failure, again) {
  document.querySelectorAll(".invalid").forEach((field) => field.classList.remove("invalid"));
  const box = $(id);
  const say = (...children) => { box.replaceChildren(...children); box.hidden = false; };
  if (failure.status === 401) {
    say(t("needskey"), el("button", { onclick: () => askKey(again) }, t("key")));
    // Nobody who writes is interrupted.
    if (tabs.current !== "code") askKey(again);
  } else if (failure.status === 0) {
    say(t("unreachable"), el("button", { onclick: again }, t("retry")));
  } else if (failure.status === 429 || failure.status === 503) {
    const wait = failure.retryAfter ? `${t("busy")} ${failure.retryAfter} ${t("again")}` : t("later");
    say(`${failure.message} — ${wait}`, el("button", { onclick: again }, t("retry")));
  } else {
    say(failure.message || String(failure.status));
    const name = (failure.param ?? "").split(".")[0];
    const field = $(tabs.current === "score" && name === "text" ? "score-text" : PLACES[name] ?? name);
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
    showCode();
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
    tell(ASKS[tabs.current].error, failure, learn);
    return;
  }
  for (const { error } of Object.values(ASKS)) $(error).hidden = true;
  const [model] = models;
  const { capabilities, limits } = model;
  $("model").textContent = `${model.id} · ${model.quantization}`;
  document.title = `${model.id} · glm-infill`;
  const masks = capabilities.masks.length ? capabilities.masks : [];
  $("masks").replaceChildren(...masks.map((mask) => el("button", { onclick: () => typeIn($("text"), mask) }, mask)));
  const value = $("strategy").value;
  $("strategy").replaceChildren($("strategy").options[0], ...capabilities.strategies.map((name) => el("option", { value: name }, name)));
  $("strategy").value = value;
  $("max_tokens").max = Math.min(limits.max_tokens, limits.max_span);
  $("n").max = limits.n;
  const adapters = (model.adapters ?? []).map((each) => each.id ?? each.name ?? each);
  $("adapter").replaceChildren($("adapter").options[0], ...adapters.map((name) => el("option", { value: name }, name)));
  $("adapter-label").hidden = adapters.length === 0;
  tabs.show("code", writesBetween(capabilities));
  connect.learn(model);
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
  connect.render();
  showExamples((values) => { bring(values); ASKS[values.tab].run(); });
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
$("text").value = examples()[0].values.text;
$("score-text").value = SCORED.text;
$("candidates").value = SCORED.candidates;
const showMasks = mirror($("text"), $("backdrop"));
const linked = fromLink();
if (linked) bring(linked);
else tabs.open("fill");
showHistory();
learn();

$("run").onclick = () => fill.run();
$("stop").onclick = () => fill.stop();
$("undo").onclick = () => fill.undo();
$("score-run").onclick = runScore;
$("code-run").onclick = () => code.suggest();
$("code-accept").onclick = () => code.accept();
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
$("share").onclick = (event) => {
  const { current } = tabs;
  copy(event.target, linkTo({ ...state(current), ...(current === "code" ? code.state : {}) }));
};
$("forget").onclick = () => { forget(); showHistory(); };
document.addEventListener("input", showCode);
document.addEventListener("change", showCode);
window.addEventListener("hashchange", () => {
  const values = fromLink();
  if (values) bring(values);
});
document.addEventListener("keydown", (event) => {
  const digit = /^Digit([1-9])$/.exec(event.code);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ASKS[tabs.current].run();
  } else if (event.key === "Escape" && !$("key-dialog").open) {
    if (!escape()) fill.stop();
  } else if (event.altKey && event.code === "KeyM") {
    const field = { fill: $("text"), score: $("score-text") }[tabs.current];
    if (!field) return;
    event.preventDefault();
    typeIn(field, $("masks").firstElementChild?.textContent ?? "[MASK]");
  } else if (event.altKey && event.code === "KeyZ") {
    event.preventDefault();
    fill.undo();
  } else if (event.altKey && digit && digit[1] <= tabs.shown.length) {
    event.preventDefault();
    tabs.open(tabs.shown[digit[1] - 1], true);
  }
});
