"""Tokens with log-probabilities and alternatives as objects, in the form of llama.cpp, Ollama and Mistral."""

from collections.abc import Sequence
from typing import Any

from engine.answers import Alternative, Alternatives, FilledBlank
from engine.events import BlankDelta
from server.exchange.bodies import LEAST

Objects = list[dict[str, Any]]


def of_delta(delta: BlankDelta) -> Objects:
    """The new tokens of a blank; none if the request asks for no log-probabilities."""
    return _objects(delta.token_ids, delta.tokens, delta.logprobs, delta.top_logprobs, delta.raw)


def of_blank(blank: FilledBlank, first: int = 0) -> Objects:
    """The tokens of a blank from its `first` on; none if the request asks for no log-probabilities."""
    return _objects(blank.token_ids, blank.tokens, blank.token_logprobs, blank.top_logprobs, blank.raw)[first:]


def _objects(
    ids: Sequence[int],
    tokens: Sequence[str],
    logprobs: Sequence[float],
    tops: Sequence[Alternatives] | None,
    raws: Sequence[list[int] | None],
) -> Objects:
    if tops is None:
        return []
    return [
        _object(Alternative(i, token, logprob, raw)) | {"top_logprobs": [_object(t) for t in top]}
        for i, token, logprob, top, raw in zip(ids, tokens, logprobs, tops, raws or [None] * len(ids), strict=True)
    ]


def _object(found: Alternative) -> dict[str, Any]:
    data = [*found.token.encode()] if found.raw is None else found.raw
    return {"id": found.token_id, "token": found.token, "bytes": data, "logprob": max(found.logprob, LEAST)}
