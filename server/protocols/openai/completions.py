"""`POST /v1/completions`, for OpenAI's clients and lm-evaluation-harness.

The completion continues a prompt, or stands between a prompt and a suffix. With `echo` and `logprobs` the prompt's own
tokens are scored, and the generated text continues them; `engine.jobs.prompts` explains how the model reads it.
"""

import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from engine.answers import FillResult
from engine.client import EngineClient
from engine.events import ModelCard
from engine.requests import RequestError, member
from server.exchange.blank_rules import ruled, warned
from server.exchange.bodies import names
from server.exchange.estimate import AROUND
from server.exchange.exchange import complete, submit
from server.exchange.named_adapter import named_adapter
from server.exchange.nothing import nothing
from server.exchange.prompt import prompt_text
from server.exchange.service import Service, service_of
from server.exchange.streaming import EventStream, Stream
from server.exchange.takes import takes
from server.protocols.openai.completion_stream import CompletionEvents, usage
from server.protocols.openai.logprobs import Logprobs, finish_reason
from server.protocols.openai.prompt_logprobs import prompt_logprobs
from server.protocols.openai.schemas import Asked, CompletionRequest
from server.wire.answer import Answer
from server.wire.body import read_object

PATH = "/v1/completions"
router = APIRouter()


@router.post(PATH, openapi_extra=takes(CompletionRequest), tags=["clients"])
async def completions(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """OpenAI's completions: text behind a prompt, or between a prompt and a suffix, and log-probabilities."""
    settings, engine = service.settings, service.engine
    raw = await read_object(request, settings.body_seconds)
    service.ignored.note(request.scope["path"], raw.keys() - names(CompletionRequest))
    body = await _truncated(CompletionRequest.model_validate(raw), engine)
    card = engine.card
    adapter = named_adapter(engine, body.model)
    work = ruled(service, request, replace(body.fill(settings.limits, card), adapter=adapter), editor=True)
    asked = body.asked()
    work_id = f"cmpl-{uuid4().hex}"
    head = {
        "id": work_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": adapter or card.name,
        "system_fingerprint": _fingerprint(card),
        **warned(request),
    }
    is_work = bool(body.max_tokens) or asked.scores
    texts = [""] * len(asked.prompts)
    for number, prompt in enumerate(asked.prompts if body.echo else ()):
        with member("input", number, len(texts)):
            # What follows a prompt of ids may finish its last character.
            texts[number] = await prompt_text(prompt, engine, finished=is_work)
    engine_names = body.engine_names(settings.limits)
    if is_work:
        events = submit(service, request, work, work_id, engine_names)
    else:
        events = nothing(work, engine, work_id, engine_names)
    if body.stream:
        return EventStream(service, Stream(events, CompletionEvents(body, texts, head), request.state.request_id))
    results, done = await complete(service, request, events)
    fills = [result for result in results if isinstance(result, FillResult)]
    choices = [_choice(body, asked, texts, result, index) for index, result in enumerate(_best(fills, asked))]
    return Answer({**head, "choices": choices, "usage": usage(done.usage)})


async def _truncated(body: CompletionRequest, engine: EngineClient) -> CompletionRequest:
    """A body whose prompts have at most so many tokens, the last or the first ones; −1 is as many as can be read.
    Raises RequestError for 0."""
    limit = body.truncate_prompt_tokens
    if limit is None:
        return body
    if limit == 0:
        raise RequestError(
            "truncate_prompt_tokens is 0; the least is 1, or -1 for the model's", "truncate_prompt_tokens"
        )
    if limit < 0:
        limit = engine.card.max_context - AROUND
    prompts: list[Any] = []
    for prompt in body.asked().prompts:
        is_text = isinstance(prompt, str)
        ids = await engine.tokenize(prompt, special=body.suffix is None) if isinstance(prompt, str) else prompt.ids
        cut = list(ids[-limit:] if body.truncation_side == "left" else ids[:limit])
        prompts.append(prompt if is_text and len(cut) == len(ids) else cut)
    return body.model_copy(update={"prompt": prompts, "truncate_prompt_tokens": None})


def _best(results: list[FillResult], asked: Asked) -> list[FillResult]:
    """For each prompt, the n answers with the highest mean log-probability per token."""
    best: list[FillResult] = []
    for _, same in groupby(results, key=lambda result: result.input_index):
        answers = list(same)
        if asked.best_of > asked.n:
            answers = sorted(answers, key=_mean_logprob, reverse=True)[: asked.n]
        best += answers
    return best


def _mean_logprob(result: FillResult) -> float:
    blank = result.blanks[0]
    logprobs = [*blank.token_logprobs, *([] if blank.end_logprob is None else [blank.end_logprob])]
    return math.fsum(logprobs) / max(len(logprobs), 1)


def _choice(
    body: CompletionRequest, asked: Asked, texts: Sequence[str], result: FillResult, index: int
) -> dict[str, Any]:
    blank = result.blanks[0]
    prompt = texts[result.input_index]
    choice: dict[str, Any] = {"index": index, "text": prompt + blank.text, "finish_reason": finish_reason(blank)}
    if result.fitted:
        choice["glm"] = {"truncated": True}
    if result.echo is not None:
        choice["glm"] = {"first_token_logprob": next(iter(result.echo.token_logprobs), None)}
        if body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(result.echo, body.prompt_logprobs)
    if body.logprobs is None:
        return {**choice, "logprobs": None}
    logprobs = Logprobs(body.as_ids)
    if body.echo and result.echo is not None:
        logprobs.add_prompt(result.echo, body.logprobs)
    logprobs.add_span(blank, len(prompt))
    return {**choice, "logprobs": logprobs.wire()}


def _fingerprint(card: ModelCard) -> str:
    """The same for what gives the same numbers."""
    told = f"{card.name} {card.quant} {card.quant_head} {card.kernels} {card.num_parameters}"
    return f"fp_{zlib.crc32(told.encode()):08x}"
