// The tab that writes as an editor does: the cursor is the blank. It asks the route that editors ask.

import { stream } from "./api.js";
import { $, el, number } from "./dom.js";
import { Ghost } from "./ghost.js";
import { t } from "./words.js";

export const PATH = "/infill";
const QUIET_MS = 300; // nothing is asked while somebody types

export class Code {
  /** `onError(failure, again)` is told of each request that was not answered. */
  constructor(onError) {
    this.onError = onError;
    this.field = $("code-text");
    this.ghost = new Ghost(this.field, $("code-ghost"), (text) => { $("code-accept").disabled = text === ""; });
    this.timer = null;
    this.abort = null;
    this.composing = false;
    this.seen = this.#place();
    this.#listen();
  }

  get body() {
    const { before, after } = this.#place();
    const body = { input_prefix: before, input_suffix: after, n_predict: number("max_tokens") ?? 16 };
    body.temperature = number("temperature") ?? 0;
    // Where llama.cpp draws by other defaults than this page.
    if (body.temperature > 0) Object.assign(body, { top_k: number("top_k") ?? 0, top_p: number("top_p") ?? 1, min_p: 0 });
    if (number("seed") !== null) body.seed = number("seed");
    if ($("adapter").value) body.model = $("adapter").value;
    return body;
  }

  /** For a link. */
  get state() {
    const { value, selectionEnd: cursor } = this.field;
    return value === "" ? {} : { "code-text": value, cursor };
  }

  restore(values) {
    if (typeof values["code-text"] !== "string") return;
    this.cancel();
    this.field.value = values["code-text"];
    const cursor = Number.isInteger(values.cursor) ? values.cursor : this.field.value.length;
    this.field.setSelectionRange(cursor, cursor);
    this.seen = this.#place();
    this.ghost.show("");
  }

  /** Asks what stands at the cursor, and shows it as it comes. */
  async suggest() {
    if (this.composing) return;
    this.cancel();
    if (this.field.value.trim() === "") {
      this.#say(t("emptytext"));
      this.field.focus();
      return;
    }
    const abort = new AbortController();
    this.abort = abort;
    this.#say(t("working"));
    let truncated = false;
    try {
      for await (const [, data] of stream(PATH, { ...this.body, stream: true }, abort.signal)) {
        if (abort !== this.abort) return;
        if (data.content) this.ghost.show(this.ghost.text + data.content);
        truncated = data.truncated ?? truncated;
      }
      $("code-error").hidden = true;
      this.#tell(truncated);
    } catch (failure) {
      if (abort !== this.abort || failure.name === "AbortError") return;
      this.cancel();
      this.onError(failure, () => this.suggest());
    } finally {
      if (abort === this.abort) this.abort = null;
    }
  }

  accept() {
    if (this.ghost.text === "") return;
    this.#stop();
    this.ghost.take();
  }

  /** Takes the suggestion away, and back the request for it; true if there was either. */
  cancel() {
    const was = this.ghost.text !== "" || this.abort !== null || this.timer !== null;
    this.#stop();
    this.ghost.show("");
    this.#say("");
    return was;
  }

  #stop() {
    clearTimeout(this.timer);
    this.timer = null;
    this.abort?.abort();
    this.abort = null;
  }

  #place() {
    const { value, selectionStart, selectionEnd } = this.field;
    return { before: value.slice(0, selectionStart), chosen: value.slice(selectionStart, selectionEnd), after: value.slice(selectionEnd) };
  }

  /** The text or the cursor may be another. */
  #changed() {
    const was = this.seen;
    const now = this.#place();
    if (was.before === now.before && was.chosen === now.chosen && was.after === now.after) return;
    this.seen = now;
    const isEmpty = (now.before + now.after).trim() === "";
    if (this.#follows(was, now)) return;
    this.cancel();
    if (this.composing || now.chosen !== "" || isEmpty) return;
    this.timer = setTimeout(() => this.suggest(), QUIET_MS);
  }

  /** Whether what was typed is how the suggestion begins: then its rest stays. */
  #follows(was, now) {
    const typed = now.before.slice(was.before.length);
    const { text } = this.ghost;
    const isSo = typed !== "" && now.before === was.before + typed && now.after === was.after && now.chosen === ""
      && text.startsWith(typed) && text !== typed;
    if (isSo) this.ghost.show(text.slice(typed.length));
    return isSo;
  }

  #listen() {
    const { field } = this;
    field.addEventListener("input", () => this.#changed());
    // To come back to the field is no reason to ask.
    field.addEventListener("focus", () => { this.seen = this.#place(); });
    document.addEventListener("selectionchange", () => {
      if (document.activeElement === field) this.#changed();
    });
    field.addEventListener("compositionstart", () => {
      this.composing = true;
      this.cancel();
    });
    field.addEventListener("compositionend", () => {
      this.composing = false;
      this.seen = { before: "", chosen: "", after: "" };
      this.#changed();
    });
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      const isTab = event.key === "Tab" && !event.shiftKey && !event.ctrlKey && !event.altKey && !event.metaKey;
      if (isTab && this.ghost.text !== "") {
        event.preventDefault();
        this.accept();
      } else if (event.key === "Escape" && this.cancel()) {
        event.stopPropagation();
      }
    });
  }

  /** Says what there is now; a screen reader reads the suggestion, which others see in its place. */
  #tell(truncated) {
    const { text } = this.ghost;
    const how = text === "" ? t("nothing") : t("take");
    this.#say(text === "" ? null : el("span", { class: "unseen" }, `${t("suggestion")}: ${text} `), truncated ? `${how} ${t("trimmed")}` : how);
  }

  #say(...words) {
    $("code-status").replaceChildren(...words.filter((word) => word));
  }
}
