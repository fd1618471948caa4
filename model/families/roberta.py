"""RoBERTa (arXiv 1907.11692): BERT without token types and sentence pairs, in fairseq's ways of counting positions."""

from typing import Any

import torch

from model.architecture import Architecture
from model.config import CheckpointError, Config
from model.family import Family, Published
from model.layout import MaskedLayout
from model.naming import Naming
from model.tokenizers.masked_bpe import read_masked_bpe


def read_roberta(c: Config) -> Architecture:
    """The architecture of a config.json of RoBERTa, XLM-R or CamemBERT. Raises CheckpointError."""
    c.only("hidden_act", "gelu")
    c.only("position_embedding_type", "absolute")
    # A decoder's tokens see only the tokens before them; it may also read an encoder's output.
    c.only("is_decoder", False)
    c.only("add_cross_attention", False)
    c.only("tie_word_embeddings", True)
    c.only("pruned_heads", {})
    c.only("per_layer_config", {})
    hidden_size, heads = c.whole("hidden_size"), c.whole("num_attention_heads")
    rows, offset = c.whole("max_position_embeddings"), position_offset(c, 1)
    if offset >= rows:
        raise CheckpointError(f"{c.source}: max_position_embeddings {rows} leaves no position behind pad_token_id")
    return Architecture(
        num_layers=c.whole("num_hidden_layers"),
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=c.heads(hidden_size, heads),
        inner_hidden_size=c.whole("intermediate_size"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=rows - offset,
        epsilon=c.number("layer_norm_eps", 1e-12),
        position_rows=rows,
        position_offset=offset,
        block_rows=c.whole("type_vocab_size", 2),  # the first for all tokens
        embedding_norm=True,
        residual="post",
        activation="gelu",
        head="masked_lm",
    )


def position_offset(c: Config, pad: int | None = None) -> int:
    """The row of the first position: fairseq counts on from the padding's id. Raises CheckpointError for no such id."""
    value = c.get("pad_token_id", pad)
    if type(value) is not int or not 0 <= value < 2**31:
        raise CheckpointError(f"{c.source}: pad_token_id must be a token's id, not {value!r}")
    return value + 1


def config(model_type: str, layers: int, width: int, heads: int, vocabulary: int) -> dict[str, Any]:
    """The config.json of a published size."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": vocabulary,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "hidden_act": "gelu",
    }


# RoBERTa in transformers: models/roberta. XLM-R and CamemBERT have the same names.
ROBERTA_NAMING = Naming(
    {
        "word_embeddings": "roberta.embeddings.word_embeddings",
        "transformer.position_embeddings": "roberta.embeddings.position_embeddings",
        "transformer.block_position_embeddings": "roberta.embeddings.token_type_embeddings",
        "transformer.embedding_layernorm": "roberta.embeddings.LayerNorm",
        "transformer.layers.{i}.attention.query_key_value": (
            "roberta.encoder.layer.{i}.attention.self.query",
            "roberta.encoder.layer.{i}.attention.self.key",
            "roberta.encoder.layer.{i}.attention.self.value",
        ),
        "transformer.layers.{i}.attention.dense": "roberta.encoder.layer.{i}.attention.output.dense",
        "transformer.layers.{i}.input_layernorm": "roberta.encoder.layer.{i}.attention.output.LayerNorm",
        "transformer.layers.{i}.mlp.dense_h_to_4h": "roberta.encoder.layer.{i}.intermediate.dense",
        "transformer.layers.{i}.mlp.dense_4h_to_h": "roberta.encoder.layer.{i}.output.dense",
        "transformer.layers.{i}.post_attention_layernorm": "roberta.encoder.layer.{i}.output.LayerNorm",
        "mlm_head.dense": "lm_head.dense",
        "mlm_head.layernorm": "lm_head.layer_norm",
        "mlm_head.decoder": "lm_head.decoder",
        "mlm_head": "lm_head",
    },
    prefixes=("roberta.",),
    unused=("embeddings.position_ids", "pooler.*", "classifier.*", "qa_outputs.*"),
)

FAMILY = Family(
    name="roberta",
    recognises=lambda c: c.get("model_type") == "roberta",
    architecture=read_roberta,
    tokenizer=read_masked_bpe,
    layout=MaskedLayout(),
    strategies=("parallel", "reencode"),
    namings=(ROBERTA_NAMING,),
    published=Published(dtype=torch.float32),
    presets={
        "roberta-base": config("roberta", 12, 768, 12, 50265) | {"architectures": ["RobertaForMaskedLM"]},
        "roberta-large": config("roberta", 24, 1024, 16, 50265) | {"architectures": ["RobertaForMaskedLM"]},
    },
)
