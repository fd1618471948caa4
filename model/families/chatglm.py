"""ChatGLM-6B, the first version: GLM with two-dimensional rotary positions and DeepNorm's residual.

It was trained to write behind a [gMASK] at a prompt's end. It accepts other masks, but was not trained with them.
"""

import math
from typing import Any

from model.architecture import Architecture, Rotary
from model.config import Config
from model.family import Family
from model.layout import BlankLayout
from model.naming import Naming
from model.tokenizers.ice import IcePieces

# The published code does not pass the number of layers to its blocks, so that every size uses 28.
ALPHA = math.sqrt(2 * 28)


def _read(c: Config) -> Architecture:
    hidden_size, heads = c.whole("hidden_size"), c.whole("num_attention_heads")
    head_dim = c.heads(hidden_size, heads)
    c.only("rotary_angles", "float16", "float32")
    c.only("position_encoding_2d", True, False)
    c.only("rope_scaling", None, {})
    c.only("pre_seq_len", None, 0)  # a prefix inside the folder; adapters have their own
    c.only("quantization_embeddings", False)
    return Architecture(
        num_layers=c.whole("num_layers"),
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        inner_hidden_size=c.whole("inner_hidden_size", 4 * hidden_size),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=c.whole("max_sequence_length"),
        epsilon=c.number("layernorm_epsilon", 1e-5),
        rotary=Rotary(
            head_dim, axes=2 if c.get("position_encoding_2d", True) else 1, angles=c.get("rotary_angles", "float16")
        ),
        residual="deep",
        alpha=ALPHA,
        qkv_rows="heads",
    )


def _recognises(c: Config) -> bool:
    # The later ChatGLMs and the first GLM-4 files share the model_type, with other fields.
    return c.get("model_type") == "chatglm" and "padded_vocab_size" not in c.fields


_CONFIG: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "num_layers": 28,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "inner_hidden_size": 16384,
    "vocab_size": 130528,
    "max_sequence_length": 2048,
    "layernorm_epsilon": 1e-5,
    "position_encoding_2d": True,
}

# ChatGLM-6B: its modeling_chatglm.py. SwissArmyTransformer's form (mixins.chatglm-final.lm_head) orders the rows of
# query_key_value differently, so this naming must not accept it.
CHATGLM_NAMING = Naming(
    {"word_embeddings": "transformer.word_embeddings"},
    unused=("*rotary_emb.inv_freq",),
)

FAMILY = Family(
    name="chatglm",
    recognises=_recognises,
    architecture=_read,
    tokenizer=IcePieces.read_chatglm,
    layout=BlankLayout(first=(), end="never"),
    strategies=("reencode", "append", "parallel"),
    namings=(CHATGLM_NAMING,),
    presets={"chatglm-6b": _CONFIG},
)
