"""Llama (arXiv 2307.09288): Code Llama and DeepSeek-Coder, causal models trained to fill in the middle.

RMSNorm, rotary positions over the whole head in halves, SwiGLU. The tokenizer tells which model it is: Code Llama's has
sentencepiece's pieces and `▁<PRE>`, DeepSeek-Coder's byte-level ones and `<｜fim▁begin｜>`. Other models of this
architecture continue texts.
"""

from pathlib import Path
from typing import Any

import torch

from model.architecture import Architecture, Rotary
from model.config import CheckpointError, Config
from model.family import Family, Published
from model.layout import FimLayout
from model.naming import Naming
from model.stretch import Turning
from model.tokenizer import Tokenizer
from model.tokenizers.byte_pairs import read_byte_pairs, read_llama_pieces

# Code Llama's <EOT> ends a middle. The others end the text; instruct models end their turns with the last three.
_ENDS = ("fim_end", "eos", "eot", "eot_id", "eom_id")


def head_dim(c: Config, heads: int) -> int:
    """Numbers per head: head_dim, or else hidden_size / num_attention_heads. Raises CheckpointError."""
    return c.whole("head_dim") if c.get("head_dim") is not None else c.heads(c.whole("hidden_size"), heads)


def rotary(c: Config, size: int) -> tuple[Rotary, int]:
    """Rotary positions of whole heads in halves, and the number of positions. Raises CheckpointError."""
    turning = Turning.read(c, share=1.0)
    if turning.share != 1:
        raise CheckpointError(f"{c.source}: partial_rotary_factor is {turning.share}, only 1.0 is supported")
    if size % 2:
        raise CheckpointError(f"{c.source}: a head has {size} numbers, which are no pairs")
    return Rotary(size, turning.base, stretch=turning.stretch), turning.length


def before_window(c: Config, default: int | None = None) -> int:
    """The longest text, in tokens, in which no row's `sliding_window` hides anything. Raises CheckpointError."""
    window = c.whole("sliding_window", default)
    if window < 2:
        raise CheckpointError(f"{c.source}: sliding_window must be at least 2 tokens, not {window}")
    return window - 1  # a row sees `window` tokens, itself included


def _read(c: Config) -> Architecture:
    c.only("hidden_act", "silu")
    for name, usual in (("attention_bias", False), ("mlp_bias", False), ("tie_word_embeddings", False)):
        c.only(name, usual, True)
    c.only("per_layer_config", {})
    heads = c.whole("num_attention_heads")
    size = head_dim(c, heads)
    turns, length = rotary(c, size)
    return Architecture(
        num_layers=c.whole("num_hidden_layers"),
        hidden_size=c.whole("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=c.whole("num_key_value_heads", heads),
        head_dim=size,
        inner_hidden_size=c.whole("intermediate_size"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=length,
        epsilon=c.number("rms_norm_eps", 1e-6),
        rotary=turns,
        norm="rms",
        activation="swiglu",
        qkv_bias=c.get("attention_bias", False),
        bias=c.get("attention_bias", False),
        mlp_bias=c.get("mlp_bias", False),
        head="tied" if c.get("tie_word_embeddings", False) else "own",
        causal=True,
    )


def _tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return read_byte_pairs(folder, _ENDS)
    return read_llama_pieces(folder, _ENDS)


def _config(sizes: tuple[int, int, int, int], vocabulary: int, base: float, **more: Any) -> dict[str, Any]:
    """`sizes` are layers, width, heads and the MLP's width."""
    layers, width, heads, inner = sizes
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "rope_theta": base,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **more,
    }


# Llama and Qwen2 in transformers: models/llama, models/qwen2.
LLAMA_NAMING = Naming(
    {
        "word_embeddings": "model.embed_tokens",
        "transformer.layers.{i}.input_layernorm": "model.layers.{i}.input_layernorm",
        "transformer.layers.{i}.attention.query_key_value": (
            "model.layers.{i}.self_attn.q_proj",
            "model.layers.{i}.self_attn.k_proj",
            "model.layers.{i}.self_attn.v_proj",
        ),
        "transformer.layers.{i}.attention.dense": "model.layers.{i}.self_attn.o_proj",
        "transformer.layers.{i}.post_attention_layernorm": "model.layers.{i}.post_attention_layernorm",
        "transformer.layers.{i}.mlp.dense_h_to_4h": ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"),
        "transformer.layers.{i}.mlp.dense_4h_to_h": "model.layers.{i}.mlp.down_proj",
        "transformer.final_layernorm": "model.norm",
    },
    unused=("*rotary_emb.inv_freq",),
)

_DEEPSEEK: dict[str, Any] = {"rms_norm_eps": 1e-6, "rope_scaling": {"type": "linear", "factor": 4.0}}
FAMILY = Family(
    name="llama",
    recognises=lambda c: c.get("model_type") == "llama",
    architecture=_read,
    tokenizer=_tokenizer,
    layout=FimLayout(),
    strategies=("reencode", "parallel"),
    namings=(LLAMA_NAMING,),
    published=Published(dtype=torch.bfloat16),
    presets={
        "codellama-7b": _config((32, 4096, 32, 11008), 32016, 1e6),
        "codellama-13b": _config((40, 5120, 40, 13824), 32016, 1e6),
        "deepseek-coder-1.3b": _config((24, 2048, 16, 5504), 32256, 1e5, **_DEEPSEEK),
        "deepseek-coder-6.7b": _config((32, 4096, 32, 11008), 32256, 1e5, **_DEEPSEEK),
    },
)
