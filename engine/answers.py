"""Answers: what a request comes to. Each protocol writes them in its own words.

Log-probabilities are natural logarithms of the model's raw distribution. Offsets count characters.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

# On fields: `OPTIONAL` ones are left out of an answer where they are None, `INTERNAL` ones always.
OPTIONAL: dict[str, Any] = {"wire": "optional"}
INTERNAL: dict[str, Any] = {"wire": "internal"}


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the most probable tokens at a place. `raw` are its bytes there, where `token` is not how they read."""

    token_id: int
    token: str
    logprob: float
    raw: list[int] | None = field(default=None, metadata=INTERNAL)


Alternatives = list[Alternative]


@dataclass(frozen=True, slots=True)
class FilledBlank:
    """A blank and what was written into it.

    `start` and `end` are the mask's offsets in the request's text, `text_offsets` those of the tokens in the fill's
    `text`. `logprob` sums the tokens without the end token. `top_logprobs` is None unless alternatives were asked for;
    then `raw` are the bytes that each token adds to the text, or None where `tokens` reads the same.
    """

    index: int
    mask: str
    start: int
    end: int
    text: str
    token_ids: list[int]
    tokens: list[str]
    logprob: float
    token_logprobs: list[float]
    top_logprobs: list[Alternatives] | None
    text_offsets: list[int]
    end_token: str | None
    end_logprob: float | None
    end_top_logprobs: Alternatives | None
    stop_string: str | None
    finish_reason: str | None
    choice_logprobs: list[float] | None = field(default=None, metadata=OPTIONAL)
    raw: list[list[int] | None] = field(default_factory=list, metadata=INTERNAL)
    end_token_id: int | None = field(default=None, metadata=INTERNAL)
    choice_ids: tuple[tuple[int, ...], ...] | None = field(default=None, metadata=INTERNAL)


# A blank in which nothing was to be written.
EMPTY = FilledBlank(
    index=0, mask="", start=0, end=0, text="", token_ids=[], tokens=[], logprob=0.0, token_logprobs=[],
    top_logprobs=None, text_offsets=[], end_token=None, end_logprob=None, end_top_logprobs=None, stop_string=None,
    finish_reason="length",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """The tokens of a prompt that was scored. Those that are only its context have no log-probabilities."""

    token_ids: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[Alternatives | None]
    text_offsets: list[int]


@dataclass(frozen=True, slots=True)
class FillResult:
    """One input with its blanks filled. `fitted` says whether it was cut to fit, where it was allowed to be."""

    index: int
    input_index: int
    text: str
    logprob: float
    blanks: list[FilledBlank]
    echo: EchoedPrompt | None = field(default=None, metadata=OPTIONAL)
    fitted: bool | None = field(default=None, metadata=OPTIONAL)
    kind: Literal["fill"] = field(default="fill", metadata=INTERNAL)


@dataclass(frozen=True, slots=True)
class ScoredWord:
    """A word of a span, with its offsets in the span's text. `logprob` sums the tokens that begin in it or in the white
    space before it; the end token is of no word."""

    text: str
    start: int
    end: int
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """A span of a candidate; of several orders the means. `end_logprob` is None for a model without an end token.
    `words` is None unless they were asked for."""

    index: int
    text: str
    logprob: float
    token_ids: list[int]
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[Alternatives] | None
    end_logprob: float | None
    words: list[ScoredWord] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, slots=True)
class ScoredOrder:
    """A candidate's log-probability in one order of its spans."""

    order: list[int]
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """One candidate. `logprob` is the mean over the orders, `normalized` what candidates are compared by."""

    index: int
    logprob: float
    normalized: float
    perplexity: float
    num_tokens: int
    spans: list[ScoredSpan]
    orders: list[ScoredOrder]
    kind: Literal["score"] = field(default="score", metadata=INTERNAL)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Which candidate of a score is best, and the softmax of what they are compared by."""

    best: int
    probabilities: list[float]


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
