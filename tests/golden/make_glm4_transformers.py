"""Makes `glm4.safetensors` and `glm4_0414.safetensors`: transformers' GlmForCausalLM and Glm4ForCausalLM.

transformers 5.24 (Apache-2.0, Hugging Face) has the architectures of GLM-4-9B (glm) and of GLM-4-0414 (glm4, which
normalizes each branch's answer too). 2-layer models with random weights run in float32 on a CPU, with eager attention.

Each file holds `weights.NAME` under transformers' own names and, for each case, `CASE.token_ids`, `CASE.positions`,
`CASE.block_positions` (0), `CASE.context_len` (0: the models are causal) and `CASE.logprobs` [rows, vocab_size].
`greedy.*`: see making.py. Metadata, each as JSON:

- `config`: config.json as transformers 5 writes it; `config_flat`: as transformers 4 wrote it (`partial_rotary_factor`
  and `rope_theta` beside the sizes);
- of glm4.safetensors only, `config_original`: config.json with the names of the original ChatGLMModel folder;
  `original_names`: {original name: [names in this file]}, the original tensor being these one below the other. It also
  has `transformer.rotary_pos_emb.inv_freq`, which loaders ignore, and which is not here.

Knows nothing of this repository's code. To rerun, in the repository root (the venv: see make_glm_sat.py, where
transformers was 5.24.0):

    /tmp/sat/bin/python tests/golden/make_glm4_transformers.py
"""

from collections.abc import Sequence
from typing import Any

import torch
from making import Case, greedy, named, quieten, randomise, rows, save, tokens
from torch import Tensor
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

FIRST, LAST = 0, 104
ENDOFTEXT, MASK, GMASK, SMASK, SOP, EOP, SYSTEM, USER, ASSISTANT, OBSERVATION = range(105, 115)
ROPE_RATIO = 500  # GLM-4-9B-chat's
SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1.5625e-07,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "pad_token_id": ENDOFTEXT,
    "eos_token_id": [ENDOFTEXT, USER, OBSERVATION],
}
FLAT = {
    "glm": SIZES
    | {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0 * ROPE_RATIO,
    },
    # No biases in query, key and value: as in GLM-4-32B-0414.
    "glm4": SIZES
    | {
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
    },
}
ORIGINAL = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": SIZES["intermediate_size"],
    "hidden_size": SIZES["hidden_size"],
    "kv_channels": SIZES["head_dim"],
    "layernorm_epsilon": SIZES["rms_norm_eps"],
    "multi_query_attention": True,
    "multi_query_group_num": SIZES["num_key_value_heads"],
    "num_attention_heads": SIZES["num_attention_heads"],
    "num_layers": SIZES["num_hidden_layers"],
    "original_rope": True,
    "padded_vocab_size": SIZES["vocab_size"],
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": ROPE_RATIO,
    "seq_length": SIZES["max_position_embeddings"],
    "vocab_size": SIZES["vocab_size"],
    "tie_word_embeddings": False,
    "eos_token_id": SIZES["eos_token_id"],
    "pad_token_id": ENDOFTEXT,
}


def original_names() -> dict[str, list[str]]:
    names = {
        "transformer.embedding.word_embeddings.weight": ["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": ["model.norm.weight"],
        "transformer.output_layer.weight": ["lm_head.weight"],
    }
    for i in range(SIZES["num_hidden_layers"]):
        theirs, ours = f"transformer.encoder.layers.{i}", f"model.layers.{i}"
        for kind in ("weight", "bias"):
            names[f"{theirs}.self_attention.query_key_value.{kind}"] = [
                f"{ours}.self_attn.{letter}_proj.{kind}" for letter in "qkv"
            ]
        for their, our in {
            "input_layernorm": "input_layernorm",
            "self_attention.dense": "self_attn.o_proj",
            "post_attention_layernorm": "post_attention_layernorm",
            "mlp.dense_h_to_4h": "mlp.gate_up_proj",
            "mlp.dense_4h_to_h": "mlp.down_proj",
        }.items():
            names[f"{theirs}.{their}.weight"] = [f"{ours}.{our}.weight"]
    return names


@torch.inference_mode()
def logprobs(model: GlmForCausalLM | Glm4ForCausalLM, case: Case) -> Tensor:
    logits = model(input_ids=case["token_ids"][None], position_ids=case["positions"][None], use_cache=False).logits
    return torch.log_softmax(logits[0].float(), dim=-1)


def lay_out(prompt: Sequence[int], written: Sequence[int] = ()) -> Case:
    count = len(prompt) + len(written)
    return rows([*prompt, *written], range(count), [0] * count, 0)


CASES = {
    "plain": lay_out([15, 7, 33, 80, 15, 15, 99]),
    "prefixed": lay_out([GMASK, SOP, 4, 70, 28, 19, 66, 12, 12]),
    "chat": lay_out([GMASK, SOP, SYSTEM, 9, 50, USER, 9, 71, 3, ASSISTANT, 9], [44, 20, 86, 20, ENDOFTEXT]),
    "long": lay_out([GMASK, SOP, *tokens(1, 118, FIRST, LAST)]),
}


def make(name: str, config: GlmConfig | Glm4Config, model_class: Any, seed: int, **metadata: Any) -> None:
    config._attn_implementation = "eager"
    model = model_class(config).float().eval()
    randomise(model.named_parameters(), seed)
    quieten(model.lm_head.weight, LAST + 1)
    weights = model.state_dict()
    for their, ours in metadata.get("original_names", {}).items():
        assert all(our in weights for our in ours), their
    tensors = named("weights", weights)
    for label, case in CASES.items():
        tensors |= named(label, case | {"logprobs": logprobs(model, case)})
    written = greedy(
        lambda number: [GMASK, SOP, USER, *tokens(number, 21, FIRST, LAST), ASSISTANT],
        lay_out,
        lambda case: logprobs(model, case),
        range(FIRST, LAST + 1),
    )
    tensors |= named("greedy", written)
    save(__file__, name, tensors, config=config.to_dict(), **metadata)


def main() -> None:
    originals = {"config_original": ORIGINAL, "original_names": original_names()}
    glm, glm4 = FLAT["glm"], FLAT["glm4"]
    make("glm4.safetensors", GlmConfig(**glm), GlmForCausalLM, 20240605, config_flat=glm, **originals)
    make("glm4_0414.safetensors", Glm4Config(**glm4), Glm4ForCausalLM, 20250414, config_flat=glm4)


if __name__ == "__main__":
    main()
