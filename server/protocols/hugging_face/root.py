"""`POST /` and `POST /models/{name}`: what Hugging Face's clients ask of an endpoint, fill-mask or text generation.

Both have the same path and the same two fields, and nothing says which is meant: a text with a mask is fill-mask's, any
other is text generation's. A body with a field that only one of them has is that one's.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from engine.events import ModelCard
from server.exchange.bodies import MASKS, names
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.protocols.hugging_face.asking import Asking
from server.protocols.hugging_face.error_body import mask_error_body
from server.protocols.hugging_face.fill_mask import fill_mask
from server.protocols.hugging_face.generation import generate
from server.protocols.hugging_face.schemas import (
    FillMaskParameters,
    FillMaskRequest,
    TextGenerationParameters,
    TextGenerationRequest,
)
from server.wire.body import read_object

PATH = "/"
MODEL = "/models/{name}"
GENERATION = names(TextGenerationParameters) - names(FillMaskParameters)

router = APIRouter(tags=["clients"])


@router.post(PATH, openapi_extra=takes(FillMaskRequest, TextGenerationRequest))
async def root(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Hugging Face's fill-mask for a text with a mask, else its text generation."""
    return await _answer(request, service, PATH, None)


@router.post("/models/{name:path}", openapi_extra=takes(FillMaskRequest, TextGenerationRequest))
async def model(name: str, request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """The same of a model or an adapter by its name."""
    return await _answer(request, service, MODEL, name)


async def _answer(request: Request, service: Service, route: str, name: str | None) -> Response:
    raw = await read_object(request, service.settings.body_seconds)
    if is_fill_mask(raw, service.engine.card):
        request.state.error_body = mask_error_body
        return await fill_mask(request, service, raw, Asking(route, name))
    return await generate(request, service, raw, Asking(route, name, in_list=True))


def is_fill_mask(raw: Mapping[str, Any], card: ModelCard) -> bool:
    """Whether a body is fill-mask's."""
    inputs, parameters = raw.get("inputs"), raw.get("parameters")
    given = {k for k, v in parameters.items() if v is not None} if isinstance(parameters, dict) else set()
    if raw.get("stream") is not None or given & GENERATION:
        return False
    if isinstance(inputs, list) or "targets" in given or card.masked:
        return True
    return isinstance(inputs, str) and MASKS.search(inputs) is not None
