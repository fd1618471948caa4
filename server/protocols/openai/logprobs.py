"""The `logprobs` object of OpenAI's completions: four lists with one entry per token.

A client may look up its token in `top_logprobs` by its text and compare log-probabilities for equality
(lm-evaluation-harness, api_models.py). So each entry contains the token itself with exactly the same number, and of
tokens with the same text the most probable one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.answers import Alternative, EchoedPrompt, FilledBlank
from server.exchange.bodies import LEAST

Tops = Sequence[Sequence[Alternative] | None] | None


@dataclass(slots=True)
class Logprobs:
    """The lists so far. With `as_ids` a token's name is `token_id:` and its id, like vLLM's on request."""

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
        """Appends tokens, by id and name. A token without a log-probability has no alternatives."""
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

    def add_prompt(self, echo: EchoedPrompt, num_top: int | None = None) -> float | None:
        """Appends the tokens of a scored prompt, the engine's `echo`, with at most `num_top` alternatives each.

        This protocol has no log-probability for the very first token; that token's own one is returned.
        """
        tokens = list(zip(echo.token_ids, echo.tokens, strict=True))
        tops = [top and top[:num_top] for top in echo.top_logprobs]
        self.add(tokens, echo.token_logprobs, tops, echo.text_offsets)
        if not self.tokens:
            return None
        first, self.token_logprobs[0], self.top_logprobs[0] = self.token_logprobs[0], None, None
        return first

    def add_span(self, blank: FilledBlank, at: int, first: int = 0) -> None:
        """Appends the tokens of a blank from its `first` on, with an end token. `at` is the blank's offset in
        characters."""
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
        """The object on the wire."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


def finish_reason(blank: FilledBlank) -> str | None:
    """The reason why a completion ended, in this protocol's terms. A completion whose constraint is complete has
    stopped."""
    return "stop" if blank.finish_reason in ("choice", "regex") else blank.finish_reason


def _best(token: str, logprob: float, top: Sequence[tuple[str, float]]) -> dict[str, float]:
    best: dict[str, float] = {}
    found = [(name, max(value, LEAST)) for name, value in top]
    for spelled, value in (*found, (token, logprob)):
        best[spelled] = max(value, best.get(spelled, LEAST))
    return best
