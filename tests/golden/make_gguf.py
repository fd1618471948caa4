"""Makes `gguf_q4_k_m.gguf` and `gguf_q4_k_m.safetensors`: a file that llama.cpp quantized, and what it stands for.

A random GLM-4-0414 of one layer is written in F32 by gguf-py 0.19.0 and quantized to Q4_K_M, a mixture of kinds, by
llama.cpp (llama-cpp-python 0.3.36, `llama_model_quantize`). transformers' Glm4ForCausalLM 5.24.0 runs with the numbers
that gguf-py finds in that file, in float32 on a CPU.

The second file holds `plain.*`: `token_ids`, `positions`, `block_positions` (0), `context_len` (0) and `logprobs`
[rows, vocab_size]; metadata: `kinds`, {GGUF name: kind} of the matrices.

Knows nothing of this repository's code. To rerun, in the repository root, in an environment with gguf,
llama-cpp-python, transformers and torch:

    python tests/golden/make_gguf.py
"""

import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from gguf.quants import dequantize
from making import named, randomise, rows, save, tokens
from transformers import Glm4Config, Glm4ForCausalLM

NAME = "gguf_q4_k_m"
SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1.5625e-07,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "pad_token_id": 0,
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
}


def write(path: Path, model: Glm4ForCausalLM) -> None:
    writer = gguf.GGUFWriter(str(path), "glm4")
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_key_length(SIZES["head_dim"])
    writer.add_value_length(SIZES["head_dim"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_rope_dimension_count(int(SIZES["head_dim"] * SIZES["partial_rotary_factor"]))
    writer.add_rope_freq_base(SIZES["rope_theta"])
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in model.state_dict().items():
        writer.add_tensor(gguf_name(name), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{LAYER[rest.removesuffix('.weight')]}.weight"


def main() -> None:
    model = Glm4ForCausalLM(Glm4Config(**SIZES, attn_implementation="eager")).float().eval().requires_grad_(False)
    randomise(model.named_parameters(), 20261129, spread=0.1)
    target = Path(__file__).with_name(f"{NAME}.gguf")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "f32.gguf", model)
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        status = llama_cpp.llama_model_quantize(f"{folder}/f32.gguf".encode(), str(target).encode(), options)
        assert status == 0, status
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    state = {
        name: torch.from_numpy(np.array(dequantize(tensors[own].data, tensors[own].tensor_type))).view(shape)
        for name, own, shape in ((n, gguf_name(n), t.shape) for n, t in model.state_dict().items())
    }
    model.load_state_dict(state)
    ids = tokens(3, 24, 0, SIZES["vocab_size"] - 1)
    case = rows(ids, range(len(ids)), [0] * len(ids), 0)
    with torch.inference_mode():
        case["logprobs"] = model(input_ids=case["token_ids"][None], use_cache=False).logits[0].log_softmax(-1)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors.values() if len(tensor.shape) > 1}
    print(target, target.stat().st_size, "bytes", kinds)
    save(__file__, f"{NAME}.safetensors", named("plain", case), kinds=kinds)


if __name__ == "__main__":
    main()
