"""`POST /v1/score`: the log-likelihood of what is already known."""

import time
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Request

from server.answer import Answer
from server.body import read_object
from server.exchange import complete, submit
from server.openapi import takes
from server.schemas import ScoreRequest
from server.service import Service, service_of

router = APIRouter()


@router.post("/v1/score", openapi_extra=takes(ScoreRequest), tags=["score"])
async def score(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """Scores candidates for the blanks of a text, continuations of a context, or a text as it stands."""
    settings = service.settings
    body = ScoreRequest.model_validate(await read_object(request, settings.body_seconds))
    work = body.score(settings.limits)
    card = service.engine.card
    body.check_names(card)
    work_id = f"score-{uuid4().hex}"
    head = {"id": work_id, "object": "score", "created": int(time.time()), "model": card.name}
    results, done = await complete(service, request, submit(service, request, work, work_id))
    return Answer({**head, "results": results, **done.extra, "usage": done.usage})
