"""`POST /completion`, llama.cpp's own: the text behind a prompt, or at the mask in it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.exchange.bodies import names
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.protocols.llama_cpp.predicting import predict
from server.protocols.llama_cpp.schemas import OTHER_NAMES, PromptRequest
from server.wire.body import read_object

PATH = "/completion"

router = APIRouter()


@router.post(PATH, openapi_extra=takes(PromptRequest), tags=["clients"])
async def completion(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """llama.cpp's completion: text that follows a prompt."""
    raw = await read_object(request, service.settings.body_seconds)
    service.ignored.note(PATH, raw.keys() - names(PromptRequest) - OTHER_NAMES)
    body = PromptRequest.model_validate(raw)
    segments = body.segments(service.settings.limits, service.engine.card)
    return await predict(service, request, body, segments, "prompt")
