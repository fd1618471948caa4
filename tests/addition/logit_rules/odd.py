"""A toy logit rule: an amount taken off the logits of all odd token ids."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.logit_rule import History, LogitRule, Number, Parameter

if TYPE_CHECKING:
    from engine.schedule.batch import Row


def _apply(scores: "Row", history: History, values: Mapping[str, Number]) -> None:
    scores[1::2] -= values["odd_penalty"]


RULE = LogitRule(
    (Parameter("odd_penalty", float, 0.0, 0, 1000, "The amount taken off the logit of every odd token id."),),
    stage="shift",
    apply=_apply,
)
