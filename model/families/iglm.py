"""IgLM (Shuai et al., Cell Systems 2023): antibody sequences with one span left out, by GPT-2's blocks.

`[HEAVY][HUMAN]prefix[MASK]suffix[SEP]span[CLS]`: a causal model reads both sides, then writes the span. Learned
positions, LayerNorm before each branch, the tanh approximation of GELU, a head tied to the embedding.
"""

from typing import Any

import torch

from model.architecture import Architecture
from model.config import CheckpointError, Config
from model.family import Family, Published
from model.layout import FimLayout
from model.naming import Naming
from model.tokenizers.antibodies import Antibodies


def _read(c: Config) -> Architecture:
    c.only("activation_function", "gelu_new")
    c.only("scale_attn_weights", True)
    c.only("scale_attn_by_inverse_layer_idx", False)
    c.only("add_cross_attention", False)
    c.only("tie_word_embeddings", True)
    c.only("per_layer_config", {})
    width, heads, rows = c.whole("n_embd"), c.whole("n_head"), c.whole("n_positions")
    if width % heads:
        raise CheckpointError(f"{c.source}: n_embd {width} is not a multiple of n_head {heads}")
    if rows < 2:
        raise CheckpointError(f"{c.source}: n_positions must be at least 2, not {rows}")
    return Architecture(
        num_layers=c.whole("n_layer"),
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        inner_hidden_size=c.whole("n_inner", 4 * width),
        vocab_size=c.whole("vocab_size"),
        max_sequence_length=rows - 1,  # and the start token of a blank
        epsilon=c.number("layer_norm_epsilon", 1e-5),
        position_rows=rows,
        causal=True,
    )


def _config(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": layers,
        "n_embd": width,
        "n_head": heads,
        "n_inner": 4 * width,
        "n_positions": 512,
        "vocab_size": 33,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    }


# GPT-2 in transformers: models/gpt2. Its Conv1D has a row for each input.
GPT2_NAMING = Naming(
    {
        "word_embeddings": "transformer.wte",
        "transformer.position_embeddings": "transformer.wpe",
        "transformer.layers.{i}.input_layernorm": "transformer.h.{i}.ln_1",
        "transformer.layers.{i}.attention.query_key_value": "transformer.h.{i}.attn.c_attn",
        "transformer.layers.{i}.attention.dense": "transformer.h.{i}.attn.c_proj",
        "transformer.layers.{i}.post_attention_layernorm": "transformer.h.{i}.ln_2",
        "transformer.layers.{i}.mlp.dense_h_to_4h": "transformer.h.{i}.mlp.c_fc",
        "transformer.layers.{i}.mlp.dense_4h_to_h": "transformer.h.{i}.mlp.c_proj",
        "transformer.final_layernorm": "transformer.ln_f",
    },
    # The causal mask, which old files hold.
    unused=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
    turned=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
)

FAMILY = Family(
    name="iglm",
    recognises=lambda c: c.get("model_type") == "gpt2",
    architecture=_read,
    tokenizer=Antibodies.read,
    layout=FimLayout(("prefix", "mask", "suffix", "sep"), end="cls", open_end="sep"),
    strategies=("reencode", "parallel"),
    namings=(GPT2_NAMING,),
    published=Published("bin", dtype=torch.float32),
    presets={"iglm": _config(4, 512, 8), "iglm-s": _config(3, 192, 6)},
)
