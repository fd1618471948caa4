"""What the runner is told and what it answers: plain data both ways."""

from dataclasses import dataclass

from engine.sequence import Want
from model.attention import Span


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
    """All rows of one iteration, contexts before the sequences over them."""

    rows: tuple[Rows, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(r.token_ids) for r in self.rows)


@dataclass(frozen=True, slots=True)
class Scored:
    """A token's log-probability, and the most probable tokens beside it."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
