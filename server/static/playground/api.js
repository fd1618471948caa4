// The server: one place that asks it. The key is kept in this module only, for as long as the page lives.

let key = "";

export const setKey = (value) => { key = value; };
export const hasKey = () => key !== "";

/** What went wrong, in the server's words: `status` 0 if it could not be reached. */
export class Failure extends Error {
  constructor(status, error = {}, retryAfter = null) {
    super(error.message ?? "");
    Object.assign(this, { status, param: error.param ?? null, code: error.code ?? "", retryAfter });
  }
}

async function ask(path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    const method = body === undefined ? "GET" : "POST";
    response = await fetch(path, { method, headers, signal, body: body === undefined ? null : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0);
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Failure(response.status, answer.error, response.headers.get("retry-after"));
  }
  return response;
}

export const get = async (path) => (await ask(path)).json();
export const post = async (path, body, signal) => (await ask(path, body, signal)).json();

/** The events of a stream, as [name, data]. */
export async function* stream(path, body, signal) {
  const response = await ask(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(0);
    }
    if (chunk.done) return;
    const parts = (rest + chunk.value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").filter((line) => !line.startsWith(":"))
        .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      if (!fields.data) continue;
      const data = JSON.parse(fields.data);
      if (data.error) throw new Failure(200, data.error);
      yield [fields.event, data];
    }
  }
}
