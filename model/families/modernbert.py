"""ModernBERT (arXiv 2412.13663): rotary positions, GeGLU, norms before the branches, and windows of near tokens.

Two layers in three see only the near tokens.
"""

from typing import Any

import torch

from model.architecture import Architecture, Local, Rotary
from model.config import CheckpointError, Config
from model.family import Family, Published
from model.layout import MaskedLayout
from model.naming import Naming
from model.tokenizers.masked_bpe import read_masked_bpe

_FULL, _NEAR = "full_attention", "sliding_attention"
_BASES = {_FULL: ("global_rope_theta", 160000.0), _NEAR: ("local_rope_theta", 10000.0)}


def _read(c: Config) -> Architecture:
    c.only("hidden_activation", "gelu")
    c.only("classifier_activation", "gelu")
    c.only("position_embedding_type", "absolute", "rotary", "sans_pos")  # of early files; the code reads none
    c.only("decoder_bias", True)
    c.only("tie_word_embeddings", True)
    c.only("head_dim", None)
    c.only("per_layer_config", {})
    c.only("pruned_heads", {})
    for name in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"):
        c.only(name, False, True)
    hidden_size, heads = c.whole("hidden_size"), c.whole("num_attention_heads")
    head_dim = c.heads(hidden_size, heads)
    if head_dim % 2:
        raise CheckpointError(f"{c.source}: a head of {head_dim} numbers has no pairs to rotate")
    if c.get("attention_bias", False) != c.get("mlp_bias", False):
        raise CheckpointError(f"{c.source}: attention_bias and mlp_bias must be the same")
    layers = c.whole("num_hidden_layers")
    kinds = _kinds(c, layers)
    near = tuple(layer for layer, kind in enumerate(kinds) if kind == _NEAR)
    bias = c.get("attention_bias", False)
    return Architecture(
        num_layers=layers,
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        inner_hidden_size=c.whole("intermediate_size"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=c.whole("max_position_embeddings"),
        epsilon=c.number("norm_eps", 1e-5),
        embedding_norm=True,
        rotary=Rotary(head_dim, _base(c, _FULL)),
        # A window has the row's own token in its middle.
        local=Local(near, c.whole("local_attention", 128) // 2, Rotary(head_dim, _base(c, _NEAR))) if near else None,
        norm_bias=c.get("norm_bias", False),
        first_norm=False,
        activation="geglu_first",
        qkv_bias=bias,
        bias=bias,
        head="masked_lm",
        head_bias=c.get("classifier_bias", False),
    )


def _kinds(c: Config, layers: int) -> list[str]:
    """What each layer sees: `layer_types`, or every n-th layer all."""
    kinds = c.get("layer_types")
    if kinds is None:
        every = c.whole("global_attn_every_n_layers", 3)
        return [_NEAR if layer % every else _FULL for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_FULL, _NEAR) for kind in kinds):
        raise CheckpointError(f"{c.source}: layer_types must name {layers} layers, each {_FULL} or {_NEAR}")
    return kinds


def _base(c: Config, kind: str) -> float:
    """The base of a kind of layer's positions: `rope_parameters` (transformers 5) or the older fields."""
    c.only("rope_scaling", None, {})
    name, usual = _BASES[kind]
    given = c.get("rope_parameters", {})
    own = given.get(kind) if isinstance(given, dict) else given
    if not isinstance(given, dict) or set(given) - {_FULL, _NEAR} or not isinstance(own, dict | None):
        raise CheckpointError(f"{c.source}: rope_parameters must have an object for {_FULL} and {_NEAR}")
    rope = Config(own or {}, f"{c.source}: rope_parameters: {kind}")
    rope.only("rope_type", "default")
    rope.only("partial_rotary_factor", None, 1.0)
    base = rope.number("rope_theta", c.number(name, usual))
    if base <= 1:
        raise CheckpointError(f"{rope.source}: rope_theta must be above 1")
    return base


def _config(layers: int, width: int, heads: int, inner: int) -> dict[str, Any]:
    return {
        "model_type": "modernbert",
        "architectures": ["ModernBertForMaskedLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": 50368,
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    }


# ModernBERT in transformers: models/modernbert. The first half of Wi is the gate.
MODERNBERT_NAMING = Naming(
    {
        "word_embeddings": "model.embeddings.tok_embeddings",
        "transformer.embedding_layernorm": "model.embeddings.norm",
        "transformer.layers.{i}.input_layernorm": "model.layers.{i}.attn_norm",
        "transformer.layers.{i}.attention.query_key_value": "model.layers.{i}.attn.Wqkv",
        "transformer.layers.{i}.attention.dense": "model.layers.{i}.attn.Wo",
        "transformer.layers.{i}.post_attention_layernorm": "model.layers.{i}.mlp_norm",
        "transformer.layers.{i}.mlp.dense_h_to_4h": "model.layers.{i}.mlp.Wi",
        "transformer.layers.{i}.mlp.dense_4h_to_h": "model.layers.{i}.mlp.Wo",
        "transformer.final_layernorm": "model.final_norm",
        "mlm_head.dense": "head.dense",
        "mlm_head.layernorm": "head.norm",
        # One module's bias is its own, its weight a copy of the embedding.
        "mlm_head": "decoder",
    },
    prefixes=("model.",),
    unused=("classifier.*", "*rotary_emb.inv_freq", "qa_outputs.*"),
)

FAMILY = Family(
    name="modernbert",
    recognises=lambda c: c.get("model_type") == "modernbert",
    architecture=_read,
    tokenizer=read_masked_bpe,
    layout=MaskedLayout(),
    strategies=("parallel", "reencode"),
    namings=(MODERNBERT_NAMING,),
    published=Published(dtype=torch.float32),
    presets={"modernbert-base": _config(22, 768, 12, 1152), "modernbert-large": _config(28, 1024, 16, 2624)},
)
