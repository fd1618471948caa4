"""A logit rule: sampling parameters, and what they do to the scores of tokens before one is drawn."""

from collections.abc import Callable, Mapping, Sequence
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
class LogitRule:
    """`apply(scores, history, values)` changes scores [vocab_size] in place: log-probabilities of the next token, less
    what the rules before have done. `history` are the ids of the blank's tokens so far, `values` those of all
    parameters by name.

    Rules that scale come before those that shift, and these before those that forbid (a score of −∞).
    """

    parameters: tuple[Parameter, ...]
    stage: Literal["scale", "shift", "forbid"]
    apply: "Callable[[Row, Sequence[int], Mapping[str, Number]], None]"
