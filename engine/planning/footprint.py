"""The footprint of one rank: bytes on its device, bytes that a step reads, and multiply-accumulates.

It counts the rank's own network, built on `meta`, which allocates nothing. All layers behind the first are alike, so
it builds two layers and multiplies.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from engine.planning.deployment import Deployment
from engine.planning.workspace import workspace
from model.attention import KVCache
from model.checkpoint import check_sizes, compute_dtype
from model.network import Block, Network
from model.parallel import Ranks
from quant.cache_tensor import kept_dtype
from quant.linear import Weight

# Bytes of a process without any tensor. On a CPU, torch imported: 230 MB measured, and the rest of the
# program. On a GPU, the driver's context, the libraries' kernels and workspaces, NCCL's buffers: not measured here.
PROCESS_BYTES = {"cpu": 0.3e9, "cuda": 0.6e9}
# Share of a device's memory that is lost: rounding to pages and to the allocator's blocks, holes between them, and the
# driver's own part (1.3 % of an RTX 3090's memory, 2.2 % of an RTX 2080 Ti's).
LOST_SHARE = 0.03


@dataclass(frozen=True, slots=True)
class Footprint:
    """The footprint of one rank, in bytes, and in multiply-accumulates per row.

    `step_bytes` are the weights that every step reads, whatever its rows. `layer_macs` are those of all layers,
    `head_macs` those of a row with logits, `score_macs` those of attention to one token, in all layers.
    """

    weights_bytes: int
    step_bytes: int
    layer_macs: int
    head_macs: int
    score_macs: int
    kv_bytes_per_token: int
    workspace_bytes: int
    reserve_bytes: int


def footprint(deployment: Deployment, rank: int) -> Footprint:
    """Counts a deployment's rank.

    Raises UsageError or CheckpointError, in one line, if the ranks do not divide the model or the scheme cannot hold
    it.
    """
    d, a, kind = deployment, deployment.architecture, deployment.devices[rank].kind
    network = _network(d, rank)
    block = network.transformer.layers[-1]
    assert isinstance(block, Block)
    head: list[nn.Module] = [network.lm_head] if a.head == "own" else [network.word_embeddings]
    head += [network.mlm_head] if a.head == "masked_lm" else []
    weights = _bytes(network, kind) + (a.num_layers - len(network.transformer.layers)) * _bytes(block, kind)
    # Tables of which a row is read, and what is read for pairs of sentences only.
    tables: list[nn.Module] = [network.word_embeddings] if a.head == "own" else []
    tables += [m for n, m in network.named_modules() if n.endswith("position_embeddings")]
    tables += [network.pooler, network.next_sentence] if a.next_sentence else []
    attention = block.attention
    return Footprint(
        weights_bytes=weights,
        step_bytes=weights - sum(_bytes(table, kind) for table in tables),
        layer_macs=a.num_layers * _macs(block),
        head_macs=sum(map(_macs, head)),
        score_macs=a.num_layers * attention.heads * a.head_dim * 2,
        kv_bytes_per_token=KVCache.bytes_per_token(
            a.num_layers, attention.kv_heads, a.head_dim, kept_dtype(d.kv_cache_type, compute_dtype(kind))
        ),
        workspace_bytes=workspace(d, rank, network).num_bytes,
        reserve_bytes=round(PROCESS_BYTES[kind] + LOST_SHARE * d.devices[rank].memory_bytes),
    )


def _network(d: Deployment, rank: int) -> Network:
    """The rank's network, as a loaded one is built, with two layers: ModernBERT's first one lacks a norm."""
    a, kind = replace(d.architecture, num_layers=min(d.architecture.num_layers, 2)), d.devices[rank].kind
    dtype, ranks = compute_dtype(kind), Ranks(rank, d.ranks)
    scheme, head = d.schemes(kind)
    with torch.device("meta"):
        check_sizes(Network(a, ranks=ranks), scheme, head, d.ranks)
        return Network(a, scheme, dtype, head, ranks)


def _bytes(module: nn.Module, kind: str) -> int:
    """Bytes of a module's loaded tensors."""
    total = 0
    for part in module.modules():
        stored = part.packed() if isinstance(part, Weight) else {}
        if isinstance(part, Weight):
            total += part.scheme.packed_bytes(part.out_features, part.in_features, kind)
        total += sum(p.nbytes for name, p in part.named_parameters(recurse=False) if name not in stored)
    return total


def _macs(module: nn.Module) -> int:
    return sum(m.in_features * m.out_features for m in module.modules() if isinstance(m, Weight))
