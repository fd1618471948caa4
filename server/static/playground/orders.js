// Orders of spans: a small picture of each way through the blanks, with the log-probability that the spans have so.

import { el, percent, svg } from "./dom.js";
import { t } from "./words.js";

const WIDE = 26;
const APART = 44;
const FLOOR = 34; // where the blanks stand below the arcs
const TALL = 18;

const middle = (blank) => blank * APART + WIDE / 2 + 2;

/** The blanks in their places in the text, each with its number in the order, and an arc to the next one. */
function picture(order) {
  const boxes = order.map((blank, step) => [
    svg("rect", { class: "box", x: middle(blank) - WIDE / 2, y: FLOOR, width: WIDE, height: TALL, rx: 4 }),
    svg("text", { class: "step", x: middle(blank), y: FLOOR + 13 }, String(step + 1)),
  ]);
  const arcs = order.slice(1).map((blank, step) => {
    const from = middle(order[step]);
    const to = middle(blank);
    // Longer arcs are higher; all of them stay inside of the picture.
    const top = FLOOR - 8 - 20 * (Math.abs(to - from) / APART / Math.max(order.length - 1, 1));
    return svg(
      "g",
      { class: "arc" },
      svg("path", { d: `M ${from} ${FLOOR - 2} C ${from} ${top}, ${to} ${top}, ${to} ${FLOOR - 6}` }),
      svg("path", { class: "head", d: `M ${to - 3.5} ${FLOOR - 7} h 7 l -3.5 6 z` }),
    );
  });
  const width = (order.length - 1) * APART + WIDE + 4;
  const name = `${t("order")} ${order.map((blank) => blank + 1).join(" → ")}`;
  return svg(
    "svg",
    { class: "order", role: "img", "aria-label": name, viewBox: `0 0 ${width} ${FLOOR + TALL + 2}`, width, height: FLOOR + TALL + 2 },
    ...arcs,
    ...boxes.flat(),
  );
}

/** The orders of one result, best first. A share is among these orders. */
export function ordersTable(result) {
  const orders = [...result.orders].sort((a, b) => b.logprob - a.logprob);
  const weights = orders.map((each) => Math.exp(each.logprob - orders[0].logprob));
  const whole = weights.reduce((sum, weight) => sum + weight, 0);
  const rows = orders.map((each, place) => el(
    "tr",
    { class: place === 0 ? "best" : "" },
    el("td", {}, picture(each.order)),
    el("td", { class: "share" }, el("i", { style: { "--share": String(100 * weights[place] / whole) }, title: percent(Math.log(weights[place] / whole)) })),
    el("td", { class: "number" }, each.logprob.toFixed(3)),
  ));
  const names = ["order", "", "total"];
  const head = el("tr", {}, ...names.map((name, place) => el("th", { class: place > 1 ? "number" : "" }, name && t(name))));
  const caption = el("caption", {}, `${result.spans.map((span) => span.text.trim()).join(" · ")} — ${t("first")}`);
  return el("table", { class: "orders" }, caption, el("thead", {}, head), el("tbody", {}, ...rows));
}
