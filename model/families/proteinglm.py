"""ProteinGLM, also called xTrimoPGLM (arXiv 2401.06199), of masked proteins (`-mlm`).

GLM-130B's blocks read a protein in both directions: residues, and <eos> behind them. Each [MASK] is one residue.
"""

import math
from typing import Any

import torch

from model.architecture import Architecture, Rotary
from model.config import Config
from model.family import Family, Published
from model.layout import MaskedLayout
from model.naming import Naming
from model.tokenizers.residues import Residues

# Of the published files, in the order of their revisions.
MODEL_TYPES = ("xTrimoPGLM", "ProteinPGLM", "ProteinGLM")


def architecture(c: Config) -> Architecture:
    """The architecture of a masked or causal model. Raises CheckpointError for missing sizes and for choices that no
    served model makes."""
    c.only("deepnorm", True)
    c.only("rmsnorm", False)
    c.only("post_layer_norm", True)
    c.only("glu_activation", "geglu")
    c.only("add_bias_linear", True)
    c.only("multi_query_attention", False)
    c.only("rotary_embedding_2d", False)  # the 100B model's
    c.only("moe", False)
    c.only("untie_head", False)
    c.only("rope_scaling", None, {})
    layers, heads = c.whole("num_layers"), c.whole("num_attention_heads")
    head_dim, causal = c.whole("kv_channels"), bool(c.get("is_causal", False))
    return Architecture(
        num_layers=layers,
        hidden_size=c.whole("hidden_size"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        inner_hidden_size=c.whole("ffn_hidden_size"),
        vocab_size=c.whole("padded_vocab_size", 128),
        max_sequence_length=c.whole("seq_length", 2048),
        epsilon=c.number("layernorm_epsilon", 1e-5),
        # Angles are in the dtype of the file, which is float32.
        rotary=Rotary(head_dim),
        residual="deep",
        alpha=math.sqrt(2 * layers),
        activation="geglu",
        qkv_rows="heads",
        head="own",
        causal=causal,
        in_place=not causal,
    )


def config(layers: int, width: int, heads: int, inner: int, causal: bool) -> dict[str, Any]:
    """The config.json of a published size."""
    return {
        "model_type": "ProteinGLM",
        "architectures": ["ProteinGLMModel"],
        "num_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "kv_channels": width // heads,
        "ffn_hidden_size": inner,
        "padded_vocab_size": 128,
        "seq_length": 2048,
        "layernorm_epsilon": 1e-05,
        "deepnorm": True,
        "apply_residual_connection_post_layernorm": True,
        "glu_activation": "geglu",
        "rmsnorm": False,
        "post_layer_norm": True,
        "add_bias_linear": True,
        "add_qkv_bias": True,
        "multi_query_attention": False,
        "rotary_embedding_2d": False,
        "is_causal": causal,
        "untie_head": False,
        "moe": False,
    }


# Its modeling_proteinglm.py (modeling_xtrimopglm.py before).
PROTEINGLM_NAMING = Naming(
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
    unused=("*rotary_emb.inv_freq",),
)

FAMILY = Family(
    name="proteinglm",
    recognises=lambda c: c.get("model_type") in MODEL_TYPES and not c.get("is_causal", False),
    architecture=architecture,
    tokenizer=Residues.read_masked,
    layout=MaskedLayout(first=(), last=("eos",)),
    strategies=("parallel", "reencode"),
    namings=(PROTEINGLM_NAMING,),
    published=Published(dtype=torch.float32),
    presets={
        "proteinglm-1b-mlm": config(24, 2048, 32, 5461, causal=False),
        "proteinglm-3b-mlm": config(36, 2560, 40, 6832, causal=False),
        "proteinglm-10b-mlm": config(47, 4352, 32, 11606, causal=False),
    },
)
