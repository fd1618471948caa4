"""Answers of an engine: made of a few fields, and read as a client reads them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.answers import EMPTY, EchoedPrompt, FilledBlank, FillResult, ScoreResult
from server.wire.answer import encode


def blank(**fields: Any) -> FilledBlank:
    """A blank with these fields, others empty."""
    return replace(EMPTY, **fields)


def filled(blanks: Sequence[FilledBlank], index: int = 0, echo: EchoedPrompt | None = None) -> FillResult:
    """A result of these blanks."""
    return FillResult(index, 0, "a b", 0.0, list(blanks), echo)


def scored(index: int, logprob: float) -> ScoreResult:
    """A candidate's result without its spans."""
    return ScoreResult(index, logprob, logprob, 1.0, 1, [], [])


def wire(answer: Any) -> Any:
    """An answer as JSON has it."""
    return json.loads(encode(answer))
