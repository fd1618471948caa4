// Has llama.vscode's own LlamaServer class ask for completions as its extension does: warm-up, three suggestions at a
// place in a text, one with indentation, health, and a count of tokens. $LLAMA_VSCODE is the extension's folder with
// `npm install` done, and esbuild; what of VS Code the class imports is empty here. Prints what the class understood.
const path = require("node:path");
const Module = require("node:module");
const root = process.env.LLAMA_VSCODE;
const fromRoot = Module.createRequire(path.join(root, "package.json"));
const settings = fromRoot(path.join(root, "package.json")).contributes?.configuration?.properties ?? {};

const nothing = new Proxy(function () {}, { get: (_, key) => (key === "default" ? nothing : key === "__esModule" ? true : nothing), apply: () => nothing, construct: () => nothing });
const load = Module._load;
Module._load = (name, ...rest) => (name === "vscode" ? nothing : load(name, ...rest));

const setting = (name, otherwise) => settings[`llama-vscode.${name}`]?.default ?? otherwise;
const configuration = {
  use_openai_endpoint: false, endpoint: process.env.ENDPOINT, ai_model: setting("ai_model", ""), axiosRequestConfigCompl: {}, axiosRequestConfigTools: {}, axiosRequestConfigChat: {},
  n_predict: setting("n_predict", 128), t_max_prompt_ms: setting("t_max_prompt_ms", 500),
  t_max_predict_ms: setting("t_max_predict_ms", 2500), lora_completion: "",
  max_parallel_completions: setting("max_parallel_completions", 3), endpoint_tools: process.env.ENDPOINT,
};
const app = { configuration, getComplModel: () => undefined, getToolsModel: () => undefined,
  persistence: { getApiKey: () => undefined }, logger: { addEventLog() {}, addLogEntry() {}, log() {} } };

async function main() {
  fromRoot("esbuild").buildSync({
    entryPoints: [path.join(root, "src/llama-server.ts")], bundle: true, platform: "node", format: "cjs",
    external: ["vscode"], outfile: path.join(root, "bundle.cjs"), logLevel: "silent",
  });
  const { LlamaServer } = fromRoot(path.join(root, "bundle.cjs"));
  const server = new LlamaServer(app);
  server.logApiRequest = server.logApiResponse = () => {};
  server.logApiError = (...error) => { console.error(error); process.exitCode = 1; };
  const chunks = [{ text: "The town lies by the sea.\n", time: 1700000000000, filename: "town.md" }];
  server.updateExtraContext(chunks);
  await new Promise(done => setTimeout(done, 500));
  const three = await server.getFIMCompletion("It was a fine morning.\n", " is a great city.\n", "The capital of ", chunks, 0);
  configuration.max_parallel_completions = 1;
  const one = await server.getFIMCompletion("def total(numbers):\n    result = 0\n", "\n    return result\n", "    for ", [], 4);
  const tokens = await server.countTextTokens("The capital of France");
  const health = await server.checkHealth("completion", { endpoint: process.env.ENDPOINT });
  console.log(JSON.stringify({ three, one, tokens, health }, null, 1));
}
main();
