"""`POST /v1/tokenize` and `/v1/detokenize`: texts as token ids and back."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from server.answer import Answer
from server.body import read_object
from server.openapi import takes
from server.schemas import DetokenizeRequest, TokenizeRequest
from server.service import Service, service_of

router = APIRouter(tags=["tokens"])


@router.post("/v1/tokenize", openapi_extra=takes(TokenizeRequest))
async def tokenize(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The token ids of a text; mask tokens in it are recognised."""
    body = TokenizeRequest.model_validate(await read_object(request, service.settings.body_seconds))
    tokens = await service.engine.tokenize(body.text)
    return Answer({"tokens": tokens, "count": len(tokens)})


@router.post("/v1/detokenize", openapi_extra=takes(DetokenizeRequest))
async def detokenize(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The text of token ids."""
    body = DetokenizeRequest.model_validate(await read_object(request, service.settings.body_seconds))
    return Answer({"text": await service.engine.detokenize(body.token_ids(service.settings.limits))})
