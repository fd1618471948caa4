// Clients, and the lines that make each one use this server. One entry is one client:
// `route` must be there or the client is not shown, `between` says that it needs a model that writes between two texts,
// and `lines` writes for {url, model, key, isKeyed, maxContext}: `key` is what to put where a client insists on one.

const quoted = JSON.stringify; // as JSON, JavaScript, Python, Lua, TOML and YAML read it
const BEFORE = "The capital of ";
const AFTER = " is Paris.";
const bearer = ({ isKeyed, key }) => (isKeyed ? `Authorization: Bearer ${key}` : null);

const LIBRARIES = [
  {
    name: "curl", where: "shell", route: "POST /v1/infill",
    lines: (at) => [
      `curl -s ${at.url}/v1/infill -H 'Content-Type: application/json'${at.isKeyed ? ` -H '${bearer(at)}'` : ""} \\`,
      `  -d '{"text": "${BEFORE}[MASK]${AFTER}", "max_tokens": 8}'`,
    ],
  },
  {
    name: "openai", where: "Python", route: "POST /v1/completions", between: true,
    lines: ({ url, model, key }) => [
      `import openai; client = openai.OpenAI(base_url="${url}/v1", api_key="${key}")`,
      `print(client.completions.create(model=${quoted(model)}, prompt="${BEFORE}", suffix="${AFTER}", max_tokens=8).choices[0].text)`,
    ],
  },
  {
    name: "openai", where: "JavaScript", route: "POST /v1/completions", between: true,
    lines: ({ url, model, key }) => [
      `import OpenAI from "openai"; const client = new OpenAI({ baseURL: "${url}/v1", apiKey: "${key}" });`,
      `console.log((await client.completions.create({ model: ${quoted(model)}, prompt: "${BEFORE}", suffix: "${AFTER}", max_tokens: 8 })).choices[0].text);`,
    ],
  },
  {
    name: "DeepSeek FIM (openai)", where: "Python", route: "POST /beta/completions", between: true,
    lines: ({ url, model, key }) => [
      `import openai; client = openai.OpenAI(base_url="${url}/beta", api_key="${key}")`,
      `print(client.completions.create(model=${quoted(model)}, prompt="${BEFORE}", suffix="${AFTER}", max_tokens=8).choices[0].text)`,
    ],
  },
  {
    name: "mistralai", where: "Python", route: "POST /v1/fim/completions", between: true,
    lines: ({ url, model, key }) => [
      `from mistralai.client import Mistral; client = Mistral(server_url="${url}", api_key="${key}")`,
      `print(client.fim.complete(model=${quoted(model)}, prompt="${BEFORE}", suffix="${AFTER}", max_tokens=8).choices[0].message.content)`,
    ],
  },
  {
    name: "@mistralai/mistralai", where: "JavaScript", route: "POST /v1/fim/completions", between: true,
    lines: ({ url, model, key }) => [
      `import { Mistral } from "@mistralai/mistralai"; const client = new Mistral({ serverURL: "${url}", apiKey: "${key}" });`,
      `console.log((await client.fim.complete({ model: ${quoted(model)}, prompt: "${BEFORE}", suffix: "${AFTER}", maxTokens: 8 })).choices[0].message.content);`,
    ],
  },
  {
    name: "ollama", where: "Python", route: "POST /api/generate", between: true,
    lines: ({ url, model, key, isKeyed }) => [
      `import ollama; client = ollama.Client(host="${url}"${isKeyed ? `, headers={"Authorization": "Bearer ${key}"}` : ""})`,
      `print(client.generate(model=${quoted(model)}, prompt="${BEFORE}", suffix="${AFTER}", options={"num_predict": 8}).response)`,
    ],
  },
  {
    name: "ollama", where: "JavaScript", route: "POST /api/generate", between: true,
    lines: ({ url, model, key, isKeyed }) => [
      `import { Ollama } from "ollama"; const client = new Ollama({ host: "${url}"${isKeyed ? `, headers: { Authorization: "Bearer ${key}" }` : ""} });`,
      `console.log((await client.generate({ model: ${quoted(model)}, prompt: "${BEFORE}", suffix: "${AFTER}", options: { num_predict: 8 } })).response);`,
    ],
  },
  {
    name: "huggingface_hub: fill_mask", where: "Python", route: "POST /",
    lines: ({ url, key, isKeyed }) => [
      `from huggingface_hub import InferenceClient; client = InferenceClient("${url}"${isKeyed ? `, token="${key}"` : ""})`,
      `print(client.fill_mask("${BEFORE}[MASK]${AFTER}"))`,
    ],
  },
  {
    name: "huggingface_hub: text_generation", where: "Python", route: "POST /",
    lines: ({ url, key, isKeyed }) => [
      `from huggingface_hub import InferenceClient; client = InferenceClient("${url}"${isKeyed ? `, token="${key}"` : ""})`,
      `print(client.text_generation("The capital of France is", max_new_tokens=8))`,
    ],
  },
  {
    name: "@huggingface/inference", where: "JavaScript", route: "POST /",
    lines: ({ url, key, isKeyed }) => [
      `import { InferenceClient } from "@huggingface/inference"; const client = new InferenceClient(${isKeyed ? `"${key}"` : ""}).endpoint("${url}");`,
      `console.log(await client.fillMask({ inputs: "${BEFORE}[MASK]${AFTER}" }));`,
    ],
  },
  {
    name: "LiteLLM", where: "Python", route: "POST /v1/completions", between: true,
    lines: ({ url, model, key }) => [
      `import litellm; at = {"api_base": "${url}/v1", "api_key": "${key}"}`,
      `print(litellm.text_completion(model=${quoted(`text-completion-openai/${model}`)}, prompt="${BEFORE}", suffix="${AFTER}", max_tokens=8, **at).choices[0].text)`,
    ],
  },
  {
    name: "LangChain", where: "Python", route: "POST /v1/completions",
    lines: ({ url, model, key }) => [
      `from langchain_openai import OpenAI; llm = OpenAI(base_url="${url}/v1", api_key="${key}", model=${quoted(model)}, max_tokens=8)`,
      `print(llm.invoke("The capital of France is"))`,
    ],
  },
  {
    name: "LlamaIndex", where: "Python", route: "POST /v1/completions",
    lines: ({ url, model, key }) => [
      `from llama_index.llms.openai_like import OpenAILike; llm = OpenAILike(api_base="${url}/v1", api_key="${key}", model=${quoted(model)}, max_tokens=8)`,
      `print(llm.complete("The capital of France is"))`,
    ],
  },
];

