"""What TGI tells of a text that was generated: how it ended, and its tokens."""

import math
from typing import Any

from engine.answers import Alternative, FilledBlank, FillResult, ScoreResult
from engine.requests import Mask
from server.exchange.bodies import LEAST, count_blanks, split
from server.protocols.hugging_face.schemas import TextGenerationParameters, TextGenerationRequest


def answer(body: TextGenerationRequest, fills: list[FillResult], prompt: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to a request; of several samples it is the one with the best log-probability a token. `prompt` are
    the tokens of the prompt."""
    p = body.parameters
    best, *others = sorted(fills, key=_mean_logprob, reverse=True)
    found: dict[str, Any] = {"generated_text": shown_text(body, best.blanks[0])}
    if best.fitted:
        found["truncated"] = True
    if p.details or p.decoder_input_details:
        found["details"] = details(best.blanks[0], p, prompt)
        if p.best_of > 1:
            blanks = [other.blanks[0] for other in others]
            found["details"]["best_of_sequences"] = [
                {"generated_text": shown_text(body, blank), **details(blank, p, prompt)} for blank in blanks
            ]
    return found


def details(blank: FilledBlank, parameters: TextGenerationParameters, prompt: list[dict[str, Any]]) -> dict[str, Any]:
    """`details` of one sample."""
    tokens = all_tokens(blank)
    tops = [*(blank.top_logprobs or ())]
    if blank.end_top_logprobs is not None:
        tops.append(blank.end_top_logprobs)
    return {
        "finish_reason": finish_reason(blank),
        "generated_tokens": len(tokens),
        "seed": parameters.seed,
        "prefill": prompt,
        "tokens": tokens,
        **({"top_tokens": [top_tokens(top) for top in tops]} if parameters.top_n_tokens else {}),
    }


def shown_text(body: TextGenerationRequest, blank: FilledBlank) -> str:
    """The generated text, with the prompt around it if that was asked for."""
    if not body.parameters.return_full_text:
        return blank.text
    prompt = split(body.inputs)
    around = prompt if count_blanks(prompt) else (*prompt, Mask(""))
    return "".join(blank.text if isinstance(segment, Mask) else str(segment) for segment in around)


def finish_reason(blank: FilledBlank) -> str:
    """How a blank ended, in TGI's words."""
    if blank.stop_string is not None:
        return "stop_sequence"
    return "length" if blank.finish_reason in ("length", "deadline") else "eos_token"


def all_tokens(blank: FilledBlank) -> list[dict[str, Any]]:
    """The tokens of a blank, its end token too."""
    written = zip(blank.token_ids, blank.tokens, blank.token_logprobs, strict=True)
    tokens = [token(*one) for one in written]
    end = end_token(blank)
    return tokens if end is None else [*tokens, end]


def end_token(blank: FilledBlank) -> dict[str, Any] | None:
    """The end token of a blank that has one."""
    if blank.end_token is None or blank.end_logprob is None or blank.end_token_id is None:
        return None
    return token(blank.end_token_id, blank.end_token, blank.end_logprob, special=True)


def token(token_id: int, text: str, logprob: float, special: bool = False) -> dict[str, Any]:
    """One token."""
    return {"id": token_id, "text": text, "logprob": max(logprob, LEAST), "special": special}


def top_tokens(top: list[Alternative]) -> list[dict[str, Any]]:
    """The alternatives of a token."""
    return [token(t.token_id, t.token, t.logprob) for t in top]


def prefill(scored: ScoreResult) -> list[dict[str, Any]]:
    """The tokens of a prompt. The first one has a log-probability too: something stands before it."""
    (span,) = scored.spans
    tokens = zip(span.token_ids, span.tokens, span.token_logprobs, strict=True)
    return [{"id": i, "text": text, "logprob": max(logprob, LEAST)} for i, text, logprob in tokens]


def _mean_logprob(result: FillResult) -> float:
    logprobs = [one["logprob"] for one in all_tokens(result.blanks[0])]
    return math.fsum(logprobs) / max(len(logprobs), 1)
