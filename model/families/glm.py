"""GLM v1: "GLM: General Language Model Pretraining with Autoregressive Blank Infilling" (arXiv 2103.10360).

Two learned position tables, pre-LayerNorm blocks, the tanh approximation of GELU (the port on the hub has the exact
one, which the published weights were not trained with), a head tied to the embedding.
"""

from typing import Any

from model.architecture import Architecture
from model.config import Config
from model.family import Family, Published
from model.layout import BlankLayout
from model.naming import Naming
from model.tokenizer import read_tokenizer


def architecture(
    num_layers: int,
    hidden_size: int,
    num_attention_heads: int,
    vocab_size: int,
    max_sequence_length: int,
    layernorm_epsilon: float = 1e-5,
) -> Architecture:
    """The architecture of a GLM v1 with these sizes, under the names of its config.json."""
    rows = max_sequence_length + 1
    return Architecture(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_attention_heads,
        head_dim=hidden_size // num_attention_heads,
        inner_hidden_size=4 * hidden_size,
        vocab_size=vocab_size,
        max_sequence_length=max_sequence_length,
        epsilon=layernorm_epsilon,
        position_rows=rows,
        block_rows=rows,
    )


def config(a: Architecture) -> dict[str, Any]:
    """The config.json of an architecture."""
    return {
        "model_type": "glm",
        "architectures": ["GLMModel"],
        "num_layers": a.num_layers,
        "hidden_size": a.hidden_size,
        "num_attention_heads": a.num_attention_heads,
        "vocab_size": a.vocab_size,
        "max_sequence_length": a.max_sequence_length,
        "layernorm_epsilon": a.epsilon,
    }


def _read(c: Config) -> Architecture:
    c.only("attention_scale", 1.0)
    c.only("block_position_encoding", True)
    c.only("relative_encoding", False)
    c.only("spell_length", None, 0)  # a trained encoder of prompts
    hidden_size, heads = c.whole("hidden_size"), c.whole("num_attention_heads")
    c.heads(hidden_size, heads)
    return architecture(
        c.whole("num_layers"),
        hidden_size,
        heads,
        c.whole("vocab_size"),
        c.whole("max_sequence_length"),
        c.number("layernorm_epsilon", 1e-5),
    )


def _recognises(c: Config) -> bool:
    # GLM-4's own port has the same model_type, and other fields.
    return c.get("model_type") == "glm" and "num_hidden_layers" not in c.fields


def _sizes(layers: int, width: int, heads: int, vocabulary: int, length: int) -> dict[str, Any]:
    return config(architecture(layers, width, heads, vocabulary, length))


# GLM v1: GLM model/modeling_glm.py; names begin with "model." in model/downstream.py, and with "glm." in the hub's port
# where a model has a head. Files hold classifiers' heads too (THUDM/GLM#178).
GLM_NAMING = Naming(
    {},
    prefixes=("glm.", "model."),
    unused=("dense.*", "out_proj.*", "pool_layer.*", "multichoice_head.*", "mlm_mapping.*"),
)

# GLM v1 in SwissArmyTransformer: sat/model/official/glm_model.py.
GLM_SAT_NAMING = Naming(
    {
        "word_embeddings": "transformer.word_embeddings",
        "transformer.block_position_embeddings": "mixins.block_position_embedding.block_position_embeddings",
    },
)

FAMILY = Family(
    name="glm",
    recognises=_recognises,
    architecture=_read,
    tokenizer=read_tokenizer,
    layout=BlankLayout(),
    strategies=("append", "reencode", "parallel"),
    namings=(GLM_NAMING, GLM_SAT_NAMING),
    published=Published(rank_naming=GLM_SAT_NAMING),
    presets={
        "glm-base": _sizes(12, 768, 12, 30592, 512),
        "glm-large": _sizes(24, 1024, 16, 30592, 512),
        "glm-1.25": _sizes(30, 1024, 16, 30592, 512),
        "glm-1.5": _sizes(30, 1152, 18, 30592, 512),
        "glm-roberta-large": _sizes(24, 1024, 16, 50304, 512),
        "glm-roberta-1.25": _sizes(24, 1152, 18, 50304, 1024),
        "glm-2b": _sizes(36, 2048, 32, 50304, 1024),
        "glm-10b": _sizes(48, 4096, 64, 50304, 1024),
        "glm-large-chinese": _sizes(24, 1024, 16, 50048, 1024),
        "glm-10b-chinese": _sizes(48, 4096, 64, 50048, 1024),
    },
)
