"""No n-gram twice in a blank, like transformers' `no_repeat_ngram_size`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engine.logit_rule import History, LogitRule, Number, Parameter

if TYPE_CHECKING:
    from engine.schedule.batch import Row


def _apply(scores: "Row", history: History, values: Mapping[str, Number]) -> None:
    scores[list(_repeats(history.blank, int(values["no_repeat_ngram_size"])))] = -math.inf


def _repeats(history: Sequence[int], size: int) -> set[int]:
    """The tokens that would complete an n-gram that the history already holds."""
    if not size or len(history) < size:
        return set()
    tail = tuple(history[len(history) - size + 1 :])
    starts = range(len(history) - size + 1)
    return {history[i + size - 1] for i in starts if tuple(history[i : i + size - 1]) == tail}


RULE = LogitRule(
    parameters=(
        Parameter(
            "no_repeat_ngram_size",
            int,
            default=0,
            minimum=0,
            maximum=1024,
            description="The length of token sequences that may not occur twice in a blank; 0 allows all.",
        ),
    ),
    stage="forbid",
    apply=_apply,
)
