// What is on the page, as data: for links and for the history.

import { $ } from "./dom.js";

const FIELDS = [
  "text", "score-text", "candidates", "form", "normalize", "order", "own-order", "strategy", "temperature", "top_p", "top_k",
  "max_tokens", "n", "seed", "adapter", "num_beams", "choices", "regex",
];
const CHECKS = ["include-end", "all-orders"];
const KEPT = 40;

/** The fields that are not as the page has them at first, and which tab is open. */
export function state(tab) {
  const values = { tab };
  for (const id of FIELDS) if ($(id).value !== initial(id)) values[id] = $(id).value;
  for (const id of CHECKS) if ($(id).checked) values[id] = true;
  return values;
}

export function restore(values) {
  for (const id of FIELDS) {
    $(id).value = typeof values[id] === "string" ? values[id] : initial(id);
    $(id).dispatchEvent(new Event("input"));
    $(id).dispatchEvent(new Event("change"));
  }
  for (const id of CHECKS) $(id).checked = values[id] === true;
}

function initial(id) {
  const field = $(id);
  return field.tagName === "SELECT" ? field.options[0].value : field.defaultValue;
}

// The fragment of an address is never sent to a server.
export const linkTo = (values) => `${location.origin}/#${encodeURIComponent(JSON.stringify(values))}`;

export function fromLink() {
  try {
    const values = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    return typeof values === "object" ? values : null;
  } catch {
    return null;
  }
}

export function remembered() {
  try {
    const kept = JSON.parse(localStorage.getItem("history") ?? "[]");
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
}

export function remember(values) {
  const kept = remembered().filter((old) => JSON.stringify(old) !== JSON.stringify(values));
  keep("history", JSON.stringify([values, ...kept].slice(0, KEPT)));
}

export const forget = () => localStorage.removeItem("history");

/** Storage may be full or forbidden: then nothing is kept. */
export function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Nothing is lost but the memory of it.
  }
}
