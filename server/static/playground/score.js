// The tab that scores.

import { post } from "./api.js";
import { $, el, percent, unsure } from "./dom.js";
import { ordersTable } from "./orders.js";
import { countBlanks } from "./text.js";
import { t } from "./words.js";

const lines = () => $("candidates").value.split("\n").filter((line) => line.trim() !== "");

/** The request; null where the candidates do not fit the blanks. */
export function scoreBody() {
  const text = $("score-text").value;
  const body = { include_end: $("include-end").checked, normalize: $("normalize").value, logprobs: 3, priority: "interactive" };
  if ($("adapter").value) body.adapter = $("adapter").value;
  if ($("form").value === "whole") return { text, ...body };
  if ($("form").value === "conditional") return { context: text, targets: lines(), ...body };
  const blanks = countBlanks(text);
  const spans = lines().map((line) => (blanks > 1 ? line.split("|").map((part) => part.trim()) : [line]));
  if (!spans.length || spans.some((span) => span.length !== Math.max(blanks, 1))) return null;
  return { text, spans, orders: $("all-orders").checked ? "all" : "left_to_right", ...body };
}

export async function score() {
  const body = scoreBody();
  if (body === null) throw Object.assign(new Error(t("uneven")), { status: 400, param: "spans" });
  const answer = await post("/v1/score", body);
  $("scores").replaceChildren(...shown(answer));
  return body;
}

function shown(answer) {
  const order = answer.results.map((_, number) => number).sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  const rows = order.map((number) => {
    const result = answer.results[number];
    const share = answer.probabilities[number];
    return el(
      "tr",
      { class: number === answer.best ? "best" : "" },
      el("td", {}, ...result.spans.flatMap((span, place) => [place ? " · " : "", ...heat(span)])),
      el("td", { class: "share" }, answer.results.length > 1 ? el("i", { style: { "--share": String(share * 100) }, title: percent(Math.log(share)) }) : ""),
      el("td", { class: "number" }, answer.results.length > 1 ? percent(Math.log(share)) : ""),
      el("td", { class: "number" }, result.logprob.toFixed(3)),
      el("td", { class: "number" }, result.perplexity < 1e6 ? result.perplexity.toFixed(1) : "∞"),
    );
  });
  const names = ["candidate", "", "probability", "total", "perplexity"];
  const head = el("tr", {}, ...names.map((name, place) => el("th", { class: place > 1 ? "number" : "" }, name ? t(name) : "")));
  const tables = [el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))];
  if (answer.results.some((result) => result.orders.length > 1)) tables.push(ordersTable(answer.results[answer.best]));
  return tables;
}

/** A span's tokens, shaded by how unlikely they are. */
function heat(span) {
  return span.tokens.map((token, place) => {
    const logprob = span.token_logprobs[place];
    const others = span.top_logprobs?.[place]?.map((other) => `${other.token} ${percent(other.logprob)}`).join("\n") ?? "";
    return el("span", { class: "token", style: { "--u": unsure(logprob) }, title: `${percent(logprob)}\n${others}` }, place ? token : token.trimStart());
  });
}
