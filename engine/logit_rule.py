"""A logit rule: its sampling parameters, and its change to the logits before a token is drawn."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from engine.schedule.batch import Row

Number = int | float


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that a request may give, from `minimum` to `maximum`. With every `default` a rule changes nothing."""

    name: str
    kind: type[int] | type[float]
    default: Number
    minimum: Number
    maximum: Number
    description: str


@dataclass(frozen=True, slots=True)
class History:
    """The tokens before the next one.

    `context` are the tokens that the model reads before the blank, special ones included; `blank` are the blank's own.
    With `last`, penalties count only so many last tokens of both, as in llama.cpp.
    """

    context: Sequence[int] = ()
    blank: Sequence[int] = ()
    last: int | None = None
    context_set: frozenset[int] = frozenset()  # the context's, made once

    def seen(self) -> Iterable[int]:
        """The distinct tokens of context and blank."""
        return self.context_set.union(self.blank) if self.last is None else set(self._last(self.last))

    def written(self) -> Sequence[int]:
        """The blank's tokens, as often as they occur."""
        return self.blank if self.last is None else self._last(self.last)

    def _last(self, count: int) -> Sequence[int]:
        older = max(count - len(self.blank), 0)
        return [
            *self.context[max(len(self.context) - older, 0) :],
            *self.blank[max(len(self.blank) - count, 0) :],
        ]


@dataclass(frozen=True, slots=True)
class LogitRule:
    """`apply(scores, history, values)` changes scores [vocab_size] in place.

    Scores are logits of the next token after the earlier rules; in a beam search they are log-probabilities, as in
    transformers. `values` maps the name of every parameter to its value. Rules that scale act before rules that shift,
    and these before rules that forbid (a score of −∞).
    """

    parameters: tuple[Parameter, ...]
    stage: Literal["scale", "shift", "forbid"]
    apply: "Callable[[Row, History, Mapping[str, Number]], None]"
