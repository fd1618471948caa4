"""The card of a loaded model, for clients and for the checks of requests."""

import time
from collections.abc import Sequence

import torch

from engine.events import ModelCard
from engine.loading import Loaded
from model.checkpoint import matrices
from model.network import Network
from model.spelling import Spelling
from model.tokenizer import Tokenizer
from quant import cpu
from quant.linear import Embedding


def model_card(loaded: Loaded, tp: int, served_names: Sequence[str] = ()) -> ModelCard:
    """The card of a model that `tp` ranks serve, under `names`, or its own name if there are none."""
    checkpoint, longest = loaded.checkpoint, loaded.longest
    a, family, tokenizer, cache = (
        checkpoint.model.architecture,
        checkpoint.family,
        checkpoint.tokenizer,
        loaded.runner.cache,
    )
    name, *aliases = served_names or (checkpoint.name,)
    return ModelCard(
        name=name,
        aliases=aliases,
        family=family.name,
        quant=checkpoint.quant,
        quant_head=checkpoint.storage.head,
        origin=checkpoint.origin,
        tp=tp,
        masks=list(family.layout.masks(tokenizer)),
        max_context=longest,
        max_positions=longest + 1,
        max_span=longest,
        vocab_size=tokenizer.size,
        strategies=list(family.strategies),
        causal=a.causal,
        masked=a.masked,
        next_sentence=a.next_sentence,
        mask_token=tokenizer.names.get(tokenizer.special.get("mask", -1), "[MASK]"),
        special_tokens=_special_tokens(tokenizer),
        num_parameters=checkpoint.num_parameters,
        kernels="triton" if loaded.device == "cuda" else cpu.describe(),
        created=int(time.time()),
        kv_cache_type=cache.kind,
        kv_cache_tokens=loaded.num_blocks * cache.block_size,
        weight_bytes=_weight_bytes(checkpoint.model),
    )


def _weight_bytes(model: Network) -> int:
    """Bytes of the undivided network in its storage, from one rank's part."""
    blocks = next(module.scheme for _, module in matrices(model) if not isinstance(module, Embedding))
    with torch.device("meta"):
        whole = Network(model.architecture, blocks, model.dtype, model.word_embeddings.scheme)
    return sum(parameter.nbytes for parameter in whole.parameters())


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Special tokens by clients' names: bos is the start of a span or text, eos its end."""
    roles = {
        "bos": ("sop", "bos"),
        "eos": ("eop", "eos", "sep"),
        "pad": ("pad", "eos"),
        "unk": ("unk",),
        "cls": ("cls",),
    }
    spelling = Spelling(tokenizer)
    found = {}
    if tokenizer.ends:
        found["eos"] = spelling.name(tokenizer.ends[0])
    for name, candidates in roles.items():
        role = next((r for r in candidates if r in tokenizer.special), None)
        if role is not None:
            found.setdefault(name, spelling.name(tokenizer.special[role]))
    return found
