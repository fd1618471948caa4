"""ESM-2 (bioRxiv 2022.07.20.500902): a masked language model of proteins, with rotary positions and a token a residue.

ESM-1b (learned positions, a norm behind the embedding) has the same files and is read too.
"""

from typing import Any

import torch

from model.architecture import Architecture, Rotary
from model.config import CheckpointError, Config
from model.families.roberta import position_offset
from model.family import Family, Published
from model.layout import MaskedLayout
from model.naming import Naming
from model.tokenizers.esm import EsmResidues


def _read(c: Config) -> Architecture:
    c.only("position_embedding_type", "absolute", "rotary")
    # A decoder's tokens see only the tokens before them; it may also read an encoder's output.
    c.only("is_decoder", False)
    c.only("add_cross_attention", False)
    c.only("tie_word_embeddings", True)
    c.only("is_folding_model", False)
    for name in ("emb_layer_norm_before", "token_dropout"):
        c.only(name, False, True)
    c.only("per_layer_config", {})
    c.only("pruned_heads", {})
    hidden_size, heads = c.whole("hidden_size"), c.whole("num_attention_heads")
    head_dim = c.heads(hidden_size, heads)
    rows, rotary = c.whole("max_position_embeddings", 1026), None
    offset = 0
    if c.get("position_embedding_type", "absolute") == "rotary":
        if head_dim % 2:
            raise CheckpointError(f"{c.source}: a head of {head_dim} numbers has no pairs to rotate")
        rotary = Rotary(head_dim, c.number("rope_theta", 10000.0))
    else:
        offset = position_offset(c)
    if rows <= 2 or offset >= rows:
        raise CheckpointError(f"{c.source}: max_position_embeddings {rows} leaves no position for a text")
    return Architecture(
        num_layers=c.whole("num_hidden_layers"),
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        inner_hidden_size=c.whole("intermediate_size"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=rows - offset,
        epsilon=c.number("layer_norm_eps", 1e-12),
        position_rows=0 if rotary else rows,
        position_offset=offset,
        dropped_token=_mask(c) if c.get("token_dropout", False) else None,
        embedding_norm=c.get("emb_layer_norm_before", False),
        rotary=rotary,
        activation="gelu",
        head="masked_lm",
    )


def _mask(c: Config) -> int:
    value, count = c.get("mask_token_id"), c.whole("vocab_size")
    if value is None:
        raise CheckpointError(f"{c.source}: missing mask_token_id")
    if type(value) is not int or not 0 <= value < count:
        raise CheckpointError(f"{c.source}: mask_token_id must be an id of the vocabulary, not {value!r}")
    return value


def _config(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "esm",
        "architectures": ["EsmForMaskedLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": 33,
        "max_position_embeddings": 1026,
        "position_embedding_type": "rotary",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "mask_token_id": 32,
        "token_dropout": True,
        "emb_layer_norm_before": False,
    }


# ESM in transformers: models/esm. The head of contacts reads attention's weights and is not used.
ESM_NAMING = Naming(
    {
        "word_embeddings": "esm.embeddings.word_embeddings",
        "transformer.position_embeddings": "esm.embeddings.position_embeddings",
        "transformer.embedding_layernorm": "esm.embeddings.layer_norm",
        "transformer.layers.{i}.input_layernorm": "esm.encoder.layer.{i}.attention.LayerNorm",
        "transformer.layers.{i}.attention.query_key_value": (
            "esm.encoder.layer.{i}.attention.self.query",
            "esm.encoder.layer.{i}.attention.self.key",
            "esm.encoder.layer.{i}.attention.self.value",
        ),
        "transformer.layers.{i}.attention.dense": "esm.encoder.layer.{i}.attention.output.dense",
        "transformer.layers.{i}.post_attention_layernorm": "esm.encoder.layer.{i}.LayerNorm",
        "transformer.layers.{i}.mlp.dense_h_to_4h": "esm.encoder.layer.{i}.intermediate.dense",
        "transformer.layers.{i}.mlp.dense_4h_to_h": "esm.encoder.layer.{i}.output.dense",
        "transformer.final_layernorm": "esm.encoder.emb_layer_norm_after",
        "mlm_head.dense": "lm_head.dense",
        "mlm_head.layernorm": "lm_head.layer_norm",
        "mlm_head.decoder": "lm_head.decoder",
        "mlm_head": "lm_head",
    },
    prefixes=("esm.",),
    unused=("*rotary_embeddings.inv_freq", "embeddings.position_ids", "contact_head.*", "pooler.*", "classifier.*"),
    leaves={"gamma": "weight", "beta": "bias"},  # as transformers 5.24 saves them
)

FAMILY = Family(
    name="esm-2",
    recognises=lambda c: c.get("model_type") == "esm",
    architecture=_read,
    tokenizer=EsmResidues.read,
    layout=MaskedLayout(),
    strategies=("parallel", "reencode"),
    namings=(ESM_NAMING,),
    published=Published(dtype=torch.float32),
    presets={
        "esm2-8m": _config(6, 320, 20),
        "esm2-35m": _config(12, 480, 20),
        "esm2-150m": _config(30, 640, 20),
        "esm2-650m": _config(33, 1280, 20),
        "esm2-3b": _config(36, 2560, 40),
        "esm2-15b": _config(48, 5120, 40),
    },
)
