"""The rows of known texts as a tree: those with which several paths begin are computed once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic, TypeVar

from engine.schedule.batch import Scored
from engine.schedule.sequence import Sequence

Place = tuple[int, int, int]  # token, position, block position
P = TypeVar("P", bound="Path")


@dataclass(slots=True, eq=False)
class Path:
    """Rows over a context, and the target of each (−1: none). `found` has the results of the targets, in their order.

    A `whole` path's rows see each other, so that it shares none.
    """

    context: tuple[int, ...]
    rows: list[Place] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    whole: bool = False
    found: list[Scored] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Branch(Generic[P]):
    """The rows from `start` to `end`, which all these paths have; behind them each ends or goes into another branch."""

    paths: list[P]
    start: int
    end: int

    def extend(self, sequence: Sequence) -> None:
        """Pushes the rows on a sequence with those before them, and asks for all their targets."""
        first, last = self.paths[0], self.end - 1
        for row in first.rows[self.start : self.end]:
            sequence.push(*row)
        sequence.output = "scores"
        sequence.targets = [*[-1] * self.start, *first.targets[self.start : last], *self._last_targets]

    def take(self, result: list[Scored | None]) -> None:
        """Gives the paths their parts of the sequence's result. It may begin with rows before these."""
        lasts = self._last_targets
        known = result[len(result) - (self.end - 1 - self.start) - len(lasts) :]
        inner = [scored for scored in known[: len(known) - len(lasts)] if scored is not None]
        ends = dict(zip(lasts, known[len(known) - len(lasts) :], strict=True))
        for path in self.paths:
            path.found += inner
            if (scored := ends[path.targets[self.end - 1]]) is not None:
                path.found.append(scored)

    @property
    def ended(self) -> list[P]:
        """The paths that end with these rows."""
        return [path for path in self.paths if len(path.rows) == self.end]

    def children(self) -> list["Branch[P]"]:
        """The branches behind these rows."""
        return list(_branches([path for path in self.paths if len(path.rows) > self.end], self.end))

    @property
    def _last_targets(self) -> list[int]:
        return list(dict.fromkeys(path.targets[self.end - 1] for path in self.paths))


def roots(paths: Iterable[P]) -> list[Branch[P]]:
    """The first branches of all paths, those of the same context beside each other."""
    alone: list[Branch[P]] = []
    shared: dict[tuple[int, ...], list[P]] = {}
    for path in paths:
        if path.whole:
            alone.append(Branch([path], 0, len(path.rows)))
        else:
            shared.setdefault(path.context, []).append(path)
    for group in shared.values():
        alone += _branches(sorted(group, key=lambda path: path.rows), 0)
    return alone


def _branches(paths: list[P], start: int) -> Iterator[Branch[P]]:
    """The branches of sorted paths from a row on, which all of them have."""
    for _, group in groupby(paths, key=lambda path: path.rows[start]):
        own = list(group)
        # They are sorted: what the first and the last begin with, all do.
        pairs = zip(own[0].rows[start:], own[-1].rows[start:], strict=False)
        end = next((start + n for n, (a, b) in enumerate(pairs) if a != b), min(len(own[0].rows), len(own[-1].rows)))
        yield Branch(own, start, end)


def num_rows(branches: Iterable[Branch[P]]) -> int:
    """Number of rows of these branches and of all behind them."""
    count, left = 0, list(branches)
    while left:
        branch = left.pop()
        count += branch.end - branch.start
        left += branch.children()
    return count
