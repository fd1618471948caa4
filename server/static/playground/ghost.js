// A suggestion: drawn in a text field behind its cursor, and not in its text until it is taken.

import { el } from "./dom.js";
import { typeIn } from "./text.js";

export class Ghost {
  /** `layer` lies below the field and makes it as high as its text. While there is a suggestion the layer shows the
   * text, and the field its cursor only. `onChange` is told each suggestion. */
  constructor(field, layer, onChange) {
    Object.assign(this, { field, layer, onChange, text: "" });
  }

  /** Draws the field's text with a suggestion; none if it is empty. */
  show(text) {
    const { value, selectionEnd: cursor } = this.field;
    this.text = text;
    this.layer.classList.toggle("shown", text !== "");
    this.field.classList.toggle("ghosted", text !== "");
    this.layer.replaceChildren(value.slice(0, cursor), el("span", { class: "ghost" }, text), value.slice(cursor), "\n");
    this.onChange(text);
  }

  /** Types the suggestion, in a way that the field's own undo knows. */
  take() {
    const { text } = this;
    this.show("");
    typeIn(this.field, text);
  }
}
