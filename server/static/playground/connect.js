// The tab that says how other programs use this server: only what it has a route for, with its address and model.

import { get, hasKey } from "./api.js";
import { CLIENTS } from "./clients.js";
import { copy } from "./clipboard.js";
import { $, el } from "./dom.js";
import { t } from "./words.js";

const KEY = "YOUR_KEY";

export class Connect {
  /** `onError(failure, again)` is told if the server does not say which routes it has. */
  constructor(onError) {
    this.onError = onError;
    this.paths = null;
    this.model = null;
  }

  /** Takes what `/v1/models` says of the model. */
  learn(model) {
    this.model = model;
    this.render();
  }

  async open() {
    if (this.paths === null) {
      try {
        this.paths = (await get("/openapi.json")).paths;
      } catch (failure) {
        this.onError(failure, () => this.open());
        return;
      }
      $("connect-error").hidden = true;
    }
    this.render();
  }

  render() {
    if (this.paths === null || this.model === null) return;
    const { capabilities, id, limits } = this.model;
    const at = { url: location.origin, model: id, key: hasKey() ? KEY : "none", isKeyed: hasKey(), maxContext: limits.max_context };
    const isShown = (client) => this.#has(client.route) && (!client.between || writesBetween(capabilities));
    const kinds = Object.entries(CLIENTS).map(([kind, clients]) => [kind, clients.filter(isShown)]);
    $("clients").replaceChildren(...kinds.filter(([, clients]) => clients.length).map(([kind, clients]) => el(
      "section",
      { "aria-labelledby": `kind-${kind}` },
      el("h2", { id: `kind-${kind}` }, t(kind)),
      ...clients.map((client) => card(client, client.lines(at).join("\n"))),
    )));
    $("key-note").hidden = !hasKey();
  }

  #has(route) {
    const [method, path] = route.split(" ");
    return this.paths[path]?.[method.toLowerCase()] !== undefined;
  }
}

/** Whether a model fills a blank between two texts on the routes of editors: a masked one, which has no echo, does not. */
export const writesBetween = (capabilities) => capabilities.suffix && capabilities.echo;

function card(client, lines) {
  const name = `${client.name} (${client.where})`;
  const button = el("button", { "data-t": "copy", "aria-label": `${t("copy")}: ${name}` }, t("copy"));
  button.onclick = () => copy(button, lines);
  return el(
    "article",
    { class: "client", "aria-label": name },
    el("div", { class: "bar" }, el("h3", {}, client.name), el("span", { class: "quiet" }, client.where), button),
    el("pre", {}, lines),
  );
}
