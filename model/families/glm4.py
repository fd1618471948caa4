"""GLM-4-9B, GLM-4-0414 and CodeGeeX4: causal models with grouped queries, RMSNorm and SwiGLU.

Files use two sets of names and two forms of config.json: the original's (ChatGLMModel) and transformers' own
(GlmForCausalLM, Glm4ForCausalLM). CodeGeeX4 fills blanks in code, between a prefix and a suffix.
"""

from typing import Any

import torch

from model.architecture import Architecture, Rotary
from model.config import CheckpointError, Config
from model.family import Family, Published
from model.layout import InfillLayout
from model.naming import Naming
from model.stretch import Turning
from model.tokenizers.glm4 import read_glm4


def _read(c: Config) -> Architecture:
    return original(c) if "padded_vocab_size" in c.fields else _transformers(c)


def original(c: Config) -> Architecture:
    """The architecture of an original ChatGLMModel folder: ChatGLM2's, ChatGLM3's, CodeGeeX2's or GLM-4's.

    Raises CheckpointError for missing sizes, and for choices that no published model makes.
    """
    c.only("rmsnorm", True)
    c.only("post_layer_norm", True)
    c.only("apply_residual_connection_post_layernorm", False)
    c.only("multi_query_attention", True)
    c.only("original_rope", True)
    c.only("rotary_percent", 0.5)
    c.only("interleaved_qkv", False)
    c.only("rope_scaling", None, {})  # the original's code does not read it
    c.only("pre_seq_len", None, 0)  # a prefix inside the folder; adapters have their own
    head_dim = c.whole("kv_channels", 128)
    return Architecture(
        num_layers=c.whole("num_layers"),
        hidden_size=c.whole("hidden_size"),
        num_attention_heads=c.whole("num_attention_heads"),
        num_key_value_heads=c.whole("multi_query_group_num"),
        head_dim=head_dim,
        inner_hidden_size=c.whole("ffn_hidden_size"),
        vocab_size=c.whole("padded_vocab_size"),
        max_sequence_length=c.whole("seq_length"),
        epsilon=c.number("layernorm_epsilon", 1e-5),
        rotary=Rotary(head_dim // 2, 10000.0 * c.number("rope_ratio", 1), interleaved=True),
        norm="rms",
        activation="swiglu",
        qkv_bias=bool(c.get("add_qkv_bias", False) or c.get("add_bias_linear", False)),
        bias=bool(c.get("add_bias_linear", False)),
        head="own",
        causal=True,
    )


def _transformers(c: Config) -> Architecture:
    c.only("hidden_act", "silu")
    c.only("tie_word_embeddings", False, True)
    c.only("attention_bias", True, False)
    c.only("per_layer_config", {})
    heads = c.whole("num_attention_heads")
    head_dim = c.whole("head_dim", 128)
    turning = Turning.read(c, share=0.5)
    size = int(head_dim * turning.share)
    if size < 2 or size % 2:
        raise CheckpointError(
            f"{c.source}: partial_rotary_factor turns {size} of a head's {head_dim} numbers, not pairs"
        )
    return Architecture(
        num_layers=c.whole("num_hidden_layers"),
        hidden_size=c.whole("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=c.whole("num_key_value_heads", 2),
        head_dim=head_dim,
        inner_hidden_size=c.whole("intermediate_size"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=turning.length,
        epsilon=c.number("rms_norm_eps", 1.5625e-7),
        rotary=Rotary(size, turning.base, interleaved=True, stretch=turning.stretch),
        norm="rms",
        residual="sandwich" if c.get("model_type") == "glm4" else "pre",
        activation="swiglu",
        qkv_bias=c.get("attention_bias", True),
        bias=False,
        head="tied" if c.get("tie_word_embeddings", False) else "own",
        causal=True,
    )


def is_chatglm2(c: Config) -> bool:
    """Whether an original config.json is ChatGLM2's, ChatGLM3's or CodeGeeX2's.

    It has GLM-4's fields. What tells it apart is the vocabulary: texts end with sentencepiece's </s>, whose id is 2.
    GLM-4's ends come behind 151,329 pieces.
    """
    if c.get("model_type") != "chatglm" or "padded_vocab_size" not in c.fields:
        return False
    ends = c.get("eos_token_id")
    if ends is None:
        return bool(c.get("padded_vocab_size") == CHATGLM2_ROWS)
    return 2 in (ends if isinstance(ends, list) else [ends])


def _recognises(c: Config) -> bool:
    kind = c.get("model_type")
    if kind == "chatglm":
        return "padded_vocab_size" in c.fields and not is_chatglm2(c)
    return kind == "glm4" or (kind == "glm" and "num_hidden_layers" in c.fields)


CHATGLM2_ROWS = 65024  # of the embedding

_CONFIG: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "num_layers": 40,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 128,
    "ffn_hidden_size": 13696,
    "padded_vocab_size": 151552,
    "seq_length": 131072,
    "layernorm_epsilon": 1.5625e-07,
    "rope_ratio": 500,
    "original_rope": True,
    "rmsnorm": True,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "post_layer_norm": True,
    "tie_word_embeddings": False,
}

# ChatGLM2 to GLM-4 as published first: their modeling_chatglm.py.
GLM4_NAMING = Naming(
    {
        "word_embeddings": "transformer.embedding.word_embeddings",
        "transformer.layers.{i}.input_layernorm": "transformer.encoder.layers.{i}.input_layernorm",
        "transformer.layers.{i}.attention.query_key_value": (
            "transformer.encoder.layers.{i}.self_attention.query_key_value"
        ),
        "transformer.layers.{i}.attention.dense": "transformer.encoder.layers.{i}.self_attention.dense",
        "transformer.layers.{i}.post_attention_layernorm": "transformer.encoder.layers.{i}.post_attention_layernorm",
        "transformer.layers.{i}.mlp.dense_h_to_4h": "transformer.encoder.layers.{i}.mlp.dense_h_to_4h",
        "transformer.layers.{i}.mlp.dense_4h_to_h": "transformer.encoder.layers.{i}.mlp.dense_4h_to_h",
        "transformer.final_layernorm": "transformer.encoder.final_layernorm",
        "lm_head": "transformer.output_layer",
    },
    unused=("*rotary_pos_emb.inv_freq",),
)

# GLM-4 in transformers: models/glm and models/glm4; the first half of gate_up_proj is the gate.
GLM4_HF_NAMING = Naming(
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
        "transformer.layers.{i}.post_self_attn_layernorm": "model.layers.{i}.post_self_attn_layernorm",
        "transformer.layers.{i}.post_mlp_layernorm": "model.layers.{i}.post_mlp_layernorm",
        "transformer.layers.{i}.mlp.dense_h_to_4h": "model.layers.{i}.mlp.gate_up_proj",
        "transformer.layers.{i}.mlp.dense_4h_to_h": "model.layers.{i}.mlp.down_proj",
        "transformer.final_layernorm": "model.norm",
    },
    unused=("*rotary_emb.inv_freq", "score.*"),
)

FAMILY = Family(
    name="glm-4",
    recognises=_recognises,
    architecture=_read,
    tokenizer=read_glm4,
    layout=InfillLayout(),
    strategies=("reencode", "parallel"),
    namings=(GLM4_NAMING, GLM4_HF_NAMING),
    published=Published(dtype=torch.bfloat16),
    presets={"glm-4-9b": _CONFIG, "codegeex4-9b": _CONFIG},
)
