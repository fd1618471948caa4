"""`POST /infill` of llama.cpp's editors: the text between the text before the cursor and the text behind it.

The model reads both sides at once, so no text is cached from one keystroke to the next: `tokens_cached` says so. A text
that is too long loses the text farthest from the cursor, and `truncated` says so.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.exchange.bodies import names
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.protocols.llama_cpp.predicting import predict
from server.protocols.llama_cpp.schemas import OTHER_NAMES, EditorRequest
from server.wire.body import read_object
from server.wire.errors import ApiError

PATH = "/infill"

router = APIRouter()


@router.post(PATH, openapi_extra=takes(EditorRequest), tags=["clients"])
async def infill(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """llama.cpp's infill, for llama.vim and llama.vscode."""
    raw = await read_object(request, service.settings.body_seconds)
    mask = service.engine.card.infill_mask
    if mask is None:
        raise ApiError(501, "Infill is not supported by this model", "unsupported")
    service.ignored.note(PATH, raw.keys() - names(EditorRequest) - OTHER_NAMES)
    body = EditorRequest.model_validate(raw)
    return await predict(service, request, body, body.segments(mask), "input_prefix")
