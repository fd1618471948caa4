"""GLM-130B (arXiv 2210.02414): DeepNorm, GeGLU, rotary positions that stay at a [MASK] and count on behind a [gMASK].

Its folders have no config.json. The one that this family reads has the names of the original's arguments
(configs/model_glm_130b.sh).
"""

import math
from typing import Any

from model.architecture import Architecture, Rotary
from model.config import Config
from model.family import Family, Published
from model.layout import BlankLayout
from model.naming import Naming
from model.tokenizers.ice import IcePieces


def _read(c: Config) -> Architecture:
    hidden_size, heads, layers = c.whole("hidden_size"), c.whole("num_attention_heads"), c.whole("num_layers")
    head_dim = c.heads(hidden_size, heads)
    c.only("rotary_angles", "float16", "float32")
    c.only("rope_scaling", None, {})
    return Architecture(
        num_layers=layers,
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        inner_hidden_size=c.whole("inner_hidden_size"),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=c.whole("max_sequence_length", 2048),
        epsilon=c.number("layernorm_epsilon", 1e-5),
        rotary=Rotary(head_dim, angles=c.get("rotary_angles", "float16")),
        residual="deep",
        alpha=math.sqrt(2 * layers),
        activation="geglu",
        qkv_rows="heads",
    )


def _config(layers: int, width: int, heads: int, inner: int, vocabulary: int, length: int) -> dict[str, Any]:
    return {
        "model_type": "glm-130b",
        "num_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "inner_hidden_size": inner,
        "vocab_size": vocabulary,
        "max_sequence_length": length,
        "layernorm_epsilon": 1e-5,
        # SwissArmyTransformer 0.2, with which the model was published, computes angles so.
        "rotary_angles": "float16",
    }


# GLM-130B: SwissArmyTransformer 0.2, sat/model/official/glm130B_model.py.
GLM130B_NAMING = Naming(
    {"word_embeddings": "transformer.word_embeddings"},
    unused=("*rotary_emb.inv_freq",),
)

FAMILY = Family(
    name="glm-130b",
    recognises=lambda c: c.get("model_type") == "glm-130b",
    architecture=_read,
    tokenizer=IcePieces.read_glm130b,
    # generate.py appends </s> unless the text ends with a mask; evaluation/dataset.py never appends it.
    layout=BlankLayout(first=(), end="unless_mask", end_when_scored=False, counting=("[gMASK]",), blocks=False),
    strategies=("reencode", "append", "parallel"),
    namings=(GLM130B_NAMING,),
    published=Published("sat", rank_naming=GLM130B_NAMING),
    presets={"glm-130b": _config(70, 12288, 96, 32768, 150528, 2048)},
)
