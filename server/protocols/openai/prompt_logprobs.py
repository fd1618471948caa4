"""The `prompt_logprobs` of vLLM's completions: for each token of the prompt an object by token id.

It holds the token itself and the most probable ones, each with its log-probability, its rank and its text
(vllm/logprobs.py). The first token has null, as there.
"""

from collections.abc import Iterable
from typing import Any

from engine.answers import Alternative, EchoedPrompt
from server.exchange.bodies import LEAST

Place = dict[str, dict[str, Any]]


def prompt_logprobs(echo: EchoedPrompt, num_top: int) -> list[Place | None]:
    """The list, with `num_top` alternatives a token."""
    places: list[Place | None] = []
    for token_id, token, logprob, rank, top in zip(
        echo.token_ids, echo.tokens, echo.token_logprobs, echo.ranks, echo.top_logprobs, strict=True
    ):
        if not places or logprob is None:  # the first, and what is only context
            places.append(None)
        else:
            own = {str(token_id): _entry(logprob, rank, token)}
            places.append({**own, **_ranked((top or ())[:num_top])})
    return places


def _ranked(top: Iterable[Alternative]) -> Place:
    return {str(t.token_id): _entry(t.logprob, rank, t.token) for rank, t in enumerate(top, 1)}


def _entry(logprob: float, rank: int | None, token: str) -> dict[str, Any]:
    return {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": token}
