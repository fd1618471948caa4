"""The tensors of model-parallel ranks, read as undivided ones, or in slices for other ranks."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.config import CheckpointError
from model.sharding import ShardSpec, ShardSpecs, Slice, merge, sources
from model.source import Source
from quant.scheme import Stored
from quant.usage import UsageError


class Ranked:
    """The tensors of several ranks, merged on reading; a slice reads only the ranks that it lies in.

    Take a quantized matrix with divided inputs. If `scales_of_all`, its scales of whole rows are the same on every
    rank. If not, each rank has scales of its own, and the merged scales are [outputs, ranks].
    """

    def __init__(self, listing: Path, ranks: Sequence[Source], cuts: ShardSpecs, scales_of_all: bool = False) -> None:
        """`cuts` knows the names in the files. Raises CheckpointError for ranks that do not agree."""
        self.listing = listing
        self._ranks = ranks
        self._cuts: dict[str, ShardSpec | None] = {}
        self.entries: Stored = {}
        first = ranks[0]
        for rank in ranks[1:]:
            for name in first.entries.keys() ^ rank.entries.keys():
                raise CheckpointError(f"{rank.listing}: does not hold the same tensors as {first.listing.name}: {name}")
        for name, (shape, dtype) in first.entries.items():
            cut = cuts(name)
            if scales_of_all and cut is not None and cut.dim >= len(shape):
                cut = None
            for rank in ranks[1:]:
                if not _alike(rank.entries[name], (shape, dtype), cut):
                    other, kind = rank.entries[name]
                    raise CheckpointError(
                        f"{rank.listing}: {name} is {list(other)} {kind}, in {first.listing.name} {list(shape)} {dtype}"
                    )
            if cut is not None and cut.dim >= len(shape):
                shape = (*shape, self.size) if self.size > 1 else shape
            elif cut is not None:
                whole = self._whole(name, cut)
                shape = tuple(whole if dim == cut.dim else n for dim, n in enumerate(shape))
            self.entries[name], self._cuts[name] = (shape, dtype), cut

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self._ranks)

    @property
    def files(self) -> list[Path]:
        return [path for rank in self._ranks for path in rank.files]

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        cut = self._cuts[name]
        if cut is None or self.size == 1:
            return self._ranks[0].read(name, part)
        if cut.dim >= len(self._ranks[0].entries[name][0]):
            stacked = torch.stack([rank.read(name) for rank in self._ranks], dim=-1)
            return stacked if part is None else part.of(stacked)
        lengths = self._lengths(name, cut)
        if part is None or part.dim != cut.dim:
            merged = merge((rank.read(name) for rank in self._ranks), cut, lengths)
            return merged if part is None else part.of(merged)
        pieces = [self._ranks[rank].read(name, own) for rank, own in sources(part, cut, lengths)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, cut.dim)

    def _whole(self, name: str, cut: ShardSpec) -> int:
        """The length of the undivided tensor. Raises CheckpointError where the ranks' are no parts of one."""
        lengths = self._lengths(name, cut)
        whole = cut.whole(lengths)
        try:
            parts = [cut.part(whole, rank, self.size).length for rank in range(self.size)]
        except UsageError as error:
            raise CheckpointError(f"{self.listing}: {name}: {error}") from None
        if parts != lengths:
            raise CheckpointError(
                f"{self.listing}: {name}: ranks have {lengths} along dimension {cut.dim}, not {parts}"
            )
        return whole

    def _lengths(self, name: str, cut: ShardSpec) -> list[int]:
        return [rank.entries[name][0][cut.dim] for rank in self._ranks]


def _alike(
    entry: tuple[tuple[int, ...], torch.dtype], first: tuple[tuple[int, ...], torch.dtype], cut: ShardSpec | None
) -> bool:
    """Whether two ranks' tensors can be of one: the last ranks of a ragged one may have less."""
    (shape, dtype), (other, kind) = entry, first
    if cut is None or not cut.ragged:
        return entry == first
    rest = [n for dim, n in enumerate(shape) if dim != cut.dim]
    return (rest, dtype, len(shape)) == ([n for dim, n in enumerate(other) if dim != cut.dim], kind, len(other))
