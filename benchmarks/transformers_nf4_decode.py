"""Decode steps of transformers with bitsandbytes NF4 on a CPU, in the JSON form of `glm-infill bench decode`.

Runs in an environment of its own: pip install transformers accelerate bitsandbytes. A llama network with random
weights, its linear layers NF4 as `BitsAndBytesConfig` makes them; the head stays bfloat16, as it does there.

    python benchmarks/transformers_nf4_decode.py --threads 2
"""

import argparse
import json
import statistics
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

CONTEXT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", default="1,4")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=16384,
        num_hidden_layers=args.layers,
        num_attention_heads=32,
        vocab_size=32000,
        dtype="bfloat16",
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=nf4, dtype=torch.bfloat16, device_map="cpu"
        )
    macs = args.layers * (4 * 4096**2 + 3 * 4096 * 16384) + 32000 * 4096
    decode = {}
    with torch.inference_mode():
        for count in map(int, args.rows.split(",")):
            ids = torch.arange(count * CONTEXT).view(count, CONTEXT) * 7919 % config.vocab_size
            cache = model(ids, use_cache=True).past_key_values
            seconds = []
            for step in range(args.steps + 1):
                began = time.perf_counter()
                model(ids[:, step : step + 1], past_key_values=cache, use_cache=True)
                seconds.append(time.perf_counter() - began)
            median = statistics.median(seconds[1:])
            decode[str(count)] = {
                "step_ms": round(median * 1e3, 2),
                "tokens_per_s": round(count / median, 1),
                "ns_per_million_macs": round(median * 1e9 / (count * macs / 1e6), 1),
            }
    print(json.dumps({"quant": "nf4", "macs_per_token": macs, "decode": decode}))


if __name__ == "__main__":
    main()
