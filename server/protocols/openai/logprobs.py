"""The `logprobs` object of OpenAI's completions: four lists, one entry a token.

A client may look for its token in `top_logprobs` by what it spells, and compares log-probabilities for equality
(lm-evaluation-harness, api_models.py): each entry holds the token itself with the very same number, and of tokens that
are spelled alike the most probable one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.answers import Alternative, EchoedPrompt, FilledBlank
from server.exchange.bodies import LEAST

Tops = Sequence[Sequence[Alternative] | None] | None


@dataclass(slots=True)
class Logprobs:
    """The lists so far. With `as_ids` a token is named `token_id:` and its id, as vLLM does on request."""

    as_ids: bool = False
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(
        self,
        tokens: Sequence[tuple[int | None, str]],
        logprobs: Iterable[float | None],
        tops: Tops,
        offsets: Iterable[int],
    ) -> None:
        """Puts tokens, by id and name, to the end; one without a log-probability has no alternatives either."""
        for (token_id, name), logprob, top, offset in zip(
            tokens, logprobs, tops or [None] * len(tokens), offsets, strict=True
        ):
            token = self._named(token_id, name)
            known = None if logprob is None else max(logprob, LEAST)
            others = [(self._named(t.token_id, t.token), t.logprob) for t in top or ()]
            self.tokens.append(token)
            self.token_logprobs.append(known)
            self.top_logprobs.append(None if known is None else _best(token, known, others))
            self.text_offset.append(offset)

    def _named(self, token_id: int | None, name: str) -> str:
        return f"token_id:{token_id}" if self.as_ids else name

    def add_prompt(self, echo: EchoedPrompt) -> float | None:
        """Puts the tokens of a scored prompt, the engine's `echo`. This protocol has no log-probability for the very
        first one: its own is given back."""
        tokens = list(zip(echo.token_ids, echo.tokens, strict=True))
        self.add(tokens, echo.token_logprobs, echo.top_logprobs, echo.text_offsets)
        if not self.tokens:
            return None
        first, self.token_logprobs[0], self.top_logprobs[0] = self.token_logprobs[0], None, None
        return first

    def add_span(self, blank: FilledBlank, at: int, first: int = 0) -> None:
        """Puts the tokens of a blank that stands `at` a character, from its `first` on; an end token is one too."""
        offsets = [at + offset for offset in blank.text_offsets[first:]]
        tops = blank.top_logprobs
        tokens = list(zip(blank.token_ids, blank.tokens, strict=True))
        self.add(tokens[first:], blank.token_logprobs[first:], tops and tops[first:], offsets)
        if blank.end_token is not None:
            self.add(
                [(blank.end_token_id, blank.end_token)],
                [blank.end_logprob],
                [blank.end_top_logprobs],
                [at + len(blank.text)],
            )

    def wire(self) -> dict[str, Any]:
        """The object."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


def finish_reason(blank: FilledBlank) -> str | None:
    """Why a completion ended, in this protocol's words: one that is all that it may be has stopped."""
    return "stop" if blank.finish_reason in ("choice", "regex") else blank.finish_reason


def _best(token: str, logprob: float, top: Sequence[tuple[str, float]]) -> dict[str, float]:
    best: dict[str, float] = {}
    found = [(name, max(value, LEAST)) for name, value in top]
    for spelled, value in (*found, (token, logprob)):
        best[spelled] = max(value, best.get(spelled, LEAST))
    return best
