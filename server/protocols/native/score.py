"""`POST /v1/score`: log-likelihoods of known texts. Its fields tell SGLang's route of that name apart."""

import time
from dataclasses import replace
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.exchange.exchange import complete, submit
from server.exchange.named_adapter import named_adapter
from server.exchange.service import Service, service_of
from server.exchange.streaming import EventStream, Stream
from server.exchange.takes import takes
from server.protocols.native.schemas import ScoreRequest
from server.protocols.native.stream import NamedEvents
from server.protocols.sglang.labels import labels
from server.protocols.sglang.schemas import LabelsRequest, is_sglang
from server.wire.answer import Answer, plain
from server.wire.body import read_object

PATH = "/v1/score"

router = APIRouter()


@router.post(PATH, openapi_extra=takes(ScoreRequest, LabelsRequest), tags=["score"])
async def score(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Scores candidates for the blanks of a text, continuations of a context, or a whole text."""
    settings = service.settings
    raw = await read_object(request, settings.body_seconds)
    if is_sglang(raw):
        return await labels(request, service, raw)
    body = ScoreRequest.model_validate(raw)
    card = service.engine.card
    adapter = named_adapter(service.engine, body.model, body.adapter)
    work = replace(body.score(settings.limits), adapter=adapter)
    work_id = f"score-{uuid4().hex}"
    head = {"id": work_id, "object": "score", "created": int(time.time()), "model": card.name}
    events = submit(service, request, work, work_id)
    if body.stream:
        return EventStream(service, Stream(events, NamedEvents(head), request.state.request_id))
    results, done = await complete(service, request, events)
    ranking = {} if done.ranking is None else plain(done.ranking)
    return Answer({**head, "results": results, **ranking, "usage": done.usage})
