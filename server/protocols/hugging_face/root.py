"""`POST /` and `POST /models/{name}`: what Hugging Face's clients ask of an endpoint, fill-mask or text generation.

Both have the same path and the same two fields. A body with a field that only text generation has is its own, such as
`stream` or `max_new_tokens`. Any other body is fill-mask's, whose clients send `top_k` and `targets` or nothing: a text
without a mask is an error then, as in transformers' pipeline, since these clients cannot read any other answer.
huggingface_hub's `text_generation` without any parameter sends the same as its `fill_mask`, and is told what to add.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.exchange.bodies import names
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
    """Hugging Face's fill-mask; text generation for a body with `stream` or one of its parameters."""
    return await _answer(request, service, PATH, None)


@router.post("/models/{name:path}", openapi_extra=takes(FillMaskRequest, TextGenerationRequest))
async def model(name: str, request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """The same of a model or an adapter by its name."""
    return await _answer(request, service, MODEL, name.rstrip("/"))


async def _answer(request: Request, service: Service, route: str, name: str | None) -> Response:
    raw = await read_object(request, service.settings.body_seconds)
    if is_fill_mask(raw):
        request.state.error_body = mask_error_body
        return await fill_mask(request, service, raw, Asking(route, name))
    return await generate(request, service, raw, Asking(route, name, in_list=True))


def is_fill_mask(raw: Mapping[str, Any]) -> bool:
    """Whether a body is fill-mask's."""
    parameters = raw.get("parameters")
    given = {k for k, v in parameters.items() if v is not None} if isinstance(parameters, dict) else set()
    return raw.get("stream") is None and not given & GENERATION
