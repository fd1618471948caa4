"""What the runner is told and what it answers: plain data both ways."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from engine.sequence import Want
from model.attention import Span

_WANTS: tuple[Want | None, ...] = (None, *get_args(Want))


@dataclass(frozen=True, slots=True)
class Rows:
    """New rows of one context or sequence, and what is wanted of them: nothing, or as `Sequence.want` says, with
    `asked` rows (−1 is the last) or one target id a row (−1 for none)."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    block_positions: tuple[int, ...]
    span: Span
    want: Want | None = None
    asked: tuple[int, ...] = (-1,)
    targets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of one iteration, contexts before the sequences over them.

    `copies` are blocks to be copied before anything is written: (from, to).
    """

    rows: tuple[Rows, ...]
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(len(r.token_ids) for r in self.rows)

    def encoded(self) -> Iterator[int]:
        """The batch as whole numbers, for other ranks: the copies behind their number, then of each `Rows` its sizes
        and choices and its lists."""
        yield len(self.copies)
        for pair in self.copies:
            yield from pair
        for r in self.rows:
            s = r.span
            yield from (len(r.token_ids), s.start, s.context_len, len(s.blocks), s.causal, _WANTS.index(r.want))
            yield from (len(r.asked), len(r.targets))
            for values in (r.token_ids, r.positions, r.block_positions, s.blocks, r.asked, r.targets):
                yield from values

    @staticmethod
    def decoded(numbers: Sequence[int]) -> "Batch":
        """The inverse of `encoded`."""
        rows, end = [], 0

        def taken(count: int) -> tuple[int, ...]:
            nonlocal end
            end += count
            return tuple(numbers[end - count : end])

        (num_copies,) = taken(1)
        copies = tuple((source, target) for source, target in (taken(2) for _ in range(num_copies)))
        while end < len(numbers):
            count, start, context_len, num_blocks, causal, want, num_asked, num_targets = taken(8)
            ids, positions, block_positions = taken(count), taken(count), taken(count)
            span = Span(count, start, context_len, taken(num_blocks), bool(causal))
            rows.append(Rows(ids, positions, block_positions, span, _WANTS[want], taken(num_asked), taken(num_targets)))
        return Batch(tuple(rows), copies)


@dataclass(frozen=True, slots=True)
class Scored:
    """A token's log-probability, and the most probable tokens beside it."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
