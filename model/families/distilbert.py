"""DistilBERT (arXiv 1910.01108): BERT with half the layers, without token types and sentence pairs."""

from typing import Any

import torch

from model.architecture import Architecture
from model.config import Config
from model.family import Family, Published
from model.layout import MaskedLayout
from model.naming import Naming
from model.tokenizers.word_pieces import WordPieces


def _read(c: Config) -> Architecture:
    c.only("activation", "gelu")
    c.only("tie_word_embeddings", True)
    c.only("pruned_heads", {})
    c.only("per_layer_config", {})
    hidden_size, heads = c.whole("dim"), c.whole("n_heads")
    length = c.whole("max_position_embeddings")
    return Architecture(
        num_layers=c.whole("n_layers"),
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=c.heads(hidden_size, heads, "dim", "n_heads"),
        inner_hidden_size=c.whole("hidden_dim"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=length,
        epsilon=1e-12,  # in its code
        position_rows=length,
        embedding_norm=True,
        residual="post",
        activation="gelu",
        head="masked_lm",
    )


_CONFIG: dict[str, Any] = {
    "model_type": "distilbert",
    "architectures": ["DistilBertForMaskedLM"],
    "n_layers": 6,
    "dim": 768,
    "n_heads": 12,
    "hidden_dim": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "activation": "gelu",
}

# DistilBERT in transformers: models/distilbert.
DISTILBERT_NAMING = Naming(
    {
        "word_embeddings": "distilbert.embeddings.word_embeddings",
        "transformer.position_embeddings": "distilbert.embeddings.position_embeddings",
        "transformer.embedding_layernorm": "distilbert.embeddings.LayerNorm",
        "transformer.layers.{i}.attention.query_key_value": (
            "distilbert.transformer.layer.{i}.attention.q_lin",
            "distilbert.transformer.layer.{i}.attention.k_lin",
            "distilbert.transformer.layer.{i}.attention.v_lin",
        ),
        "transformer.layers.{i}.attention.dense": "distilbert.transformer.layer.{i}.attention.out_lin",
        "transformer.layers.{i}.input_layernorm": "distilbert.transformer.layer.{i}.sa_layer_norm",
        "transformer.layers.{i}.mlp.dense_h_to_4h": "distilbert.transformer.layer.{i}.ffn.lin1",
        "transformer.layers.{i}.mlp.dense_4h_to_h": "distilbert.transformer.layer.{i}.ffn.lin2",
        "transformer.layers.{i}.post_attention_layernorm": "distilbert.transformer.layer.{i}.output_layer_norm",
        "mlm_head.dense": "vocab_transform",
        "mlm_head.layernorm": "vocab_layer_norm",
        # One module's bias is its own, its weight a copy of the embedding.
        "mlm_head": "vocab_projector",
    },
    prefixes=("distilbert.",),
    unused=("pre_classifier.*", "classifier.*", "qa_outputs.*"),
)

FAMILY = Family(
    name="distilbert",
    recognises=lambda c: c.get("model_type") == "distilbert",
    architecture=_read,
    tokenizer=WordPieces.read,
    layout=MaskedLayout(),
    strategies=("parallel", "reencode"),
    namings=(DISTILBERT_NAMING,),
    published=Published(dtype=torch.float32),
    presets={"distilbert-base": _CONFIG},
)
