"""Texts as token ids and back: `POST /v1/tokenize` and `/v1/detokenize`, and at the root what other clients ask.

lm-evaluation-harness (utils.py, RemoteTokenizer) and llama.cpp's editors have their own fields for the same; both are
answered. There special tokens are read where a text spells them: a client finds the start and end tokens so.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from server.answer import Answer
from server.body import read_object
from server.openapi import takes
from server.schemas import DetokenizeRequest, TokenizeRequest, at_most
from server.schemas_tokens import TokensRequest, TokensTextRequest
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
    at_most("tokens", len(body.tokens), service.settings.limits.token_ids, "items")
    return Answer({"text": await service.engine.detokenize(body.tokens)})


@router.get("/tokenizer_info", tags=["clients"])
async def tokenizer_info(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """What lm-evaluation-harness asks of a tokenizer: how the tokens are spelled that begin and end a text."""
    card = service.engine.card
    named = {f"{role}_token": card.special_tokens.get(role) for role in ("bos", "eos", "pad", "unk", "cls")}
    return Answer(
        {
            "tokenizer_class": card.family,
            "model_max_length": card.max_span,
            "vocab_size": card.vocab_size,
            "add_bos_token": False,
            **named,
            "additional_special_tokens": card.masks,
            "chat_template": None,
        }
    )


@router.post("/tokenize", openapi_extra=takes(TokensRequest), tags=["clients"])
async def tokenize_for_clients(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The token ids of a `prompt` (lm-evaluation-harness) or `content` (llama.cpp), special tokens by name."""
    body = TokensRequest.model_validate(await read_object(request, service.settings.body_seconds))
    card = service.engine.card
    text = body.text()
    bos = card.special_tokens.get("bos")
    if body.adds_special and bos is not None and not text.startswith(bos):
        text = bos + text
    tokens = await service.engine.tokenize(text, special=True)
    return Answer({"tokens": tokens, "count": len(tokens), "max_model_len": card.max_span})


@router.post("/detokenize", openapi_extra=takes(TokensTextRequest), tags=["clients"])
async def detokenize_for_clients(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The text of token ids, special tokens by name, as `prompt` and as `content`."""
    body = TokensTextRequest.model_validate(await read_object(request, service.settings.body_seconds))
    at_most("tokens", len(body.tokens), service.settings.limits.token_ids, "items")
    text = await service.engine.detokenize(body.tokens, special=True)
    return Answer({"prompt": text, "content": text})
