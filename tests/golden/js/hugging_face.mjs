// Has Hugging Face's client fill a mask, generate text and meet errors: `node hugging_face.mjs URL`, with `npm install`
// done here. Prints what it understood as JSON.
import { InferenceClient } from "@huggingface/inference";

const url = process.argv[2];
const inputs = "The capital of [MASK] is Paris.";
const client = new InferenceClient(undefined, { endpointUrl: url });
const named = new InferenceClient(undefined, { endpointUrl: `${url}/models/glm-demo` });
const refusal = async (call) => {
  try {
    await call();
    return null;
  } catch (error) {
    return { name: error.name, message: error.message, status: error.httpResponse?.status };
  }
};

console.log(JSON.stringify({
  mask: await client.fillMask({ inputs }),
  two: await client.fillMask({ inputs, parameters: { top_k: 2 } }),
  targets: await named.fillMask({ inputs, parameters: { targets: ["France", "Rome"] } }),
  refused: await refusal(() => client.fillMask({ inputs, parameters: { top_k: 17 } })),
  text: await client.textGeneration({
    model: "glm-demo", inputs: "In the beginning God", parameters: { max_new_tokens: 6, temperature: 0 },
  }),
}));
