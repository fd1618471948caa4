"""Names of published layouts."""

from collections.abc import Sequence

import pytest

from model.config import CheckpointError
from model.families.bert import BERT_NAMING
from model.families.chatglm import CHATGLM_NAMING
from model.families.glm import GLM_NAMING, GLM_SAT_NAMING
from model.families.glm4 import GLM4_HF_NAMING, GLM4_NAMING
from model.families.glm130b import GLM130B_NAMING
from model.naming import Naming, arranged

ALL = (GLM_NAMING, GLM_SAT_NAMING, GLM130B_NAMING, CHATGLM_NAMING, GLM4_NAMING, GLM4_HF_NAMING, BERT_NAMING)
GLM4 = (GLM4_NAMING, GLM4_HF_NAMING)
CANONICAL = (
    "word_embeddings.weight",
    "lm_head.weight",
    "transformer.position_embeddings.weight",
    "transformer.block_position_embeddings.weight",
    "transformer.embedding_layernorm.bias",
    "transformer.layers.11.input_layernorm.weight",
    "transformer.layers.11.attention.query_key_value.weight_scale",
    "transformer.layers.11.attention.dense.bias",
    "transformer.layers.11.post_self_attn_layernorm.weight",
    "transformer.layers.11.mlp.dense_h_to_4h.weight",
    "transformer.final_layernorm.weight",
    "mlm_head.bias",
    "mlm_head.dense.weight",
    "pooler.weight",
    "next_sentence.bias",
)


@pytest.mark.parametrize("naming", ALL)
def test_canonical_names_are_always_accepted(naming: Naming) -> None:
    assert arranged(CANONICAL, [naming]) == {name: (name,) for name in CANONICAL}


@pytest.mark.parametrize("naming", ALL)
def test_published_names_come_back(naming: Naming) -> None:
    published = {name: naming.published(name) for name in CANONICAL}
    assert arranged([name for parts in published.values() for name in parts], [naming]) == published


@pytest.mark.parametrize(
    ("namings", "published", "canonical"),
    [
        (
            [GLM_NAMING],
            "glm.transformer.layers.0.mlp.dense_h_to_4h.bias",
            "transformer.layers.0.mlp.dense_h_to_4h.bias",
        ),
        ([GLM_NAMING], "module.glm.word_embeddings.weight", "word_embeddings.weight"),
        (
            [GLM_NAMING, GLM_SAT_NAMING],
            "mixins.block_position_embedding.block_position_embeddings.weight",
            "transformer.block_position_embeddings.weight",
        ),
        ([GLM_NAMING, GLM_SAT_NAMING], "module.transformer.word_embeddings.weight", "word_embeddings.weight"),
        ([GLM130B_NAMING], "transformer.word_embeddings.weight", "word_embeddings.weight"),
        (
            [CHATGLM_NAMING],
            "transformer.layers.7.attention.dense.weight",
            "transformer.layers.7.attention.dense.weight",
        ),
        (GLM4, "transformer.embedding.word_embeddings.weight", "word_embeddings.weight"),
        (GLM4, "transformer.output_layer.weight", "lm_head.weight"),
        (
            GLM4,
            "transformer.encoder.layers.39.self_attention.query_key_value.bias",
            "transformer.layers.39.attention.query_key_value.bias",
        ),
        (GLM4, "model.norm.weight", "transformer.final_layernorm.weight"),
        (GLM4, "model.layers.2.mlp.gate_up_proj.weight", "transformer.layers.2.mlp.dense_h_to_4h.weight"),
        (
            [BERT_NAMING],
            "bert.encoder.layer.10.attention.output.LayerNorm.gamma",
            "transformer.layers.10.input_layernorm.weight",
        ),
        ([BERT_NAMING], "encoder.layer.0.output.LayerNorm.beta", "transformer.layers.0.post_attention_layernorm.bias"),
        ([BERT_NAMING], "cls.predictions.bias", "mlm_head.bias"),
        ([BERT_NAMING], "bert.pooler.dense.weight", "pooler.weight"),
    ],
)
def test_published_names(namings: Sequence[Naming], published: str, canonical: str) -> None:
    assert arranged([published], namings) == {canonical: (published,)}


def test_queries_keys_and_values_are_joined_in_this_order() -> None:
    path = "bert.encoder.layer.3.attention.self"
    names = [f"{path}.{part}.bias" for part in ("value", "query", "key")]
    (parts,) = arranged(names, [BERT_NAMING]).values()
    assert parts == (f"{path}.query.bias", f"{path}.key.bias", f"{path}.value.bias")


@pytest.mark.parametrize(
    ("naming", "name"),
    [
        (GLM_NAMING, "dense.weight"),
        (GLM_NAMING, "out_proj.bias"),
        (GLM_NAMING, "multichoice_head.weight"),
        (GLM130B_NAMING, "transformer.layers.3.attention.rotary_emb.inv_freq"),
        (CHATGLM_NAMING, "transformer.layers.3.attention.rotary_emb.inv_freq"),
        (GLM4_NAMING, "transformer.rotary_pos_emb.inv_freq"),
        (BERT_NAMING, "bert.embeddings.position_ids"),
        (BERT_NAMING, "cls.species.weight"),
    ],
)
def test_tensors_of_no_use_are_left_out(naming: Naming, name: str) -> None:
    assert arranged([name], [naming]) == {}


@pytest.mark.parametrize(
    "name",
    [
        "transformer.prefix_encoder.embedding.weight",  # the model would answer otherwise without it
        "mixins.chatglm-final.lm_head.weight",  # rows of query_key_value are in another order there
        "extra",
    ],
)
def test_what_no_layout_names_keeps_its_name(name: str) -> None:
    assert arranged([name], [CHATGLM_NAMING]) == {name: (name,)}


def test_a_tensor_that_comes_twice_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^word_embeddings.weight is also there as glm.word_embeddings.weight$"):
        arranged(["word_embeddings.weight", "glm.word_embeddings.weight"], [GLM_NAMING])


def test_a_whole_beside_its_parts_is_refused() -> None:
    whole = "transformer.layers.0.attention.query_key_value.weight"
    with pytest.raises(CheckpointError, match="is also there as"):
        arranged([whole, "model.layers.0.self_attn.k_proj.weight"], GLM4)


def test_a_part_that_is_missing_is_refused() -> None:
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qv"]
    with pytest.raises(CheckpointError, match=r"without the other parts of .*query_key_value.weight$"):
        arranged(names, GLM4)
