"""The slice of each checkpoint tensor that one rank reads."""

from collections.abc import Mapping
from dataclasses import dataclass

from model.config import CheckpointError
from model.parallel import ALONE, Ranks
from model.sharding import ShardSpecs, Slice
from quant.scheme import ReduceMax, Scheme, identity
from quant.usage import UsageError


@dataclass(frozen=True, slots=True)
class RankSlice:
    """The slices of one rank. By tensor name, `cuts` has its division and `shapes` its shape in the whole float
    network."""

    ranks: Ranks
    cuts: ShardSpecs
    shapes: Mapping[str, tuple[int, ...]]

    def part(self, name: str) -> Slice | None:
        """This rank's slice of a float tensor; None for all of it. Raises CheckpointError if the ranks do not divide
        it."""
        cut = self.cuts(name)
        if cut is None or self.ranks.size == 1:
            return None
        try:
            return cut.part(self.shapes[name][cut.dim], self.ranks.rank, self.ranks.size)
        except UsageError as error:
            raise CheckpointError(f"{name}: {error}") from None

    def stored(self, name: str, leaf: str, scheme: Scheme) -> Slice | None:
        """This rank's slice of a stored tensor `leaf` of a matrix; None for all of it.

        Raises CheckpointError for a cut through a group.
        """
        part = self.part(name)
        if part is None:
            return None
        try:
            found = [scheme.narrow(leaf, part.dim, *span) for span in part.spans]
        except UsageError as error:
            raise CheckpointError(f"{name}: {error}, with {self.ranks.size} ranks") from None
        cuts = [cut for cut in found if cut is not None]
        return Slice(cuts[0][0], tuple((start, length) for _, start, length in cuts)) if cuts else None

    def reduce_max(self, name: str) -> ReduceMax:
        """The maximum by which ranks agree on the scales of whole rows, if they divide the inputs of the matrix."""
        cut = self.cuts(name)
        return self.ranks.all_reduce_max if cut is not None and cut.dim == 1 else identity


WHOLE = RankSlice(ALONE, lambda name: None, {})
