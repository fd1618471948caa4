"""A logit rule: sampling parameters, and what they do to the logits of tokens before one is drawn."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from engine.schedule.batch import Row

Number = int | float


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that a request may give, from `minimum` to `maximum`. With `default` alone a rule changes nothing."""

    name: str
    kind: type[int] | type[float]
    default: Number
    minimum: Number
    maximum: Number
    description: str


@dataclass(frozen=True, slots=True)
class History:
    """The tokens before the next one: `context` are those that the model has read before the blank, special ones too,
    `blank` those of the blank. With `last` penalties count the last so many of both, as llama.cpp does."""

    context: Sequence[int] = ()
    blank: Sequence[int] = ()
    last: int | None = None
    context_set: frozenset[int] = frozenset()  # the context's, made once

    def seen(self) -> Iterable[int]:
        """The tokens that the model has met, each once."""
        return self.context_set.union(self.blank) if self.last is None else set(self._last(self.last))

    def written(self) -> Sequence[int]:
        """The tokens that count as often as they come: those of the blank."""
        return self.blank if self.last is None else self._last(self.last)

    def _last(self, count: int) -> Sequence[int]:
        older = max(count - len(self.blank), 0)
        return [
            *self.context[max(len(self.context) - older, 0) :],
            *self.blank[max(len(self.blank) - count, 0) :],
        ]


@dataclass(frozen=True, slots=True)
class LogitRule:
    """`apply(scores, history, values)` changes scores [vocab_size] in place: logits of the next token, with what the
    rules before have done. In a beam search they are log-probabilities, as in transformers. `values` are those of all
    parameters by name.

    Rules that scale come before those that shift, and these before those that forbid (a score of −∞).
    """

    parameters: tuple[Parameter, ...]
    stage: Literal["scale", "shift", "forbid"]
    apply: "Callable[[Row, History, Mapping[str, Number]], None]"
