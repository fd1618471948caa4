"""`POST /v1/tokenize` and `/v1/detokenize`: texts as token ids, and back."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from server.exchange.bodies import at_most
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.protocols.native.schemas import DetokenizeRequest, TokenizeRequest
from server.wire.answer import Answer
from server.wire.body import read_object

TOKENIZE = "/v1/tokenize"
DETOKENIZE = "/v1/detokenize"

router = APIRouter(tags=["tokens"])


@router.post(TOKENIZE, openapi_extra=takes(TokenizeRequest))
async def tokenize(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The token ids of a text; mask tokens in it are recognised."""
    body = TokenizeRequest.model_validate(await read_object(request, service.settings.body_seconds))
    tokens = await service.engine.tokenize(body.text)
    return Answer({"tokens": tokens, "count": len(tokens)})


@router.post(DETOKENIZE, openapi_extra=takes(DetokenizeRequest))
async def detokenize(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The text of token ids."""
    body = DetokenizeRequest.model_validate(await read_object(request, service.settings.body_seconds))
    at_most("tokens", len(body.tokens), service.settings.limits.token_ids, "items")
    return Answer({"text": await service.engine.detokenize(body.tokens)})
