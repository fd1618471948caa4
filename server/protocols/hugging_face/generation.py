"""`POST /generate` and `/generate_stream`: TGI's text generation.

A prompt goes on behind its end as in OpenAI's completions, and one with a mask gets what stands there. The prompt's own
log-probabilities are those of `/v1/score`, read from left to right; asking for them changes nothing of what is written.
"""

from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from engine.answers import FillResult, ScoreResult
from engine.client import EngineClient
from engine.requests import Fill, RequestError, Score
from server.exchange.blank_rules import ruled, warned
from server.exchange.bodies import names
from server.exchange.exchange import complete_all, submit
from server.exchange.named_adapter import named_adapter
from server.exchange.service import Service, service_of
from server.exchange.streaming import EventStream, Stream
from server.exchange.takes import takes
from server.protocols.hugging_face.asking import Asking
from server.protocols.hugging_face.generated import answer, prefill
from server.protocols.hugging_face.generation_stream import GenerationEvents
from server.protocols.hugging_face.schemas import TextGenerationParameters, TextGenerationRequest
from server.wire.answer import Answer
from server.wire.body import read_object

PATH = "/generate"
STREAM = "/generate_stream"
# What the engine calls the fields of a request.
NAMES = {
    "text": "inputs", "max_tokens": "max_new_tokens", "regex": "grammar", "json_schema": "grammar",
    "logprobs": "top_n_tokens",
}  # fmt: skip

router = APIRouter(tags=["clients"])


@router.post(PATH, openapi_extra=takes(TextGenerationRequest))
async def whole(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """TGI's generation, whole."""
    raw = await read_object(request, service.settings.body_seconds)
    return await generate(request, service, {**raw, "stream": False}, Asking(PATH))


@router.post(STREAM, openapi_extra=takes(TextGenerationRequest))
async def stream(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """TGI's generation as a stream."""
    raw = await read_object(request, service.settings.body_seconds)
    return await generate(request, service, {**raw, "stream": True}, Asking(STREAM))


async def generate(request: Request, service: Service, raw: dict[str, Any], asking: Asking) -> Response:
    """The answer to a body of text generation."""
    body = TextGenerationRequest.model_validate(raw)
    p, engine, limits = body.parameters, service.engine, service.settings.limits
    given = raw.get("parameters")
    unknown = raw.keys() - names(TextGenerationRequest)
    unknown |= given.keys() - names(TextGenerationParameters) if isinstance(given, dict) else set()
    service.ignored.note(asking.route, unknown)
    adapter = named_adapter(engine, asking.model, p.adapter_id)
    fill = body.fill(limits, engine.card, await _last_tokens(body, engine))
    work = ruled(service, request, replace(fill, adapter=adapter, stream=body.stream), editor=True, names=NAMES)
    told = warned(request)
    work_id = f"tgi-{uuid4().hex}"
    if body.stream:
        if p.best_of > 1:
            raise RequestError("best_of above 1 cannot be streamed", "best_of")
        if p.decoder_input_details:
            raise RequestError("decoder_input_details cannot be streamed", "decoder_input_details")
        events = submit(service, request, work, work_id, NAMES)
        return EventStream(service, Stream(events, GenerationEvents(body, told), request.state.request_id))
    works: list[Fill | Score] = [work]
    if p.decoder_input_details:
        works.append(Score(text=(body.inputs,), priority="interactive", timeout_s=limits.timeout_s, adapter=adapter))
    streams = [submit(service, request, w, f"{work_id}-{n}", NAMES) for n, w in enumerate(works)]
    (results, done), *scored = await complete_all(service, request, streams, "part")
    prompt = [prefill(r) for found, _ in scored for r in found if isinstance(r, ScoreResult)]
    fills = [result for result in results if isinstance(result, FillResult)]
    found = answer(body, fills, prompt[0] if prompt else []) | told
    headers = {
        "x-prompt-tokens": str(done.usage.prompt_tokens),
        "x-generated-tokens": str(done.usage.completion_tokens),
    }
    return Answer([found] if asking.in_list else found, headers=headers)


async def _last_tokens(body: TextGenerationRequest, engine: EngineClient) -> list[int] | None:
    """What `truncate` leaves of the prompt; None for all of it."""
    most = body.parameters.truncate
    if most is None:
        return None
    ids = await engine.tokenize(body.inputs)
    return ids[-most:] if len(ids) > most else None
