// Elements, made without markup: text is always text.

export const $ = (id) => document.getElementById(id);

/** An element with properties (`class`, `onclick`, `data`, `style` of custom properties, attributes) and children. */
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") element.className = value;
    else if (key === "style") for (const [name, set] of Object.entries(value)) element.style.setProperty(name, set);
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** How unsure a log-probability is, 0 … 70: the share of colour behind a token. */
export const unsure = (logprob) => String(Math.round(Math.min(-logprob / 6, 1) * 70));

export const percent = (logprob) => {
  const share = Math.exp(logprob) * 100;
  return share >= 99.95 ? "100 %" : share >= 0.1 ? `${share.toFixed(1)} %` : "< 0.1 %";
};
