"""Where tensors are divided among model-parallel ranks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cut:
    """Along `dim` a tensor consists of sections of these relative sizes, each of which is divided evenly.

    A rank's shard is its pieces of all sections, joined.
    """

    dim: int
    sections: tuple[int, ...] = (1,)


Cuts = Callable[[str], Cut | None]  # a tensor's name → its cut; None: every rank has the whole tensor


def cuts(qkv_sections: tuple[int, ...], ffn_sections: int) -> Cuts:
    """How GLM's published model-parallel checkpoints are divided (GLM change_mp.py, GLM-130B tools/convert_tp.py).

    `qkv_sections` are the sizes of the row sections of query_key_value, one where the rows go by head; `ffn_sections`
    is 2 for a gated MLP. Matrices whose inputs are divided have an undivided bias.
    """
    rows = {
        "word_embeddings": Cut(0),
        "lm_head": Cut(0),
        "query_key_value": Cut(0, qkv_sections),
        "dense_h_to_4h": Cut(0, (1,) * ffn_sections),
    }

    def cut(name: str) -> Cut | None:
        path, _, leaf = name.rpartition(".")
        if path.endswith((".attention.dense", ".mlp.dense_4h_to_h")):
            return None if leaf == "bias" else Cut(1)
        return rows.get(path.rpartition(".")[2])

    return cut


def shard(tensor: Tensor, cut: Cut | None, rank: int, size: int) -> Tensor:
    """The part of a tensor that one of `size` ranks holds: a view, unless there are several sections.

    Raises ValueError for a tensor that cannot be divided so.
    """
    own = pieces(tensor, cut, rank, size)
    return own[0] if cut is None or len(own) == 1 else torch.cat(own, cut.dim)


def merge(shards: Iterable[Tensor], cut: Cut | None, size: int) -> Tensor:
    """The tensor that `size` shards, in the order of their ranks, were cut from.

    Takes one shard after the other, so that an iterator that reads them needs memory for one beside the result.
    Without a cut all are the same, and the first is the result.
    """
    merged = torch.empty(0)
    for rank, part in enumerate(shards):
        if cut is None or size == 1:
            return part
        if rank == 0:
            shape = list(part.shape)
            shape[cut.dim] *= size
            merged = part.new_empty(shape)
        own = pieces(merged, cut, rank, size)
        for piece, values in zip(own, torch.split(part, [p.shape[cut.dim] for p in own], cut.dim), strict=True):
            piece.copy_(values)
    return merged


def pieces(tensor: Tensor, cut: Cut | None, rank: int, size: int) -> list[Tensor]:
    """Views of a rank's pieces of all sections. Raises ValueError for a tensor that cannot be divided so."""
    if cut is None or size == 1:
        return [tensor]
    length, whole = tensor.shape[cut.dim], sum(cut.sections)
    if length % whole or any(length // whole * section % size for section in cut.sections):
        raise ValueError(f"{length} along dimension {cut.dim} in sections {cut.sections} are not divided by {size}")
    found, start = [], 0
    for section in cut.sections:
        own = length // whole * section // size
        found.append(tensor.narrow(cut.dim, start + rank * own, own))
        start += size * own
    return found
