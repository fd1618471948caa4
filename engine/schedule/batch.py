"""The batch: what the runner computes and what it returns, as plain data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from engine.schedule.sequence import Output
from model.attention import Span

# What is made for each row of each step is not frozen: frozen dataclasses take about three times as long to make.
_OUTPUTS: tuple[Output | None, ...] = (None, *get_args(Output))


@dataclass(slots=True)
class Rows:
    """New rows of one context or sequence, and their output: none, or one of `Sequence.output`.

    `logit_rows` are row numbers (−1 is the last), `targets` one id per row (−1 for none) and further ones of the last
    row. `adapter` is its number, 0 for none.
    """

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    block_positions: tuple[int, ...]
    span: Span
    output: Output | None = None
    logit_rows: tuple[int, ...] = (-1,)
    targets: tuple[int, ...] = ()
    adapter: int = 0


@dataclass(frozen=True, slots=True)
class PrefixCopy:
    """Keys and values of an adapter's prefix, from its token `first` on, to write into these blocks.

    They fill the blocks from the first block's first slot on, as far as the blocks reach.
    """

    adapter: int
    first: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of one iteration, contexts before the sequences over them.

    `copies` are block copies (from, to), made before all writes; prefixes are written next.
    """

    rows: tuple[Rows, ...]
    copies: tuple[tuple[int, int], ...] = ()
    prefixes: tuple[PrefixCopy, ...] = ()

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return sum(len(r.token_ids) for r in self.rows)

    def encoded(self) -> Iterator[int]:
        """The batch as integers, for other ranks.

        They are the number of copies and the copies, the same for prefixes, then sizes, choices and lists of each
        `Rows`.
        """
        yield len(self.copies)
        for pair in self.copies:
            yield from pair
        yield len(self.prefixes)
        for p in self.prefixes:
            yield from (p.adapter, p.first, len(p.blocks), *p.blocks)
        for r in self.rows:
            s = r.span
            yield from (len(r.token_ids), s.start, s.context_len, len(s.blocks), s.causal, _OUTPUTS.index(r.output))
            yield from (len(r.logit_rows), len(r.targets), r.adapter)
            for values in (r.token_ids, r.positions, r.block_positions, s.blocks, r.logit_rows, r.targets):
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
        prefixes = []
        for _ in range(*taken(1)):
            adapter, first, num_blocks = taken(3)
            prefixes.append(PrefixCopy(adapter, first, taken(num_blocks)))
        while end < len(numbers):
            count, start, context_len, num_blocks, causal, output, num_logit_rows, num_targets, adapter = taken(9)
            ids, positions, block_positions = taken(count), taken(count), taken(count)
            span = Span(count, start, context_len, taken(num_blocks), bool(causal))
            lists = taken(num_logit_rows), taken(num_targets)
            rows.append(Rows(ids, positions, block_positions, span, _OUTPUTS[output], *lists, adapter))
        return Batch(tuple(rows), copies, tuple(prefixes))


@dataclass(slots=True)
class Scored:
    """A token's log-probability, and the most probable tokens at its position, or those that the request asked for.
    `rank` is 1 plus the number of more probable tokens; None unless it was asked for."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    rank: int | None = None


# Log-probabilities [vocab_size], of "logits" with by how much the logits are greater [vocab_size + 1] as the last one;
# [rows, …] where several are asked.
Row = NDArray[np.float32]
Result = Row | list[Scored | None]  # of what wants a "token", "logits" or a "pair"; else of what wants "scores"
