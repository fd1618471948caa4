"""Prefixes: P-tuning v2 as ChatGLM-6B's training writes it, and peft's prefix tuning.

Both hold the keys and values of all layers for each token of the prefix: [tokens, layers, 2, kv_heads, head_dim]
(chatglm-6b modeling_chatglm.py, PrefixEncoder and get_prompt; peft 0.21 peft_model.py, get_prompt). A P-tuning v2
prefix may be the output of a small network, which is computed once here.
"""

import torch
from torch import Tensor

from model.adapters.adapter import Adapter, Prefix
from model.adapters.files import Tensors
from model.adapters.target import AdapterTarget, put
from model.config import CheckpointError, Config
from model.sharding import ShardSpec

MAX_TOKENS = 4096
_ENCODER = "prefix_encoder."


def is_p_tuning(tensors: Tensors) -> bool:
    """Whether tensors are a prefix encoder of P-tuning v2, by their names."""
    return any(_ENCODER in name for name in tensors.names)


def read_p_tuning(config: Config | None, tensors: Tensors, target: AdapterTarget) -> Adapter:
    """A prefix of P-tuning v2, from a table [tokens, layers × 2 × kv_heads × head_dim] or its small network.

    It does not shift the positions of a text. Raises CheckpointError for a prefix that does not fit the base.
    """
    found = {name.partition(_ENCODER)[2]: name for name in tensors.names if _ENCODER in name}
    known = {"embedding.weight", "trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias"}
    if "embedding.weight" not in found or found.keys() - known or len(found) not in (1, 5):
        raise CheckpointError(f"{tensors.source}: holds {', '.join(sorted(found))}: no prefix encoder of P-tuning v2")
    own = {leaf: tensors.read(name).float() for leaf, name in found.items()}
    table = own["embedding.weight"]
    length = config.get("pre_seq_len") if config is not None else None
    if length is not None and (table.dim() != 2 or length != len(table)):
        raise CheckpointError(f"{tensors.source}: a prefix of {list(table.shape)}, config.json says {length} tokens")
    if len(own) > 1:
        try:
            hidden = torch.tanh(torch.nn.functional.linear(table, own["trans.0.weight"], own["trans.0.bias"]))
            table = torch.nn.functional.linear(hidden, own["trans.2.weight"], own["trans.2.bias"])
        except RuntimeError:
            raise CheckpointError(f"{tensors.source}: the shapes of the prefix encoder do not fit together") from None
    return Adapter(prefix=_prefix(tensors.source, table, target, shifts=False))


def read_prefix_tuning(config: Config, tensors: Tensors, target: AdapterTarget) -> Adapter:
    """A prefix of peft, from `prompt_embeddings` [tokens, layers × 2 × kv_heads × head_dim].

    In a causal model transformers counts its tokens among the positions, so it shifts them. Raises CheckpointError for
    a prefix that does not fit the base.
    """
    heads, layers = target.architecture.num_key_value_heads, target.architecture.num_layers
    for field, wanted in (("num_attention_heads", heads), ("num_layers", layers)):
        if (given := config.get(field, wanted)) != wanted:
            raise CheckpointError(f"{config.source}: {field} is {given!r}, this model has {wanted}")
    config.only("num_transformer_submodules", 1, None)
    config.only("modules_to_save", None, [])
    if [*tensors.names] != ["prompt_embeddings"]:
        raise CheckpointError(f"{tensors.source}: must hold prompt_embeddings and nothing else")
    table = tensors.read("prompt_embeddings").float()
    length = config.get("num_virtual_tokens", len(table))
    if length != len(table):
        raise CheckpointError(f"{tensors.source}: a prefix of {len(table)} tokens, {config.source} says {length}")
    return Adapter(prefix=_prefix(tensors.source, table, target, shifts=target.architecture.causal))


def _prefix(source: str, table: Tensor, target: AdapterTarget, shifts: bool) -> Prefix:
    """The keys and values of this rank's heads, of a table [tokens, layers · 2 · kv_heads · head_dim]."""
    a = target.architecture
    if a.local is not None:
        raise CheckpointError(f"{source}: a prefix is seen by all tokens; in layers of this model tokens see near ones")
    width = a.num_layers * 2 * a.num_key_value_heads * a.head_dim
    if table.dim() != 2 or not 1 <= len(table) <= MAX_TOKENS or table.shape[1] != width:
        raise CheckpointError(
            f"{source}: a prefix is {list(table.shape)}, this model needs [1 … {MAX_TOKENS}, {width}]"
        )
    if not bool(torch.isfinite(table).all()):
        raise CheckpointError(f"{source}: the prefix holds NaN or infinity")
    both = table.view(len(table), a.num_layers, 2, a.num_key_value_heads, a.head_dim).permute(2, 1, 0, 3, 4)
    if target.ranks.size > 1:
        cut = ShardSpec(3, heads=(a.num_key_value_heads,))
        both = target.own(cut, a.num_key_value_heads).of(both)
    keys, values = (put(x, target.model) for x in both)
    return Prefix(keys, values, len(table) if shifts else 0)
