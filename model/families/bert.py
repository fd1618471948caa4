"""BERT (arXiv 1810.04805) with its pretraining heads: masked words and next-sentence prediction."""

from typing import Any

import torch

from model.architecture import Architecture
from model.config import Config
from model.family import Family, Published
from model.layout import MaskedLayout
from model.naming import Naming
from model.tokenizers.word_pieces import WordPieces


def _read(c: Config) -> Architecture:
    c.only("hidden_act", "gelu")
    c.only("position_embedding_type", "absolute")
    # A decoder's tokens see only the tokens before them; it may also read an encoder's output.
    c.only("is_decoder", False)
    c.only("add_cross_attention", False)
    c.only("tie_word_embeddings", True)
    c.only("pruned_heads", {})
    c.only("per_layer_config", {})
    hidden_size, heads = c.whole("hidden_size"), c.whole("num_attention_heads")
    length = c.whole("max_position_embeddings")
    return Architecture(
        num_layers=c.whole("num_hidden_layers"),
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=c.heads(hidden_size, heads),
        inner_hidden_size=c.whole("intermediate_size"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=length,
        epsilon=c.number("layer_norm_eps", 1e-12),
        position_rows=length,
        block_rows=c.whole("type_vocab_size", 2),
        embedding_norm=True,
        residual="post",
        activation="gelu",
        head="masked_lm",
        # Files with other heads lack the head of next-sentence prediction.
        next_sentence="BertForPreTraining" in c.get("architectures", ["BertForPreTraining"]),
    )


def _config(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": ["BertForPreTraining"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }


# BERT with its pretraining heads in transformers: models/bert. The first files, converted from TensorFlow, call the
# tensors of LayerNorm gamma and beta.
BERT_NAMING = Naming(
    {
        "word_embeddings": "bert.embeddings.word_embeddings",
        "transformer.position_embeddings": "bert.embeddings.position_embeddings",
        "transformer.block_position_embeddings": "bert.embeddings.token_type_embeddings",
        "transformer.embedding_layernorm": "bert.embeddings.LayerNorm",
        "transformer.layers.{i}.attention.query_key_value": (
            "bert.encoder.layer.{i}.attention.self.query",
            "bert.encoder.layer.{i}.attention.self.key",
            "bert.encoder.layer.{i}.attention.self.value",
        ),
        "transformer.layers.{i}.attention.dense": "bert.encoder.layer.{i}.attention.output.dense",
        "transformer.layers.{i}.input_layernorm": "bert.encoder.layer.{i}.attention.output.LayerNorm",
        "transformer.layers.{i}.mlp.dense_h_to_4h": "bert.encoder.layer.{i}.intermediate.dense",
        "transformer.layers.{i}.mlp.dense_4h_to_h": "bert.encoder.layer.{i}.output.dense",
        "transformer.layers.{i}.post_attention_layernorm": "bert.encoder.layer.{i}.output.LayerNorm",
        "mlm_head.dense": "cls.predictions.transform.dense",
        "mlm_head.layernorm": "cls.predictions.transform.LayerNorm",
        "mlm_head.decoder": "cls.predictions.decoder",
        "mlm_head": "cls.predictions",
        "pooler": "bert.pooler.dense",
        "next_sentence": "cls.seq_relationship",
    },
    prefixes=("bert.",),
    # The last three are AntiBERTy's.
    unused=("embeddings.position_ids", "classifier.*", "qa_outputs.*", "cls.species.*", "cls.chain.*", "cls.graft.*"),
    leaves={"gamma": "weight", "beta": "bias"},
)

FAMILY = Family(
    name="bert",
    recognises=lambda c: c.get("model_type") == "bert",
    architecture=_read,
    tokenizer=WordPieces.read,
    layout=MaskedLayout(),
    strategies=("parallel", "reencode"),
    namings=(BERT_NAMING,),
    published=Published(dtype=torch.float32),
    presets={"bert-base": _config(12, 768, 12), "bert-large": _config(24, 1024, 16)},
)
