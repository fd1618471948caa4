"""ChatGLM2-6B, ChatGLM3-6B and CodeGeeX2-6B: GLM-4's architecture with a sentencepiece vocabulary.

They continue a text: [gMASK] stands at its end. CodeGeeX2 continues code the same way, and its language tag
(`# language: Python`) is plain text.
"""

from dataclasses import replace
from typing import Any, Literal

from model.architecture import Architecture, Rotary
from model.config import CheckpointError, Config
from model.families.glm4 import CHATGLM2_ROWS, GLM4_NAMING, is_chatglm2, original
from model.family import Family, Published
from model.layout import InfillLayout
from model.stretch import Stretch
from model.tokenizers.chatglm2 import ChatGLMPieces


def _read(c: Config) -> Architecture:
    a = original(c)
    ratio = c.number("rope_ratio", 1)
    if ratio == 1 or _scales(c, ratio) == "base":
        return a
    return replace(a, rotary=Rotary(a.head_dim // 2, interleaved=True, stretch=Stretch(ratio)))


def _scales(c: Config, ratio: float) -> Literal["positions", "base"]:
    """What `rope_ratio` scales. Raises CheckpointError for a config.json that does not say it.

    ChatGLM2-6B-32K divides positions by it (arXiv 2306.15595), ChatGLM3-6B-32K and -128K multiply the base of the
    angles. Both have the same fields, but for the name of the model that the file is of.
    """
    given, name = c.get("rope_ratio_scales"), str(c.get("_name_or_path", ""))
    for kind, model in (("positions", "chatglm2-6b"), ("base", "chatglm3-6b")):
        if given == kind or (given is None and model in name):
            return "positions" if kind == "positions" else "base"
    raise CheckpointError(
        f"{c.source}: rope_ratio {ratio:g} divides positions in ChatGLM2-6B-32K and multiplies the base of angles in "
        'ChatGLM3-6B-32K; the field rope_ratio_scales must say which, "positions" or "base"'
    )


def _config(length: int, **fields: Any) -> dict[str, Any]:
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "num_layers": 28,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "kv_channels": 128,
        "ffn_hidden_size": 13696,
        "padded_vocab_size": CHATGLM2_ROWS,
        "seq_length": length,
        "layernorm_epsilon": 1e-05,
        "original_rope": True,
        "rmsnorm": True,
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "post_layer_norm": True,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        **fields,
    }


FAMILY = Family(
    name="chatglm2",
    recognises=is_chatglm2,
    architecture=_read,
    tokenizer=ChatGLMPieces.read,
    layout=InfillLayout(),
    strategies=("reencode", "parallel"),
    namings=(GLM4_NAMING,),
    published=Published("bin"),
    presets={"chatglm2-6b": _config(32768), "chatglm3-6b": _config(32768), "codegeex2-6b": _config(8192)},
)
