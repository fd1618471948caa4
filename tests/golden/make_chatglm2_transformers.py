"""Makes `chatglm2.safetensors`: the architecture of ChatGLM2-6B, ChatGLM3-6B and CodeGeeX2-6B, by transformers.

transformers 5.24 (Apache-2.0, Hugging Face) has it as GlmForCausalLM with other sizes than GLM-4's. A 2-layer model
with random weights runs in float32 on a CPU, with eager attention. The file holds `weights.NAME` under the published
names (`transformer.rotary_pos_emb.inv_freq` included, which loaders ignore). For each case `CASE.token_ids`,
`CASE.positions`, `CASE.block_positions` (0), `CASE.context_len` (0: the models are causal), and log-probabilities
[rows, vocab_size] by what `rope_ratio` means:

- `CASE.logprobs`: without one;
- `long.logprobs_positions`: 16 divides the positions, as in ChatGLM2-6B-32K;
- `long.logprobs_base`: 50 multiplies the base of the angles, as in ChatGLM3-6B-32K.

`greedy.*`: see making.py. Metadata `config` is config.json as it is published.

With folders of published files (configuration_chatglm.py, modeling_chatglm.py), it also runs the same weights in their
code, and demands the same log-probabilities to 1e-5. The files of ChatGLM2-6B, ChatGLM3-6B and CodeGeeX2-6B gave them
within 4e-6 when this was made. They are no part of this repository.

Knows nothing of this repository's code. To rerun, in the repository root (the venv: see make_glm_sat.py, where
transformers was 5.24.0):

    /tmp/sat/bin/python tests/golden/make_chatglm2_transformers.py [FOLDER...]
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from making import Case, greedy, named, quieten, randomise, rows, save, tokens
from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM

FIRST, LAST = 3, 103
EOS = 2
MASK, GMASK, SMASK, SOP, EOP, SYSTEM, USER, ASSISTANT, OBSERVATION = range(104, 113)
CONFIG: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 64,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 32,
    "interleaved_qkv": False,
    "kv_channels": 8,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 2,
    "original_rope": True,
    "padded_vocab_size": 120,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rotary_percent": 0.5,
    "seq_length": 256,
    "use_cache": True,
    "torch_dtype": "float16",
    "tie_word_embeddings": False,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
POSITIONS, BASE = 16, 50
TURNED: dict[str, dict[str, Any]] = {
    "logprobs": {"rope_type": "default", "rope_theta": 10000.0},
    "logprobs_positions": {"rope_type": "linear", "rope_theta": 10000.0, "factor": float(POSITIONS)},
    "logprobs_base": {"rope_type": "default", "rope_theta": 10000.0 * BASE},
}


def reference(rope: dict[str, Any]) -> GlmForCausalLM:
    config = GlmConfig(
        vocab_size=CONFIG["padded_vocab_size"],
        hidden_size=CONFIG["hidden_size"],
        intermediate_size=CONFIG["ffn_hidden_size"],
        num_hidden_layers=CONFIG["num_layers"],
        num_attention_heads=CONFIG["num_attention_heads"],
        num_key_value_heads=CONFIG["multi_query_group_num"],
        head_dim=CONFIG["kv_channels"],
        max_position_embeddings=CONFIG["seq_length"],
        rms_norm_eps=CONFIG["layernorm_epsilon"],
        hidden_act="silu",
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=EOS,
        rope_parameters=rope | {"partial_rotary_factor": 0.5},
    )
    config._attn_implementation = "eager"
    model = GlmForCausalLM(config).float().eval()
    randomise(model.named_parameters(), 20230625)
    quieten(model.lm_head.weight, LAST + 1)
    return model


def published(model: GlmForCausalLM) -> dict[str, Tensor]:
    own = model.state_dict()
    weights = {
        "transformer.embedding.word_embeddings.weight": own["model.embed_tokens.weight"],
        "transformer.rotary_pos_emb.inv_freq": (1 / 10000 ** (torch.arange(0, 4, 2) / 4)).to(torch.float16),
        "transformer.encoder.final_layernorm.weight": own["model.norm.weight"],
        "transformer.output_layer.weight": own["lm_head.weight"],
    }
    for i in range(CONFIG["num_layers"]):
        theirs, ours = f"transformer.encoder.layers.{i}", f"model.layers.{i}"
        for kind in ("weight", "bias"):
            parts = [own[f"{ours}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            weights[f"{theirs}.self_attention.query_key_value.{kind}"] = torch.cat(parts)
        for their, our in {
            "input_layernorm": "input_layernorm",
            "self_attention.dense": "self_attn.o_proj",
            "post_attention_layernorm": "post_attention_layernorm",
            "mlp.dense_h_to_4h": "mlp.gate_up_proj",
            "mlp.dense_4h_to_h": "mlp.down_proj",
        }.items():
            weights[f"{theirs}.{their}.weight"] = own[f"{ours}.{our}.weight"]
    return weights


@torch.inference_mode()
def logprobs(model: GlmForCausalLM, case: Case) -> Tensor:
    logits = model(input_ids=case["token_ids"][None], position_ids=case["positions"][None], use_cache=False).logits
    return torch.log_softmax(logits[0].float(), dim=-1)


def lay_out(prompt: Sequence[int], written: Sequence[int] = ()) -> Case:
    count = len(prompt) + len(written)
    return rows([*prompt, *written], range(count), [0] * count, 0)


CASES = {
    "plain": lay_out([15, 7, 33, 80, 15, 15, 99]),
    "prefixed": lay_out([GMASK, SOP, 4, 70, 28, 19, 66, 12, 12]),
    "chat": lay_out([GMASK, SOP, SYSTEM, 9, 50, USER, 9, 71, 3, ASSISTANT, 9], [44, 20, 86, 20, EOS]),
    "long": lay_out([GMASK, SOP, *tokens(1, 58, FIRST, LAST)]),
}


@torch.inference_mode()
def by_published_code(folder: Path, weights: dict[str, Tensor], case: Case) -> Tensor:
    sys.path.insert(0, str(folder.resolve().parent))
    code = importlib.import_module(f"{folder.resolve().name}.modeling_chatglm")
    config = importlib.import_module(f"{folder.resolve().name}.configuration_chatglm").ChatGLMConfig(**CONFIG)
    config.torch_dtype = torch.float32
    config.num_hidden_layers, config.use_cache = CONFIG["num_layers"], False
    model = code.ChatGLMModel(config, empty_init=False).float().eval()
    own = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    del own["rotary_pos_emb.inv_freq"]
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    assert set(missing) <= {"rotary_pos_emb.inv_freq"}
    answer = model(input_ids=case["token_ids"][None], position_ids=case["positions"][None], return_dict=True)
    logits = model.output_layer(answer.last_hidden_state[:, 0])  # [rows, batch, hidden]
    return torch.log_softmax(logits.float(), dim=-1)


def main() -> None:
    models = {answer: reference(rope) for answer, rope in TURNED.items()}
    weights = published(models["logprobs"])
    tensors = named("weights", weights)
    for label, case in CASES.items():
        wanted = models if label == "long" else ("logprobs",)
        answers = {answer: logprobs(models[answer], case) for answer in wanted}
        for folder in map(Path, sys.argv[1:]):
            difference = (by_published_code(folder, weights, case) - answers["logprobs"]).abs().max().item()
            print(label, folder, "differs by at most", difference)
            assert difference < 1e-5
        tensors |= named(label, case | answers)
    written = greedy(
        lambda number: [GMASK, SOP, *tokens(number, 21, FIRST, LAST)],
        lay_out,
        lambda case: logprobs(models["logprobs"], case),
        range(FIRST, LAST + 1),
    )
    tensors |= named("greedy", written)
    save(__file__, "chatglm2.safetensors", tensors, config=CONFIG, rope_ratio={"positions": POSITIONS, "base": BASE})


if __name__ == "__main__":
    main()
