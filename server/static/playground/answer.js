// One filled text on the page: its words shaded by how sure the model was, with alternatives to take.

import { $, el, percent, unsure } from "./dom.js";
import { t } from "./words.js";

/** A text being filled: `pieces` are strings, and blanks {mask, tokens: [{text, logprob, top}], state}. */
export class Answer {
  constructor(pieces, onReplace) {
    this.pieces = pieces;
    this.onReplace = onReplace;
    this.logprob = null;
    this.element = el("p", { class: "answer" });
    this.render();
  }

  get blanks() { return this.pieces.filter((piece) => typeof piece !== "string"); }

  get text() {
    return this.pieces.map((piece) => (typeof piece === "string" ? piece : piece.tokens.map((token) => token.text).join(""))).join("");
  }

  /** A copy to go back to. */
  copy() {
    const pieces = this.pieces.map((piece) => (typeof piece === "string" ? piece : { ...piece, tokens: [...piece.tokens] }));
    const copy = new Answer(pieces, this.onReplace);
    copy.logprob = this.logprob;
    copy.render();
    return copy;
  }

  /** More of a blank, as it streams: the words of an event with their mean log-probability. */
  write(number, text, logprobs) {
    const blank = this.blanks[number];
    blank.state = "writing";
    const logprob = logprobs.length ? logprobs.reduce((sum, value) => sum + value, 0) / logprobs.length : 0;
    blank.tokens.push({ text, logprob, top: null });
    this.render();
  }

  /** A whole blank: its tokens with their alternatives, behind what was kept of it before. */
  finish(number, blank, kept = []) {
    const letters = Array.from(blank.text);
    const starts = blank.text_offsets;
    const written = blank.tokens.map((_, place) => ({
      text: letters.slice(starts[place], starts[place + 1] ?? letters.length).join(""),
      logprob: blank.token_logprobs[place],
      top: blank.top_logprobs?.[place] ?? null,
    }));
    Object.assign(this.blanks[number], { tokens: [...kept, ...written], state: "done", choices: blank.choice_logprobs });
    this.render();
  }

  render() {
    const numbers = new Map(this.blanks.map((blank, number) => [blank, number]));
    this.element.replaceChildren(...this.pieces.map((piece) => {
      if (typeof piece === "string") return document.createTextNode(piece);
      const empty = piece.tokens.length === 0 && piece.state !== "done";
      const span = el("span", { class: `fill ${empty ? "waiting" : piece.state}` });
      span.append(...piece.tokens.map((token, place) => this.#token(numbers.get(piece), token, place)));
      return span;
    }));
    if (this.logprob !== null) {
      this.element.append(el("span", { class: "worth" }, `${t("total")} ${this.logprob.toFixed(3)}`));
    }
  }

  #token(number, token, place) {
    const shade = { style: { "--u": unsure(token.logprob) }, class: "token" };
    if (!token.top) return el("span", { ...shade, title: percent(token.logprob) }, token.text);
    const button = el("button", { ...shade, "aria-haspopup": "listbox", "aria-expanded": "false" }, token.text || "∅");
    const open = () => show(button, token, (alternative) => this.onReplace(this, number, place, alternative));
    button.addEventListener("mouseenter", open);
    button.addEventListener("click", open);
    button.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown") return;
      event.preventDefault();
      open();
      $("popover").querySelector("button")?.focus();
    });
    return button;
  }
}

let anchor = null;

function show(button, token, take) {
  hide();
  anchor = button;
  button.setAttribute("aria-expanded", "true");
  const popover = $("popover");
  popover.replaceChildren(...token.top.map((alternative) => el(
    "button",
    {
      role: "option",
      "aria-selected": String(alternative.logprob === token.logprob),
      onclick: () => { hide(); take(alternative); },
    },
    el("span", {}, alternative.token.trim() === "" ? "␣" : alternative.token),
    el("small", {}, percent(alternative.logprob)),
  )));
  popover.hidden = false;
  const box = button.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - popover.offsetWidth - 8);
  popover.style.left = `${Math.max(left, 4) + window.scrollX}px`;
  popover.style.top = `${box.bottom + window.scrollY + 4}px`;
}

/** Closes the alternatives; true if they were open. */
export function hide() {
  if (!anchor) return false;
  anchor.setAttribute("aria-expanded", "false");
  anchor = null;
  $("popover").hidden = true;
  return true;
}

$("popover").addEventListener("keydown", (event) => {
  const options = [...$("popover").querySelectorAll("button")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  options[(options.indexOf(document.activeElement) + step + options.length) % options.length].focus();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("#popover, button.token")) hide();
});

/** Closes the alternatives and gives the keyboard back to their word. */
export function escape() {
  const word = anchor;
  const was = hide();
  if (was && $("popover").contains(document.activeElement)) word.focus();
  return was;
}
