// The tab that fills blanks.

import { Answer, hide } from "./answer.js";
import { stream } from "./api.js";
import { $, number } from "./dom.js";
import { countBlanks, parts } from "./text.js";
import { t } from "./words.js";

const list = (text) => text.split(/[,，]/).map((part) => part.trim()).filter((part) => part !== "");

/** The settings as fields of a request; what is as the server has it anyway is left out. */
export function settings(blanks) {
  const body = { max_tokens: number("max_tokens") ?? 16 };
  const usual = { temperature: 0, top_p: 1, top_k: 0, n: 1, num_beams: 1, seed: null };
  for (const [name, value] of Object.entries(usual)) {
    if (number(name) !== value) body[name] = number(name);
  }
  if ($("order").value === "own") body.order = list($("own-order").value).map((text) => Number(text) - 1);
  else if ($("order").value !== "left_to_right" && blanks > 1) body.order = $("order").value;
  for (const name of ["strategy", "adapter", "regex"]) if ($(name).value) body[name] = $(name).value;
  const choices = list($("choices").value);
  if (choices.length) body.choices = choices;
  return body;
}

export class Fill {
  /** `onDone(body)` is told of each request that was answered, `onError(failure, again)` of each that was not. */
  constructor(onDone, onError) {
    this.onDone = onDone;
    this.onError = onError;
    this.answers = [];
    this.past = [];
    this.abort = null;
  }

  get body() {
    const text = $("text").value;
    return { text, ...settings(countBlanks(text)), logprobs: 5 };
  }

  async run() {
    const { body } = this;
    if (body.text.trim() === "") {
      $("status").textContent = t("emptytext");
      $("text").focus();
      return;
    }
    const pieces = parts(body.text);
    if (!countBlanks(body.text)) pieces.push({ mask: "[gMASK]" });
    const fresh = () => new Answer(
      pieces.map((piece) => (piece.mask ? { mask: piece.mask, tokens: [], state: "waiting" } : piece)),
      (...change) => this.replace(...change),
    );
    this.past = [];
    this.answers = Array.from({ length: body.n ?? 1 }, fresh);
    this.render();
    await this.#stream(body, () => this.run(), (event, data) => {
      const answer = this.answers[data.index];
      if (!answer) return;
      if (event === "blank.delta") answer.write(data.blank, data.text, data.logprobs);
      if (event === "blank.done") answer.finish(data.blank.index, data.blank);
      if (event === "result.done") {
        answer.logprob = data.logprob;
        data.blanks.forEach((blank) => answer.finish(blank.index, blank));
      }
    });
  }

  /** Puts an alternative in a word's place, and has what follows it in that blank written anew. */
  async replace(answer, blankNumber, place, alternative) {
    const place_ = this.answers.indexOf(answer);
    this.past.push([place_, answer]);
    const next = answer.copy();
    next.logprob = null;
    this.answers[place_] = next;
    const blank = next.blanks[blankNumber];
    // A mask swallows the space before it, so the first word of a blank has one that the text has already.
    const text = place === 0 ? alternative.token.replace(/^ /, "") : alternative.token;
    const kept = [...blank.tokens.slice(0, place), { ...answer.blanks[blankNumber].tokens[place], text, logprob: alternative.logprob }];
    Object.assign(blank, { tokens: [...kept], state: "writing" });
    next.render();
    this.render();
    const written = (piece) => piece.tokens.map((token) => token.text).join("");
    const asked = next.pieces.map((piece) => {
      if (typeof piece === "string") return piece;
      return piece === blank ? written(piece) + piece.mask : written(piece);
    }).join("");
    const body = { text: asked, ...settings(1), n: 1, logprobs: 5 };
    for (const name of ["n", "order", "choices", "regex", "num_beams"]) delete body[name];
    await this.#stream(body, () => this.undo(), (event, data) => {
      if (event === "blank.delta") next.write(blankNumber, data.text, data.logprobs);
      if (event === "blank.done") next.finish(blankNumber, data.blank, kept);
    });
  }

  undo() {
    const last = this.past.pop();
    if (!last) return;
    const [place, answer] = last;
    this.answers[place] = answer;
    this.render();
  }

  stop() {
    if (!this.abort) return false;
    this.abort.abort();
    return true;
  }

  render() {
    hide();
    $("results").replaceChildren(...this.answers.map((answer) => answer.element));
    $("legend").hidden = this.answers.length === 0;
    $("undo").disabled = this.past.length === 0;
  }

  async #stream(body, again, take) {
    this.stop();
    const abort = new AbortController();
    this.abort = abort;
    $("stop").hidden = false;
    $("error").hidden = true;
    $("status").textContent = countBlanks(body.text) ? t("working") : t("noblank");
    try {
      for await (const [event, data] of stream("/v1/infill", { ...body, stream: true }, abort.signal)) {
        if (abort !== this.abort) return;
        take(event, data);
        if (event === "done") {
          $("status").textContent = `${t("done")}: ${data.usage.completion_tokens} ${t("tokens")}`;
          this.onDone(body);
        }
      }
    } catch (failure) {
      if (failure.name === "AbortError") $("status").textContent = t("stopped");
      else {
        $("status").textContent = "";
        this.onError(failure, again);
      }
    } finally {
      if (abort === this.abort) {
        this.abort = null;
        $("stop").hidden = true;
      }
    }
  }
}
