"""Every field of a config.json that changes numbers is honoured or refused by name.

The tables go through transformers' configurations field by field. A field that transformers adds makes a test fail.
"""

import dataclasses
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForPreTraining,
    CamembertConfig,
    CamembertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)
from transformers.modeling_rope_utils import RopeParameters

from model.architecture import Architecture
from model.config import CheckpointError, Config
from model.families import family_of


@dataclass(frozen=True, slots=True)
class Field:
    """A field, and a value other than its usual one: our network is another by it, refuses it, or both we and
    transformers compute the same."""

    kind: Literal["honoured", "refused", "neutral"]
    other: Any


def honoured(other: Any) -> Field:
    return Field("honoured", other)


def refused(other: Any) -> Field:
    return Field("refused", other)


def neutral(other: Any) -> Field:
    return Field("neutral", other)


# Of every model: how answers are wrapped, tasks that we have no heads of, and what only training needs.
SHARED = {
    "transformers_version": neutral("4.0.0"),
    "output_hidden_states": neutral(True),
    "return_dict": neutral(True),  # with False transformers' own GLM raises
    "dtype": neutral("float16"),  # weights have the dtype of their file
    "chunk_size_feed_forward": neutral(2),
    "is_encoder_decoder": neutral(True),
    "id2label": neutral({"0": "a", "1": "b"}),
    "label2id": neutral({"a": 0, "b": 1}),
    "problem_type": neutral("regression"),
    "initializer_range": neutral(0.5),
    "use_cache": neutral(False),
    "pad_token_id": neutral(3),
    "bos_token_id": neutral(1),
    "eos_token_id": neutral(2),  # our tokenizers know the end
}
# What is no field of the class: written by to_dict(), by transformers 4, or taken from any file.
BESIDE = {
    "_name_or_path": neutral("somewhere"),
    "output_attentions": neutral(True),
    "torch_dtype": neutral("float16"),
    "per_layer_config": refused({"0": {"num_attention_heads": 2}}),
}
GLM = {
    **SHARED,
    "architectures": neutral(["GlmModel"]),
    "vocab_size": honoured(64),
    "hidden_size": honoured(48),
    "intermediate_size": honoured(48),
    "num_hidden_layers": honoured(1),
    "num_attention_heads": honoured(2),
    "num_key_value_heads": honoured(4),
    "head_dim": honoured(16),
    "hidden_act": refused("gelu"),
    "attention_dropout": neutral(0.5),
    "max_position_embeddings": honoured(16),
    "rms_norm_eps": honoured(1e-3),
    "tie_word_embeddings": honoured(True),
    "rope_parameters": honoured({"rope_type": "linear", "factor": 2.0}),
    "attention_bias": honoured(False),
}
GLM_BESIDE = {
    **BESIDE,
    "model_type": honoured("glm4"),
    "rope_scaling": honoured({"type": "linear", "factor": 2.0}),
    "rope_theta": honoured(500.0),
    "partial_rotary_factor": honoured(1.0),
}
BERT = {
    **SHARED,
    "architectures": honoured(["BertForMaskedLM"]),  # without a next-sentence classifier
    "vocab_size": honoured(64),
    "hidden_size": honoured(48),
    "num_hidden_layers": honoured(1),
    "num_attention_heads": honoured(2),
    "intermediate_size": honoured(48),
    "hidden_act": refused("gelu_new"),
    "hidden_dropout_prob": neutral(0.5),
    "attention_probs_dropout_prob": neutral(0.5),
    "max_position_embeddings": honoured(16),
    "type_vocab_size": honoured(3),
    "layer_norm_eps": honoured(1e-3),
    "classifier_dropout": neutral(0.5),
    "is_decoder": refused(True),
    "add_cross_attention": refused(True),
    "tie_word_embeddings": refused(False),
}
BERT_BESIDE = {
    **BESIDE,
    "model_type": refused("electra"),
    "position_embedding_type": refused("relative_key"),
    "pruned_heads": refused({"0": [1]}),
}
LLAMA = {
    **SHARED,
    "architectures": neutral(["LlamaModel"]),
    "vocab_size": honoured(64),
    "hidden_size": honoured(48),
    "intermediate_size": honoured(48),
    "num_hidden_layers": honoured(1),
    "num_attention_heads": honoured(2),
    "num_key_value_heads": honoured(4),
    "head_dim": honoured(16),
    "hidden_act": refused("gelu"),
    "max_position_embeddings": honoured(16),
    "rms_norm_eps": honoured(1e-3),
    "pretraining_tp": neutral(2),
    "tie_word_embeddings": honoured(True),
    "rope_parameters": honoured({"rope_type": "linear", "factor": 2.0}),
    "attention_bias": honoured(True),
    "attention_dropout": neutral(0.5),
    "mlp_bias": honoured(True),
}
LLAMA_BESIDE = {
    **BESIDE,
    "model_type": honoured("qwen2"),
    "rope_scaling": honoured({"type": "linear", "factor": 2.0}),
    "rope_theta": honoured(500.0),
    "partial_rotary_factor": refused(0.5),
}
QWEN2 = {
    **{name: field for name, field in LLAMA.items() if name in GLM and name not in ("attention_bias", "head_dim")},
    "use_sliding_window": honoured(True),
    # Without use_sliding_window:
    "sliding_window": neutral(4),
    "max_window_layers": neutral(1),
    "layer_types": refused(["sliding_attention"] * 2),
}
STARCODER2 = {
    **{
        name: field
        for name, field in LLAMA.items()
        if name not in ("pretraining_tp", "attention_bias", "mlp_bias", "head_dim", "rms_norm_eps")
    },
    "norm_epsilon": honoured(1e-3),
    "tie_word_embeddings": honoured(False),
    "sliding_window": honoured(16),
    "residual_dropout": neutral(0.5),
    "embedding_dropout": neutral(0.5),
    "use_bias": honoured(False),
}
GPT2 = {
    **SHARED,
    "architectures": neutral(["GPT2Model"]),
    "vocab_size": honoured(64),
    "n_positions": honoured(24),
    "n_embd": honoured(48),
    "n_layer": honoured(1),
    "n_head": honoured(2),
    "n_inner": honoured(48),
    "activation_function": refused("gelu"),
    "resid_pdrop": neutral(0.5),
    "embd_pdrop": neutral(0.5),
    "attn_pdrop": neutral(0.5),
    "layer_norm_epsilon": honoured(1e-3),
    "summary_type": neutral("mean"),
    "summary_use_proj": neutral(False),
    "summary_activation": neutral("tanh"),
    "summary_proj_to_labels": neutral(False),
    "summary_first_dropout": neutral(0.5),
    "scale_attn_weights": refused(False),
    "scale_attn_by_inverse_layer_idx": refused(True),
    "reorder_and_upcast_attn": neutral(True),
    "add_cross_attention": refused(True),
    "tie_word_embeddings": refused(False),
}
ROBERTA = {
    **BERT,
    "architectures": neutral(["RobertaModel"]),
    "type_vocab_size": honoured(3),
    "pad_token_id": honoured(3),  # positions count on behind it
}
UNCACHED = {name: field for name, field in SHARED.items() if name != "use_cache"}
DISTILBERT = {
    **UNCACHED,
    "architectures": neutral(["DistilBertModel"]),
    "vocab_size": honoured(64),
    "max_position_embeddings": honoured(24),
    "sinusoidal_pos_embds": neutral(True),  # where the table of a network without a file begins
    "n_layers": honoured(1),
    "n_heads": honoured(2),
    "dim": honoured(48),
    "hidden_dim": honoured(48),
    "dropout": neutral(0.5),
    "attention_dropout": neutral(0.5),
    "activation": refused("relu"),
    "qa_dropout": neutral(0.5),
    "seq_classif_dropout": neutral(0.5),
    "tie_word_embeddings": refused(False),
}
ESM = {
    **SHARED,
    "architectures": neutral(["EsmModel"]),
    "vocab_size": honoured(64),
    "mask_token_id": honoured(31),
    "hidden_size": honoured(48),
    "num_hidden_layers": honoured(1),
    "num_attention_heads": honoured(2),
    "intermediate_size": honoured(48),
    "hidden_dropout_prob": neutral(0.5),
    "attention_probs_dropout_prob": neutral(0.5),
    "max_position_embeddings": honoured(24),
    "rope_theta": honoured(500.0),
    "layer_norm_eps": honoured(1e-3),
    "position_embedding_type": honoured("absolute"),
    "emb_layer_norm_before": honoured(True),
    "token_dropout": honoured(False),
    "is_folding_model": refused(True),
    "esmfold_config": neutral({"use_esm_attn_map": False}),
    "vocab_list": neutral(["L"]),
    "is_decoder": refused(True),
    "add_cross_attention": refused(True),
    "tie_word_embeddings": refused(False),
}
MODERNBERT = {
    **UNCACHED,
    "architectures": neutral(["ModernBertModel"]),
    "vocab_size": honoured(64),
    "hidden_size": honoured(48),
    "intermediate_size": honoured(48),
    "num_hidden_layers": honoured(1),
    "num_attention_heads": honoured(2),
    "hidden_activation": refused("gelu_new"),
    "max_position_embeddings": honoured(24),
    "initializer_cutoff_factor": neutral(1.0),
    "norm_eps": honoured(1e-3),
    "norm_bias": honoured(True),
    "cls_token_id": neutral(4),
    "sep_token_id": neutral(4),
    "attention_bias": refused(True),  # without mlp_bias
    "attention_dropout": neutral(0.5),
    "layer_types": honoured(["full_attention", "full_attention"]),
    "rope_parameters": honoured({"full_attention": {"rope_type": "default", "rope_theta": 500.0}}),
    "local_attention": honoured(4),
    "embedding_dropout": neutral(0.5),
    "mlp_bias": refused(True),
    "mlp_dropout": neutral(0.5),
    "decoder_bias": refused(False),
    "classifier_pooling": neutral("mean"),
    "classifier_dropout": neutral(0.5),
    "classifier_bias": honoured(True),
    "classifier_activation": refused("relu"),
    "deterministic_flash_attn": neutral(True),
    "sparse_prediction": neutral(True),
    "sparse_pred_ignore_index": neutral(-1),
    "tie_word_embeddings": refused(False),
}
MODERNBERT_BESIDE = {
    **BESIDE,
    "model_type": refused("electra"),
    "global_attn_every_n_layers": honoured(1),
    "global_rope_theta": honoured(500.0),
    "local_rope_theta": honoured(500.0),
    "rope_scaling": refused({"rope_type": "linear", "factor": 2.0}),
    "head_dim": refused(16),
    "reference_compile": neutral(True),
    "position_embedding_type": neutral("sans_pos"),
}
# A stretched GLM-4's; those of other kinds change nothing in transformers either.
ROPE = {
    "rope_theta": honoured(500.0),
    "rope_type": honoured("linear"),
    "partial_rotary_factor": honoured(1.0),
    "factor": honoured(2.0),
    "original_max_position_embeddings": honoured(12),
    "attention_factor": honoured(1.5),
    "beta_fast": honoured(1.2),
    "beta_slow": honoured(2.0),
    "mscale": honoured(0.7),
    "mscale_all_dim": honoured(0.5),
    "truncate": honoured(False),
    "short_factor": neutral([1.0] * 2),
    "long_factor": neutral([2.0] * 2),
    "low_freq_factor": neutral(1.0),
    "high_freq_factor": neutral(4.0),
    "mrope_section": neutral([4, 2, 2]),
}
SIZES = {
    "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 32,
    "max_position_embeddings": 32,
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "glm": {"model_type": "glm", **SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
    "glm4": {"model_type": "glm4", **SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
    "bert": {"model_type": "bert", **SIZES},
    "llama": {"model_type": "llama", **SIZES, "num_key_value_heads": 2},
    "qwen2": {
        "model_type": "qwen2",
        **SIZES,
        "num_key_value_heads": 2,
        "sliding_window": 24,
        "max_window_layers": 0,
    },
    "starcoder2": {"model_type": "starcoder2", **SIZES, "num_key_value_heads": 2},
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 32, "vocab_size": 32},
    "roberta": {"model_type": "roberta", **SIZES},
    "xlm-roberta": {"model_type": "xlm-roberta", **SIZES},
    "camembert": {"model_type": "camembert", **SIZES},
    "distilbert": {
        "model_type": "distilbert",
        "n_layers": 2,
        "dim": 32,
        "n_heads": 4,
        "hidden_dim": 40,
        "vocab_size": 32,
        "max_position_embeddings": 32,
    },
    "esm": {
        "model_type": "esm",
        **SIZES,
        "position_embedding_type": "rotary",
        "pad_token_id": 1,
        "mask_token_id": 30,
        "token_dropout": True,
    },
    "modernbert": {
        "model_type": "modernbert",
        **SIZES,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}
CLASSES: dict[str, tuple[Any, Any]] = {
    "glm": (GlmConfig, GlmForCausalLM),
    "glm4": (Glm4Config, Glm4ForCausalLM),
    "bert": (BertConfig, BertForPreTraining),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "starcoder2": (Starcoder2Config, Starcoder2ForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "roberta": (RobertaConfig, RobertaForMaskedLM),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaForMaskedLM),
    "camembert": (CamembertConfig, CamembertForMaskedLM),
    "distilbert": (DistilBertConfig, DistilBertForMaskedLM),
    "esm": (EsmConfig, EsmForMaskedLM),
    "modernbert": (ModernBertConfig, ModernBertForMaskedLM),
}
TABLES: dict[str, tuple[dict[str, Field], dict[str, Field]]] = {
    "glm": (GLM, GLM_BESIDE),
    "glm4": (GLM, GLM_BESIDE | {"model_type": honoured("glm")}),
    "bert": (BERT, BERT_BESIDE),
    "llama": (LLAMA, LLAMA_BESIDE),
    "qwen2": (QWEN2, LLAMA_BESIDE | {"model_type": honoured("llama"), "head_dim": honoured(16)}),
    "gpt2": (GPT2, BESIDE | {"model_type": refused("gpt_bigcode"), "n_ctx": neutral(64)}),
    "starcoder2": (STARCODER2, LLAMA_BESIDE | {"model_type": refused("starcoder"), "head_dim": honoured(16)}),
    "roberta": (ROBERTA, BERT_BESIDE),
    "xlm-roberta": (ROBERTA, BERT_BESIDE),
    "camembert": (ROBERTA, BERT_BESIDE),
    "distilbert": (DISTILBERT, {**BESIDE, "model_type": refused("electra"), "pruned_heads": refused({"0": [1]})}),
    "esm": (ESM, {**BESIDE, "model_type": refused("electra"), "pruned_heads": refused({"0": [1]})}),
    "modernbert": (MODERNBERT, MODERNBERT_BESIDE),
}
ENTRIES = [(name, field) for name, tables in TABLES.items() for table in tables for field in table]


def entry(name: str, field: str) -> Field:
    fields, beside = TABLES[name]
    return {**fields, **beside}[field]


def architecture(config: Mapping[str, Any]) -> Architecture:
    return family_of(Config(config)).architecture(Config(config))


def outcome(config: Mapping[str, Any]) -> Architecture | str:
    """The network, or why there is none."""
    try:
        return architecture(config)
    except CheckpointError as error:
        return str(error)


def logprobs(name: str, config: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Any]:
    """transformers' log-probabilities of a text, and the weights that it computed with."""
    config_class, model_class = CLASSES[name]
    torch.manual_seed(1)
    # transformers changes the dictionaries that it is given.
    own = deepcopy({key: value for key, value in config.items() if key != "model_type"})
    model = model_class(config_class(**own)).float().eval()
    if weights is not None:
        model.load_state_dict(weights)
    with torch.inference_mode():
        cache = {"use_cache": False} if name.startswith("glm") else {}
        logits = model(input_ids=torch.arange(3, 23)[None], **cache)[0]
    return torch.log_softmax(logits.float(), -1), model.state_dict()


@pytest.mark.parametrize("name", CLASSES)
def test_the_tables_know_every_field_of_transformers(name: str) -> None:
    config_class, _ = CLASSES[name]
    fields, beside = TABLES[name]
    assert {field.name for field in dataclasses.fields(config_class)} == set(fields)
    assert set(config_class().to_dict()) <= {*fields, *beside}


def test_the_table_of_rotary_positions_knows_every_field_of_transformers() -> None:
    assert set(RopeParameters.__annotations__) == set(ROPE)


@pytest.mark.parametrize(("name", "field"), ENTRIES)
def test_a_field_does_what_the_table_says(name: str, field: str) -> None:
    base, found = BASES[name], entry(name, field)
    changed = base | {field: found.other}
    if found.kind == "refused":
        with pytest.raises(CheckpointError, match=field):
            architecture(changed)
    elif found.kind == "honoured":
        assert architecture(changed) != architecture(base)
    else:
        assert architecture(changed) == architecture(base)
        plain, weights = logprobs(name, base)
        torch.testing.assert_close(logprobs(name, changed, weights)[0], plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "field"), [(n, f) for n, f in ENTRIES if f in TABLES[n][0]])
def test_a_field_that_is_left_out_is_transformers_default_or_missed(name: str, field: str) -> None:
    base = BASES[name]
    bare = {key: value for key, value in base.items() if key != field}
    # Some defaults are other fields' values.
    own = deepcopy({key: value for key, value in bare.items() if key != "model_type"})
    # As many layers as the default has, which are not the base's.
    default = None if field == "layer_types" else CLASSES[name][0](**own).to_dict().get(field)
    ours = outcome(bare)
    if isinstance(ours, str):
        assert "missing" in ours
    else:
        assert ours == architecture(bare if default is None else base | {field: default})


@pytest.mark.parametrize("field", ROPE)
@pytest.mark.parametrize("layout", ["rope_parameters", "rope_scaling"])
def test_a_field_of_rotary_positions_does_what_the_table_says(layout: str, field: str) -> None:
    rope = {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 3.0,
        "beta_slow": 0.5, "rope_theta": 50.0, "mscale": 1.0, "mscale_all_dim": 1.5,
    }  # fmt: skip
    wide = BASES["glm"] | {"head_dim": 32}  # pairs enough for a blend
    base, changed = wide | {layout: rope}, wide | {layout: rope | {field: ROPE[field].other}}
    plain, weights = logprobs("glm", base)
    theirs = logprobs("glm", changed, weights)[0]
    if ROPE[field].kind == "neutral":
        assert architecture(changed) == architecture(base)
        assert torch.equal(theirs, plain)
    else:
        assert architecture(changed) != architecture(base)
        assert not torch.equal(theirs, plain)


V1 = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 32, "max_sequence_length": 32}
ORIGINAL = {
    "model_type": "chatglm", "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 40,
    "padded_vocab_size": 32, "seq_length": 32, "multi_query_group_num": 2, "kv_channels": 8,
}  # fmt: skip
PROTEIN = {
    "model_type": "ProteinGLM", "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "kv_channels": 8,
    "ffn_hidden_size": 40, "padded_vocab_size": 64, "seq_length": 32, "is_causal": False,
}  # fmt: skip
OTHERS = {
    "glm": {"model_type": "glm", **V1},
    "chatglm": {"model_type": "chatglm", **V1},
    "glm-130b": {"model_type": "glm-130b", **V1, "inner_hidden_size": 40},
    "original": ORIGINAL,
    "chatglm2": ORIGINAL | {"eos_token_id": 2},
    "proteinglm": PROTEIN,
}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        # configuration_glm.py of GLM v1's port on the hub
        ("glm", "relative_encoding", True), ("glm", "block_position_encoding", False), ("glm", "spell_length", 8),
        ("glm", "attention_scale", 8.0),
        # configuration_chatglm.py of ChatGLM-6B
        ("chatglm", "pre_seq_len", 128), ("chatglm", "quantization_embeddings", True),
        ("chatglm", "rope_scaling", {"type": "linear"}), ("chatglm", "position_encoding_2d", "yes"),
        ("chatglm", "rotary_angles", "float64"),
        ("glm-130b", "rotary_angles", "float64"), ("glm-130b", "rope_scaling", {"type": "linear"}),
        # configuration_chatglm.py of GLM-4-9B
        ("original", "rmsnorm", False), ("original", "post_layer_norm", False),
        ("original", "multi_query_attention", False),
        ("original", "apply_residual_connection_post_layernorm", True), ("original", "original_rope", False),
        ("original", "pre_seq_len", 128), ("original", "rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("original", "interleaved_qkv", True), ("original", "rotary_percent", 1.0),
        # configuration_chatglm.py of ChatGLM2-6B, ChatGLM3-6B and CodeGeeX2-6B
        ("chatglm2", "rmsnorm", False), ("chatglm2", "post_layer_norm", False), ("chatglm2", "interleaved_qkv", True),
        ("chatglm2", "apply_residual_connection_post_layernorm", True), ("chatglm2", "multi_query_attention", False),
        ("chatglm2", "original_rope", False), ("chatglm2", "rotary_percent", 1.0), ("chatglm2", "pre_seq_len", 128),
        ("chatglm2", "rope_ratio", 16), ("chatglm2", "rope_scaling", {"type": "yarn", "factor": 4.0}),
        # configuration_proteinglm.py
        ("proteinglm", "deepnorm", False), ("proteinglm", "rmsnorm", True), ("proteinglm", "post_layer_norm", False),
        ("proteinglm", "glu_activation", "swiglu"), ("proteinglm", "add_bias_linear", False),
        ("proteinglm", "moe", True),
        ("proteinglm", "multi_query_attention", True), ("proteinglm", "rotary_embedding_2d", True),
        ("proteinglm", "untie_head", True), ("proteinglm", "rope_scaling", {"type": "yarn", "factor": 4.0}),
    ],
)  # fmt: skip
def test_what_the_original_s_configurations_can_say_is_refused_where_it_is_not_computed(
    name: str, field: str, value: Any
) -> None:
    architecture(OTHERS[name])
    with pytest.raises(CheckpointError, match=field):
        architecture(OTHERS[name] | {field: value})


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("chatglm2", "padded_vocab_size", 64), ("chatglm2", "multi_query_group_num", 4),
        ("chatglm2", "kv_channels", 16),
        ("chatglm2", "ffn_hidden_size", 48), ("chatglm2", "layernorm_epsilon", 1e-3), ("chatglm2", "seq_length", 16),
        ("chatglm2", "add_qkv_bias", True), ("chatglm2", "add_bias_linear", True),
        ("proteinglm", "padded_vocab_size", 128), ("proteinglm", "kv_channels", 16), ("proteinglm", "num_layers", 1),
        ("proteinglm", "ffn_hidden_size", 48), ("proteinglm", "layernorm_epsilon", 1e-3),
        ("proteinglm", "seq_length", 16),
        ("proteinglm", "is_causal", True),
    ],
)  # fmt: skip
def test_what_an_original_s_configuration_says_is_another_network(name: str, field: str, value: Any) -> None:
    assert architecture(OTHERS[name] | {field: value}) != architecture(OTHERS[name])


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        # dtypes and the order of a product, which change nothing in float32, and what training drops
        ("chatglm2", "fp32_residual_connection", True), ("chatglm2", "apply_query_key_layer_scaling", False),
        ("chatglm2", "attention_softmax_in_fp32", False), ("chatglm2", "hidden_dropout", 0.5),
        ("chatglm2", "attention_dropout", 0.5), ("chatglm2", "bias_dropout_fusion", False),
        ("proteinglm", "fp32_residual_connection", True), ("proteinglm", "apply_query_key_layer_scaling", False),
        ("proteinglm", "use_pytorch_sdpa", False), ("proteinglm", "attention_dropout", 0.5),
        # deepnorm sets it to true
        ("proteinglm", "apply_residual_connection_post_layernorm", False),
    ],
)  # fmt: skip
def test_what_changes_no_number_of_an_original_is_passed_over(name: str, field: str, value: Any) -> None:
    assert architecture(OTHERS[name] | {field: value}) == architecture(OTHERS[name])


@pytest.mark.parametrize(
    ("fields", "family"),
    [
        ({"eos_token_id": 2}, "chatglm2"), ({"eos_token_id": [2, 64795, 64797]}, "chatglm2"),
        ({"padded_vocab_size": 65024}, "chatglm2"), ({"eos_token_id": [151329, 151336, 151338]}, "glm-4"),
        ({"padded_vocab_size": 151552}, "glm-4"), ({"eos_token_id": 151329, "padded_vocab_size": 65024}, "glm-4"),
    ],
)  # fmt: skip
def test_chatglm2_and_glm_4_are_told_apart_by_how_texts_end(fields: dict[str, Any], family: str) -> None:
    assert family_of(Config(ORIGINAL | fields)).name == family


@pytest.mark.parametrize("kind", ["ProteinGLM", "ProteinPGLM", "xTrimoPGLM"])
@pytest.mark.parametrize(("causal", "family"), [(False, "proteinglm"), (True, "proteinglm-clm"), (None, "proteinglm")])
def test_proteinglm_has_had_three_names(kind: str, causal: bool | None, family: str) -> None:
    assert family_of(Config(PROTEIN | {"model_type": kind, "is_causal": causal})).name == family