const EDITORS = [
  {
    name: "llama.vim", where: "vimrc", route: "POST /infill", between: true,
    lines: ({ url, key, isKeyed }) => [
      `let g:llama_config = {'endpoint_fim': '${url}/infill', 'n_prefix': 32, 'n_suffix': 16${isKeyed ? `, 'api_key': '${key}'` : ""}}`,
    ],
  },
  {
    name: "llama.vscode", where: "VS Code: settings.json", route: "POST /infill", between: true,
    lines: ({ url, key, isKeyed }) => [
      `{"llama-vscode.endpoint": "${url}"${isKeyed ? `,\n "llama-vscode.api_key": "${key}"` : ""}}`,
    ],
  },
  {
    name: "Continue", where: "~/.continue/config.yaml", route: "POST /v1/fim/completions", between: true,
    lines: ({ url, model, key }) => [
      "models:",
      `  - {name: glm-infill, provider: mistral, model: ${quoted(model)}, apiBase: "${url}/v1", apiKey: "${key}", roles: [autocomplete]}`,
    ],
  },
  {
    // minuet takes the name of a variable that has the key; TERM stands for none.
    name: "minuet-ai.nvim", where: "Neovim: init.lua", route: "POST /v1/completions", between: true,
    lines: ({ url, model, key, isKeyed }) => [
      `${isKeyed ? `vim.env.GLM_INFILL_API_KEY = "${key}"\n` : ""}require("minuet").setup { provider = "openai_fim_compatible", provider_options = { openai_fim_compatible = {`,
      `  name = "glm-infill", end_point = "${url}/v1/completions", model = ${quoted(model)}, api_key = "${isKeyed ? "GLM_INFILL_API_KEY" : "TERM"}" } } }`,
    ],
  },
  {
    // Zed takes the key from its environment.
    name: "Zed", where: "settings.json", route: "POST /v1/completions", between: true,
    lines: ({ url, model, key, isKeyed }) => [
      `${isKeyed ? `// ZED_OPEN_AI_COMPATIBLE_EDIT_PREDICTION_API_KEY=${key}\n` : ""}{"edit_predictions": {"provider": "open_ai_compatible_api", "open_ai_compatible_api": {`,
      `  "api_url": "${url}/v1/completions", "model": ${quoted(model)}, "prompt_format": "glm", "max_output_tokens": 64}}}`,
    ],
  },
  {
    name: "Tabby", where: "~/.tabby/config.toml", route: "POST /v1/completions", between: true,
    lines: ({ url, model, key }) => [
      "[model.completion.http]",
      `kind = "openai/completion"\nmodel_name = ${quoted(model)}\napi_endpoint = "${url}/v1"\napi_key = "${key}"\nprompt_template = "{prefix}[MASK]{suffix}"`,
    ],
  },
];

const EVALUATION = [
  {
    name: "lm-evaluation-harness", where: "shell", route: "POST /v1/completions",
    lines: ({ url, model, key, maxContext }) => [
      `OPENAI_API_KEY=${key} lm_eval --model local-completions --batch_size 16 --tasks lambada_openai \\`,
      `  --model_args ${`model=${model},base_url=${url}/v1/completions,max_length=${maxContext}`.replace(/[^\w.,=:/-]/g, "\\$&")}`,
    ],
  },
  {
    name: "promptfoo", where: "promptfooconfig.yaml", route: "POST /v1/completions",
    lines: ({ url, model, key }) => [
      "providers:",
      `  - {id: ${quoted(`openai:completion:${model}`)}, config: {apiBaseUrl: "${url}/v1", apiKey: "${key}", max_tokens: 8}}`,
    ],
  },
];

/** By kind: the name of each kind is in words.js. */
export const CLIENTS = { libraries: LIBRARIES, editors: EDITORS, evaluation: EVALUATION };
