// The clipboard. Browsers give it to pages of this machine and of https only; elsewhere the old way serves.

import { el } from "./dom.js";
import { t } from "./words.js";

/** Copies a text and says so on the button, whose words are those of its `data-t`. */
export async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = el("textarea", { class: "unseen", readonly: "" });
    field.value = text;
    button.after(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    button.focus();
    if (!done) return;
  }
  button.textContent = t("copied");
  setTimeout(() => { button.textContent = t(button.dataset.t); }, 1200);
}
