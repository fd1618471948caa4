"""`POST /v1/infill`: fills the blanks of a text, whole or as a stream."""

import time
from dataclasses import replace
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.exchange.blank_rules import ruled, warned
from server.exchange.exchange import complete, submit
from server.exchange.named_adapter import named_adapter
from server.exchange.service import Service, service_of
from server.exchange.streaming import EventStream, Stream
from server.exchange.takes import takes
from server.protocols.native.schemas import InfillRequest
from server.protocols.native.stream import NamedEvents
from server.wire.answer import Answer
from server.wire.body import read_object

PATH = "/v1/infill"

router = APIRouter()


@router.post(PATH, openapi_extra=takes(InfillRequest), tags=["infill"])
async def infill(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Fills every blank of every input, `n` times."""
    settings = service.settings
    body = InfillRequest.model_validate(await read_object(request, settings.body_seconds))
    card = service.engine.card
    adapter = named_adapter(service.engine, body.model, body.adapter)
    work = ruled(service, request, replace(body.fill(settings.limits), adapter=adapter), editor=False)
    work_id = f"infill-{uuid4().hex}"
    head = {"id": work_id, "object": "infill", "created": int(time.time()), "model": card.name}
    head |= warned(request)
    events = submit(service, request, work, work_id)
    if body.stream:
        return EventStream(service, Stream(events, NamedEvents(head), request.state.request_id))
    results, done = await complete(service, request, events)
    return Answer({**head, "results": results, "usage": done.usage})
