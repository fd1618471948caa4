"""Qwen2 and Qwen2.5-Coder (arXiv 2409.12186): causal models, of which the coders are trained to fill in the middle.

Llama's blocks with biases on queries, keys and values.
"""

from typing import Any

import torch

from model.architecture import Architecture
from model.config import CheckpointError, Config
from model.families.llama import LLAMA_NAMING, before_window, head_dim, rotary
from model.family import Family, Published
from model.layout import FimLayout
from model.tokenizers.byte_pairs import read_byte_pairs

# The ends on the card of Qwen2.5-Coder: a middle ends with the first, another file or a padding follows it.
_ENDS = ("eos", "fim_pad", "file_sep", "repo_name", "im_end")


def _read(c: Config) -> Architecture:
    c.only("hidden_act", "silu")
    c.only("tie_word_embeddings", False, True)
    c.only("per_layer_config", {})
    heads = c.whole("num_attention_heads")
    size = head_dim(c, heads)
    turns, length = rotary(c, size)
    if _has_window(c):
        length = min(length, before_window(c, 4096))
    return Architecture(
        num_layers=c.whole("num_hidden_layers"),
        hidden_size=c.whole("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=c.whole("num_key_value_heads", 32),
        head_dim=size,
        inner_hidden_size=c.whole("intermediate_size"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=length,
        epsilon=c.number("rms_norm_eps", 1e-6),
        rotary=turns,
        norm="rms",
        activation="swiglu",
        bias=False,
        head="tied" if c.get("tie_word_embeddings", False) else "own",
        causal=True,
    )


def _has_window(c: Config) -> bool:
    """Whether some layers have a sliding window. Raises CheckpointError."""
    c.only("use_sliding_window", False, True)
    if not c.get("use_sliding_window", False):
        c.only("layer_types", None, ["full_attention"] * c.whole("num_hidden_layers"))
        return False
    before_window(c, 4096)  # is checked even where no layer has it
    return _slides(c)


def _slides(c: Config) -> bool:
    """Whether a layer has the window: what layer_types says, else all layers from max_window_layers on."""
    kinds = c.get("layer_types")
    if kinds is None:
        first = c.get("max_window_layers", 28)
        if type(first) is not int or first < 0:
            raise CheckpointError(f"{c.source}: max_window_layers must be a number of layers, not {first!r}")
        return bool(first < c.whole("num_hidden_layers"))
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= {"full_attention", "sliding_attention"}:
        raise CheckpointError(f"{c.source}: layer_types has other kinds than full_attention and sliding_attention")
    return "sliding_attention" in kinds


def _config(sizes: tuple[int, int, int, int, int], vocabulary: int = 151936, tied: bool = False) -> dict[str, Any]:
    """`sizes` are layers, width, heads, heads of keys and values, and the MLP's width."""
    layers, width, heads, kv_heads, inner = sizes
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "tie_word_embeddings": tied,
    }


FAMILY = Family(
    name="qwen2",
    recognises=lambda c: c.get("model_type") == "qwen2",
    architecture=_read,
    tokenizer=lambda folder: read_byte_pairs(folder, _ENDS),
    layout=FimLayout(),
    strategies=("reencode", "parallel"),
    namings=(LLAMA_NAMING,),
    published=Published(dtype=torch.bfloat16),
    presets={
        "qwen2.5-coder-0.5b": _config((24, 896, 14, 2, 4864), tied=True),
        "qwen2.5-coder-1.5b": _config((28, 1536, 12, 2, 8960), tied=True),
        "qwen2.5-coder-3b": _config((36, 2048, 16, 2, 11008), tied=True),
        "qwen2.5-coder-7b": _config((28, 3584, 28, 4, 18944), 152064),
        "qwen2.5-coder-14b": _config((48, 5120, 40, 8, 13824), 152064),
        "qwen2.5-coder-32b": _config((64, 5120, 40, 8, 27648), 152064),
    },
)
