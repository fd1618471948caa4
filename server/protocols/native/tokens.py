"""`POST /v1/tokenize` and `/v1/detokenize`: texts as token ids, and back."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from server.exchange.bodies import at_most, count_blanks
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
    """The token ids of a text, whose mask tokens are special.

    With `layout` the answer also has the tokens that the model reads and all positions, so that a client can compute a
    score by itself.
    """
    body = TokenizeRequest.model_validate(await read_object(request, service.settings.body_seconds))
    tokens = await service.engine.tokenize(body.text)
    answer: dict[str, Any] = {"tokens": tokens, "count": len(tokens)}
    if body.layout is not None:
        fill = body.fill()
        at_most("text", count_blanks(fill.inputs[0]), service.settings.limits.blanks, "blanks")
        (read,) = await service.engine.read(fill, scored=body.layout == "score")
        answer["layout"] = read
    return Answer(answer)


@router.post(DETOKENIZE, openapi_extra=takes(DetokenizeRequest))
async def detokenize(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The text of token ids."""
    body = DetokenizeRequest.model_validate(await read_object(request, service.settings.body_seconds))
    at_most("tokens", len(body.tokens), service.settings.limits.token_ids, "items")
    return Answer({"text": await service.engine.detokenize(body.tokens)})
