"""The repetition penalty of CTRL (Keskar and others 2019), in the form of transformers and vLLM."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.logit_rule import History, LogitRule, Number, Parameter

if TYPE_CHECKING:
    from engine.schedule.batch import Row


def _apply(scores: "Row", history: History, values: Mapping[str, Number]) -> None:
    penalty, ids = values["repetition_penalty"], list(history.seen())
    found = scores[ids]
    # The paper divides all logits, which would raise negative ones.
    is_negative = found < 0
    found[is_negative] *= penalty
    found[~is_negative] /= penalty
    scores[ids] = found


RULE = LogitRule(
    parameters=(
        Parameter(
            "repetition_penalty",
            float,
            default=1.0,
            minimum=0.01,
            maximum=100,
            description="The divisor of the logit of every token in text and blank; it multiplies a negative logit.",
        ),
    ),
    stage="scale",
    apply=_apply,
)
