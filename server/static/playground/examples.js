// Three examples to begin with, in each language of the page. An example is what a link holds (state.js).

import { $, el } from "./dom.js";
import { isChinese, t } from "./words.js";

const ENGLISH = [
  { about: "words", values: { tab: "fill", text: "And [MASK] said unto him, What is thy [MASK]?" } },
  { about: "rest", values: { tab: "fill", text: "In the beginning God created [MASK]", max_tokens: "24" } },
  {
    about: "ranked",
    values: {
      tab: "score", "score-text": "In the [MASK] God created the [MASK] and the earth.",
      candidates: "beginning | heaven\nevening | sea\nworld | men", "all-orders": true,
    },
  },
];
const CHINESE = [
  { about: "words", values: { tab: "fill", text: "床前明月[MASK]，疑是地上[MASK]。" } },
  { about: "rest", values: { tab: "fill", text: "春眠不觉晓，[MASK]", max_tokens: "24" } },
  {
    about: "ranked",
    values: {
      tab: "score", "score-text": "举头望[MASK]月，低头思[MASK]乡。",
      candidates: "明 | 故\n山 | 他\n明 | 水", "all-orders": true,
    },
  },
];

export const examples = () => (isChinese() ? CHINESE : ENGLISH);

/** Shows them as buttons; `take` is told the values of the one that was chosen. */
export function showExamples(take) {
  $("examples-list").replaceChildren(...examples().map(({ about, values }) => el("li", {}, el(
    "button",
    { onclick: () => take(values) },
    el("small", {}, t(about)),
    el("span", {}, values.text ?? values["score-text"]),
  ))));
}
