// Elements, made without markup: text is always text.

export const $ = (id) => document.getElementById(id);

/** An element with properties (`class`, `onclick`, `style` of custom properties, attributes) and children. */
export const el = (name, properties = {}, ...children) => dress(document.createElement(name), properties, children);

/** The same for a part of a picture. */
export const svg = (name, properties = {}, ...children) => (
  dress(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children)
);

function dress(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style") for (const [name, set] of Object.entries(value)) element.style.setProperty(name, set);
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The number in a field; null if it is empty. */
export const number = (id) => ($(id).value === "" ? null : Number($(id).value));

/** How unsure a log-probability is, 0 … 70: the share of colour behind a token. */
export const unsure = (logprob) => String(Math.round(Math.min(-logprob / 6, 1) * 70));

export const percent = (logprob) => {
  const share = Math.exp(logprob) * 100;
  return share >= 99.95 ? "100 %" : share >= 0.1 ? `${share.toFixed(1)} %` : "< 0.1 %";
};
