// Texts with masks.

const MASK = /(\[[sg]?MASK\])/;

/** A text's parts, in order: strings, and {mask} for each blank. */
export const parts = (text) => text.split(MASK).filter((part) => part !== "")
  .map((part) => (MASK.test(part) ? { mask: part } : part));

export const countBlanks = (text) => parts(text).filter((part) => part.mask).length;

/** Shows, behind a text field, where its masks are. */
export function mirror(field, backdrop) {
  const show = () => {
    backdrop.replaceChildren(...parts(field.value).map((part) => {
      if (!part.mask) return part;
      const mark = document.createElement("mark");
      mark.textContent = part.mask;
      return mark;
    }), "\n");
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
  };
  field.addEventListener("input", show);
  window.addEventListener("resize", show);
  show();
  return show;
}

/** Puts a text at the cursor, in a way that the field's own undo knows. */
export function typeIn(field, text) {
  field.focus();
  if (!document.execCommand("insertText", false, text)) {
    field.setRangeText(text, field.selectionStart, field.selectionEnd, "end");
    field.dispatchEvent(new Event("input"));
  }
}
