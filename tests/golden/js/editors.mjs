// Has Mistral's and Ollama's clients fill a blank, list models and meet errors: `node editors.mjs URL`, with
// `npm install` done here. Prints what they understood as JSON.
import { Mistral } from "@mistralai/mistralai";
import { Ollama } from "ollama";

const url = process.argv[2];
const blank = { model: "glm-demo", prompt: "The capital of ", suffix: " is Paris." };
const sampled = { temperature: 0, num_predict: 8, repeat_penalty: 1 };
const refusal = async (call) => {
  try {
    await call();
    return null;
  } catch (error) {
    return { status: error.statusCode ?? error.status_code, text: error.error ?? error.body };
  }
};

const mistral = new Mistral({ apiKey: "none", serverURL: url, retryConfig: { strategy: "none" } });
const asked = { ...blank, temperature: 0, maxTokens: 8, randomSeed: 7 };
const chunks = [];
for await (const event of await mistral.fim.stream(asked)) chunks.push(event.data.choices[0]);

const ollama = new Ollama({ host: url });
const parts = [];
for await (const part of await ollama.generate({ ...blank, options: sampled, stream: true })) parts.push(part);

console.log(JSON.stringify({
  mistral: await mistral.fim.complete(asked),
  chunks,
  unknown_to_mistral: await refusal(() => mistral.fim.complete({ ...blank, model: "other" })),
  chat_by_mistral: await refusal(() => mistral.chat.complete({ model: "glm-demo", messages: [{ role: "user", content: "Hello" }] })),
  ollama: await ollama.generate({ ...blank, options: sampled }),
  parts,
  list: await ollama.list(),
  show: await ollama.show({ model: "glm-demo" }),
  ps: await ollama.ps(),
  version: await ollama.version(),
  unknown_to_ollama: await refusal(() => ollama.generate({ ...blank, model: "other" })),
  chat_by_ollama: await refusal(() => ollama.chat({ model: "glm-demo", messages: [{ role: "user", content: "Hello" }] })),
}));
