"""StarCoder2 (arXiv 2402.19173): a causal model of code, trained to fill in the middle.

LayerNorm, biases everywhere, a plain MLP with the tanh approximation of GELU, grouped queries, rotary positions over
the whole head in halves.
"""

from typing import Any

import torch

from model.architecture import Architecture
from model.config import Config
from model.families.llama import before_window, head_dim, rotary
from model.family import Family, Published
from model.layout import FimLayout
from model.naming import Naming
from model.tokenizers.byte_pairs import read_byte_pairs

# A middle ends with the first; another file follows the second.
_ENDS = ("eos", "file_sep")


def _read(c: Config) -> Architecture:
    c.only("hidden_act", "gelu_pytorch_tanh")
    c.only("use_bias", True, False)
    c.only("tie_word_embeddings", True, False)
    c.only("per_layer_config", {})
    heads = c.whole("num_attention_heads")
    size = head_dim(c, heads)
    turns, length = rotary(c, size)
    if c.get("sliding_window") is not None:
        length = min(length, before_window(c))
    return Architecture(
        num_layers=c.whole("num_hidden_layers"),
        hidden_size=c.whole("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=c.whole("num_key_value_heads", 2),
        head_dim=size,
        inner_hidden_size=c.whole("intermediate_size"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=length,
        epsilon=c.number("norm_epsilon", 1e-5),
        rotary=turns,
        qkv_bias=c.get("use_bias", True),
        bias=c.get("use_bias", True),
        head="tied" if c.get("tie_word_embeddings", True) else "own",
        causal=True,
    )


def _config(sizes: tuple[int, int, int, int, int], base: float) -> dict[str, Any]:
    """`sizes` are layers, width, heads, heads of keys and values, and the MLP's width."""
    layers, width, heads, kv_heads, inner = sizes
    return {
        "model_type": "starcoder2",
        "architectures": ["Starcoder2ForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": 49152,
        "max_position_embeddings": 16384,
        "sliding_window": 4096,
        "norm_epsilon": 1e-5,
        "rope_theta": base,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
    }


# StarCoder2 in transformers: models/starcoder2.
STARCODER2_NAMING = Naming(
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
        "transformer.layers.{i}.mlp.dense_h_to_4h": "model.layers.{i}.mlp.c_fc",
        "transformer.layers.{i}.mlp.dense_4h_to_h": "model.layers.{i}.mlp.c_proj",
        "transformer.final_layernorm": "model.norm",
    },
    unused=("*rotary_emb.inv_freq",),
)

FAMILY = Family(
    name="starcoder2",
    recognises=lambda c: c.get("model_type") == "starcoder2",
    architecture=_read,
    tokenizer=lambda folder: read_byte_pairs(folder, _ENDS),
    layout=FimLayout(),
    strategies=("reencode", "parallel"),
    namings=(STARCODER2_NAMING,),
    published=Published(dtype=torch.bfloat16),
    presets={
        "starcoder2-3b": _config((30, 3072, 24, 2, 12288), 999999.4420358813),
        "starcoder2-7b": _config((32, 4608, 36, 4, 18432), 1000000.0),
        "starcoder2-15b": _config((40, 6144, 48, 4, 24576), 100000.0),
    },
)
