// Has Continue's adapters for DeepSeek and Mistral fill a blank as its autocomplete does. $CONTINUE is a folder with
// `npm install @continuedev/openai-adapters` done, and $ENDPOINT the server. Prints what the adapters understood.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const required = createRequire(path.join(process.env.CONTINUE, "package.json"));
const { constructLlmApi } = await import(pathToFileURL(required.resolve("@continuedev/openai-adapters")));
const understood = {};
for (const [provider, base] of [["deepseek", "/"], ["mistral", "/v1/"]]) {
  const api = constructLlmApi({ provider, apiKey: "none", apiBase: process.env.ENDPOINT + base });
  const body = {
    model: "glm-demo", prompt: "def total(numbers):\n    result = ", suffix: "\n    return result\n", max_tokens: 16,
    temperature: 0.01, stop: ["\n\n"], stream: true,
  };
  understood[provider] = "";
  for await (const chunk of api.fimStream(body, new AbortController().signal)) {
    understood[provider] += chunk.choices[0].delta.content ?? "";
  }
}
process.stdout.write(JSON.stringify(understood) + "\n");
