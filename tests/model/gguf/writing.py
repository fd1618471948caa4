"""GGUF files of tiny random models, written by gguf-py, and the same networks in transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor
from transformers import (
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from model.tokenizers.byte_level import byte_alphabet
from model.tokenizers.glm4 import _SPECIAL as SPECIAL

KINDS = dict(gguf.GGMLQuantizationType.__members__)
SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128, "rms_norm_eps": 1.5625e-07,
    "vocab_size": 288, "partial_rotary_factor": 0.5, "rope_theta": 20000.0, "pad_token_id": 0,
}  # fmt: skip
PAIRS = ("th", "he", "in", "er", "an")  # pieces behind the single bytes
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
}


CLASSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "glm4": (Glm4ForCausalLM, Glm4Config, {"attention_bias": False}),
    "chatglm": (GlmForCausalLM, GlmConfig, {"attention_bias": True}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"partial_rotary_factor": 1.0}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"partial_rotary_factor": 1.0}),
    "starcoder2": (
        Starcoder2ForCausalLM,
        Starcoder2Config,
        {"partial_rotary_factor": 1.0, "norm_epsilon": 1e-5, "tie_word_embeddings": False, "sliding_window": None},
    ),
}


@dataclass(frozen=True)
class Written:
    """A GGUF file, and transformers' network with the numbers that gguf-py finds in it."""

    path: Path
    reference: torch.nn.Module

    @torch.inference_mode()
    def logprobs(self, token_ids: Tensor) -> Tensor:
        """Of the tokens that follow [tokens], [tokens, vocab_size]."""
        return self.reference(token_ids[None]).logits[0].log_softmax(-1)


def write(
    path: Path, architecture: str = "glm4", kind: str = "Q4_0", sizes: dict[str, Any] | None = None, **others: str
) -> Written:
    """A file of an architecture whose matrices are of a kind; `others` has the kinds of those whose GGUF name begins
    with a word."""
    config: dict[str, Any] = SIZES | CLASSES[architecture][2] | (sizes or {})
    model = _random(architecture, config)
    writer = gguf.GGUFWriter(str(path), architecture)
    write_sizes(writer, architecture, config)
    write_tokenizer(writer, config["vocab_size"])
    rng = np.random.default_rng(0)
    state = model.state_dict()
    for name, tensor in state.items():
        own = gguf_name(name)
        wanted = next((k for part, k in others.items() if own.startswith(part)), kind)
        if tensor.dim() == 1:
            writer.add_tensor(own, tensor.numpy())
            continue
        paired = architecture == "llama" and ("attn_q" in own or "attn_k" in own)
        raw = encoded(pairs(tensor, config["head_dim"]) if paired else tensor, KINDS[wanted], rng)
        writer.add_tensor(own, raw, raw_dtype=KINDS[wanted])
        found = torch.from_numpy(np.array(dequantize(raw, KINDS[wanted])))
        state[name] = halves(found, config["head_dim"]) if paired else found
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(state)
    return Written(path, model)


def pairs(rows: Tensor, head_dim: int) -> Tensor:
    """Heads of halves [rows, inputs] → heads of pairs. Source: llama.cpp, conversion/llama.py (LlamaModel.permute)."""
    return rows.view(-1, 2, head_dim // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def halves(rows: Tensor, head_dim: int) -> Tensor:
    """Heads of pairs [rows, inputs] → heads of halves: the inverse of `pairs`."""
    return rows.view(-1, head_dim // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of transformers."""
    path, _, leaf = name.rpartition(".")
    if path.startswith("model.layers."):
        number, rest = path.removeprefix("model.layers.").split(".", 1)
        return f"blk.{number}.{NAMES[rest]}.{leaf}"
    return f"{NAMES[path]}.{leaf}"


def encoded(tensor: Tensor, kind: gguf.GGMLQuantizationType, rng: np.random.Generator) -> np.ndarray:
    """A matrix in a kind's bytes [rows, bytes]. The K kinds, which gguf-py cannot write, have random bytes and
    scales."""
    if not kind.name.endswith("_K"):
        return quantize(tensor.numpy(), kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (tensor.shape[0], tensor.shape[1] // block, size), dtype=np.uint8)
    for at, scale in ((208, 3e-5),) if kind.name == "Q6_K" else ((0, 2e-4), (2, 1e-3)):
        raw[..., at : at + 2] = (scale * rng.uniform(0.5, 1, (*raw.shape[:2], 1))).astype(np.float16).view(np.uint8)
    return raw.reshape(len(raw), -1)


def _random(architecture: str, config: dict[str, Any]) -> torch.nn.Module:
    model: torch.nn.Module = CLASSES[architecture][0](CLASSES[architecture][1](**config))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.1 * noise
    return model.eval().requires_grad_(False)


def write_sizes(writer: gguf.GGUFWriter, architecture: str, config: dict[str, Any]) -> None:
    """The sizes of a config of transformers, under llama.cpp's keys."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "norm_epsilon" in config:
        writer.add_layer_norm_eps(config["norm_epsilon"])
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(int(config["head_dim"] * config["partial_rotary_factor"]))
    writer.add_rope_freq_base(config["rope_theta"])
    if architecture != "chatglm":
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def write_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    """A byte for a piece and a few pairs, GLM-4's special tokens, and padding."""
    pieces = [*byte_alphabet(), *PAIRS]
    filled = size - len(pieces) - len(SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("glm4")
    writer.add_token_list([*pieces, *SPECIAL, *(f"[PAD{n}]" for n in range(filled))])
    writer.add_token_types([1] * len(pieces) + [3] * len(SPECIAL) + [5] * filled)
    writer.add_token_merges([f"{first} {second}" for first, second in map(list, PAIRS)])
    writer.add_eos_token_id(len(pieces))
