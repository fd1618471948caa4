"""The division of tensors among model-parallel ranks (arXiv 1909.08053)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.architecture import Architecture
from quant.usage import UsageError


@dataclass(frozen=True, slots=True)
class Slice:
    """A rank's part of a tensor: `spans` (start, length) along `dim`, joined."""

    dim: int
    spans: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Length of all spans."""
        return sum(length for _, length in self.spans)

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor [...]: a view if there is one span, else a copy."""
        views = [tensor.narrow(self.dim, start, length) for start, length in self.spans]
        return views[0] if len(views) == 1 else torch.cat(views, self.dim)

    def within(self, start: int, length: int) -> "Slice":
        """The part of this slice between `start` and `start + length`, counted from `start`."""
        cut = [(max(s, start), min(s + n, start + length)) for s, n in self.spans]
        return Slice(self.dim, tuple((low - start, high - low) for low, high in cut if low < high))

    def stretch(self, start: int, length: int) -> "Slice":
        """The part of this slice with `length` of its own numbers from `start` on: a slice of the same tensor."""
        spans, begin = [], 0
        for first, own in self.spans:
            low, high = max(start, begin), min(start + length, begin + own)
            if low < high:
                spans.append((first + low - begin, high - low))
            begin += own
        return Slice(self.dim, tuple(spans))


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """The division of a tensor: along `dim` it has `sections` of these relative sizes, each divided evenly among ranks.

    A rank has its piece of every section. `heads` counts the heads of each section. A head is never split; if there are
    fewer heads than ranks, neighbouring ranks have the same head. A `ragged` tensor has one section, and its first
    pieces may be longer by one.
    """

    dim: int
    sections: tuple[int, ...] = (1,)
    heads: tuple[int, ...] = ()
    ragged: bool = False

    def part(self, length: int, rank: int, size: int) -> Slice:
        """The slice of one of `size` ranks, for a tensor with `length` along `dim`.

        Raises UsageError if the ranks do not divide a section or split a head.
        """
        if self.ragged:
            own, more = divmod(length, size)  # the first ranks have one more
            return Slice(self.dim, ((rank * own + min(rank, more), own + (rank < more)),))
        whole, begin, spans = sum(self.sections), 0, []
        for section, heads in zip(self.sections, self.heads or (0,) * len(self.sections), strict=True):
            rows = length // whole * section
            # Where heads are fewer than ranks, neighbouring ranks share one.
            pieces = heads if heads and size % heads == 0 else size
            if length % whole or rows % pieces or (heads and heads % pieces):
                raise UsageError(f"{self._described(length)} are not divisible by {size}")
            own = rows // pieces
            spans.append((begin + rank * pieces // size * own, own))
            begin += rows
        return Slice(self.dim, tuple(spans))

    def whole(self, lengths: list[int]) -> int:
        """The length along `dim` of the whole tensor, from the lengths of all ranks' parts."""
        if self.ragged or not self.heads:
            return sum(lengths)
        own = sum(max(heads // len(lengths), 1) for heads in self.heads)
        return lengths[0] // own * sum(self.heads)

    def _described(self, length: int) -> str:
        heads = f" and heads {self.heads}" if self.heads else ""
        return f"{length} along dimension {self.dim} in sections {self.sections}{heads}"


ShardSpecs = Callable[[str], ShardSpec | None]  # a tensor's name → its cut; None: every rank has the whole tensor


def cuts(qkv_sections: tuple[int, ...], ffn_sections: int, qkv_heads: tuple[int, ...] = ()) -> ShardSpecs:
    """The division of GLM's published model-parallel checkpoints (GLM change_mp.py, GLM-130B tools/convert_tp.py).

    `qkv_sections` are the sizes of the row sections of query_key_value (one if rows are grouped by head), `qkv_heads`
    the heads of each; `ffn_sections` is 2 for a gated MLP. A matrix with divided inputs has an undivided bias. The
    vocabulary is divided too, with the bias of a masked language model's head.
    """
    vocabulary = ShardSpec(0, ragged=True)
    rows = {
        "word_embeddings": vocabulary,
        "lm_head": vocabulary,
        "query_key_value": ShardSpec(0, qkv_sections, qkv_heads),
        "dense_h_to_4h": ShardSpec(0, (1,) * ffn_sections),
    }

    def cut(name: str) -> ShardSpec | None:
        path, _, leaf = name.rpartition(".")
        if path.endswith((".attention.dense", ".mlp.dense_4h_to_h")):
            return None if leaf == "bias" else ShardSpec(1)
        return vocabulary if name == "mlm_head.bias" else rows.get(path.rpartition(".")[2])

    return cut


def cuts_of(a: Architecture) -> ShardSpecs:
    """The division of a network's tensors."""
    return cuts(a.qkv_sections, 1 + a.gated, a.qkv_heads)


def shard(tensor: Tensor, cut: ShardSpec | None, rank: int, size: int) -> Tensor:
    """The part of a tensor [...] on one of `size` ranks: a view if the cut has one section, else a copy.

    Raises UsageError if the ranks do not divide the tensor.
    """
    return tensor if cut is None or size == 1 else cut.part(tensor.shape[cut.dim], rank, size).of(tensor)


def merge(shards: Iterable[Tensor], cut: ShardSpec | None, lengths: list[int]) -> Tensor:
    """The whole tensor [...] of its shards, in the order of ranks. `lengths` are the shards' lengths along the cut.

    It takes one shard after the other, so that an iterator of shards needs memory for one beside the result. Without a
    cut all shards are equal, and it returns the first.
    """
    merged, size = torch.empty(0), len(lengths)
    for rank, shard in enumerate(shards):
        if cut is None or size == 1:
            return shard
        if rank == 0:
            shape = list(shard.shape)
            shape[cut.dim] = cut.whole(lengths)
            merged = shard.new_empty(shape)
        part = cut.part(merged.shape[cut.dim], rank, size)
        pieces = torch.split(shard, [length for _, length in part.spans], cut.dim)
        for (start, length), values in zip(part.spans, pieces, strict=True):
            merged.narrow(cut.dim, start, length).copy_(values)
    return merged


def sources(wanted: Slice, cut: ShardSpec, lengths: list[int]) -> Iterator[tuple[int, Slice]]:
    """The places of a slice of a tensor in its shards, in the slice's order: pairs (rank, slice of that rank's
    shard)."""
    size, whole = len(lengths), cut.whole(lengths)
    held: list[tuple[int, int, int, int]] = []  # start and end in the tensor, rank, start in its shard
    for rank in range(size):
        begin = 0
        for start, length in cut.part(whole, rank, size).spans:
            held.append((start, start + length, rank, begin))
            begin += length
    for start, length in wanted.spans:
        position = start
        while position < start + length:
            low, high, rank, begin = next(h for h in held if h[0] <= position < h[1])
            end = min(high, start + length)
            yield rank, Slice(cut.dim, ((begin + position - low, end - position),))
            position = end
