"""The answers to requests. Each protocol renders them in its own form.

Log-probabilities are natural logarithms of the model's raw distribution. Offsets count characters.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

# Metadata of fields: an answer omits `OPTIONAL` fields that are None, and all `INTERNAL` fields.
OPTIONAL: dict[str, Any] = {"wire": "optional"}
INTERNAL: dict[str, Any] = {"wire": "internal"}


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the most probable tokens at a position, or a token that the request asked for. `raw` are its bytes there,
    if they differ from `token`."""

    token_id: int
    token: str
    logprob: float
    raw: list[int] | None = field(default=None, metadata=INTERNAL)


Alternatives = list[Alternative]


@dataclass(frozen=True, slots=True)
class FilledBlank:
    """A blank and its fill.

    `start` and `end` are the mask's offsets in the request's text; `text_offsets` are those of the tokens in the fill's
    `text`. `logprob` is the sum over the tokens without the end token. `top_logprobs` is None unless the request asks
    for alternatives; then `raw` are the bytes that each token adds to the text, or None if they equal those of
    `tokens`.
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


# A blank with max_tokens 0.
EMPTY = FilledBlank(
    index=0, mask="", start=0, end=0, text="", token_ids=[], tokens=[], logprob=0.0, token_logprobs=[],
    top_logprobs=None, text_offsets=[], end_token=None, end_logprob=None, end_top_logprobs=None, stop_string=None,
    finish_reason="length",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """The tokens of a scored prompt. Tokens of its context have no log-probabilities.

    A token's rank is 1 plus the number of more probable tokens. `ranks` is empty unless the request asked for them.
    """

    token_ids: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[Alternatives | None]
    text_offsets: list[int]
    ranks: list[int | None] = field(default_factory=list, metadata=INTERNAL)


@dataclass(frozen=True, slots=True)
class FillResult:
    """One input with its blanks filled. `fitted`: the text was cut to fit; None if the request did not allow that."""

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
    """A word of a span, with its offsets in the span's text.

    `logprob` is the sum over the tokens that begin in the word or in the white space before it. The end token belongs
    to no word.
    """

    text: str
    start: int
    end: int
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """A span of a candidate. With several orders its log-probabilities are means.

    `end_logprob` is None for a model without an end token. `words` is None unless the request asks for them.
    """

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
    """One candidate. `logprob` is the mean over the orders; `normalized` is the number by which candidates are
    compared."""

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
    """The index of a score's best candidate, and the softmax of all candidates' `normalized`."""

    best: int
    probabilities: list[float]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request, as clients get them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
