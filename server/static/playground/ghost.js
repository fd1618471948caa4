// A suggestion: drawn in a text field behind its cursor, and not in its text until it is taken.

import { el } from "./dom.js";
import { typeIn } from "./text.js";

export class Ghost {
  /** While there is a suggestion, `layer` below the field shows all of the text, and the field its cursor only. */
  constructor(field, layer, onChange) {
    Object.assign(this, { field, layer, onChange, text: "" });
    field.addEventListener("scroll", () => { layer.scrollTop = field.scrollTop; });
    window.addEventListener("resize", () => this.fit());
  }

  show(text) {
    const { value, selectionEnd: cursor } = this.field;
    this.text = text;
    this.layer.hidden = text === "";
    this.field.classList.toggle("ghosted", text !== "");
    this.layer.replaceChildren(value.slice(0, cursor), el("span", { class: "ghost" }, text), value.slice(cursor), "\n");
    this.fit();
    this.onChange(text);
  }

  hide() {
    if (this.text !== "") this.show("");
  }

  /** Types the suggestion, in a way that the field's own undo knows. */
  take() {
    const { text } = this;
    this.hide();
    typeIn(this.field, text);
  }

  /** Makes the field as high as what stands in it. */
  fit() {
    this.field.style.height = "auto";
    const needed = this.text === "" ? 0 : this.layer.scrollHeight;
    this.field.style.height = `${Math.max(this.field.scrollHeight, needed)}px`;
  }
}
