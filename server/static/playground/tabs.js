// The tabs: one panel is open at a time.

import { $ } from "./dom.js";

export class Tabs {
  /** Each name has its `tab-NAME` and `panel-NAME`; `opened` is told the name that was opened. */
  constructor(names, opened) {
    this.names = names;
    this.opened = opened;
    [this.current] = names;
    for (const name of names) {
      $(`tab-${name}`).addEventListener("click", () => this.open(name));
      $(`tab-${name}`).addEventListener("keydown", (event) => this.#key(event));
    }
  }

  /** The tabs that this model has a use for. */
  get shown() { return this.names.filter((name) => !$(`tab-${name}`).hidden); }

  /** Opens a tab, the first one if there is none of the name. */
  open(name, focus = false) {
    this.current = this.shown.includes(name) ? name : this.names[0];
    for (const each of this.names) {
      const isOpen = each === this.current;
      $(`panel-${each}`).hidden = !isOpen;
      $(`tab-${each}`).setAttribute("aria-selected", String(isOpen));
      $(`tab-${each}`).tabIndex = isOpen ? 0 : -1;
    }
    if (focus) $(`tab-${this.current}`).focus();
    this.opened(this.current);
  }

  /** Takes a tab away, or brings it back. */
  show(name, isShown) {
    $(`tab-${name}`).hidden = !isShown;
    if (!isShown && this.current === name) this.open(this.names[0]);
  }

  #key(event) {
    const { shown } = this;
    const place = shown.indexOf(this.current);
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.open(shown.at(next % shown.length), true);
  }
}
