"""The repetition penalty of CTRL (Keskar and others 2019)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engine.logit_rule import LogitRule, Number, Parameter

if TYPE_CHECKING:
    from engine.schedule.batch import Row


def _apply(scores: "Row", history: Sequence[int], values: Mapping[str, Number]) -> None:
    if history:
        # Log-probabilities are negative, so dividing by 1/penalty lowers them, as CTRL's rule does.
        scores[list(set(history))] *= values["repetition_penalty"]


RULE = LogitRule(
    parameters=(
        Parameter(
            "repetition_penalty",
            float,
            default=1.0,
            minimum=0.01,
            maximum=100,
            description="The factor on the log-probability of every token that the blank has already.",
        ),
    ),
    stage="scale",
    apply=_apply,
)
