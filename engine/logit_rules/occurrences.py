"""OpenAI's presence and frequency penalties: for each token of the blank, and for each of its occurrences."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.logit_rule import History, LogitRule, Number, Parameter

if TYPE_CHECKING:
    from engine.schedule.batch import Row


def _apply(scores: "Row", history: History, values: Mapping[str, Number]) -> None:
    presence, frequency = values["presence_penalty"], values["frequency_penalty"]
    for token_id, count in Counter(history.written()).items():
        scores[token_id] -= presence + frequency * count


RULE = LogitRule(
    parameters=(
        Parameter(
            "presence_penalty",
            float,
            default=0.0,
            minimum=-2,
            maximum=2,
            description="The amount subtracted from the logit of every token that the blank has.",
        ),
        Parameter(
            "frequency_penalty",
            float,
            default=0.0,
            minimum=-2,
            maximum=2,
            description="The amount subtracted from the logit of a token for each of its occurrences in the blank.",
        ),
    ),
    stage="shift",
    apply=_apply,
)
