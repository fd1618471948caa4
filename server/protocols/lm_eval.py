"""`/tokenize`, `/detokenize` and `/tokenizer_info` for lm-evaluation-harness and llama.cpp's clients.

lm-evaluation-harness (utils.py, RemoteTokenizer) and llama.cpp's editors use different fields for the same values; the
routes answer both. A text's names of special tokens are special tokens, so that a client finds the start and end
tokens.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from engine.readings import Piece
from engine.requests import RequestError
from server.exchange.bodies import Lenient, Number, String, at_most
from server.exchange.protocol import Protocol
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.wire.answer import Answer
from server.wire.body import read_object

router = APIRouter(tags=["clients"])


class TokensRequest(Lenient):
    """The body of `POST /tokenize`, with the fields of lm-evaluation-harness and vLLM or of llama.cpp."""

    prompt: String | None = None
    content: String | None = None
    add_special_tokens: bool = False
    return_token_strs: bool = False
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False

    def text(self) -> str:
        """The text. Raises RequestError unless there is one."""
        if (self.prompt is None) == (self.content is None):
            raise RequestError("give exactly one of: prompt; content", "prompt", "invalid_form")
        return self.prompt if self.prompt is not None else self.content or ""

    @property
    def adds_special(self) -> bool:
        """Whether the start token comes first."""
        return self.add_special_tokens or self.add_special


class TokensTextRequest(Lenient):
    """The body of `POST /detokenize`."""

    tokens: list[Number]


@router.get("/tokenizer_info")
async def tokenizer_info(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The tokenizer's facts for lm-evaluation-harness: the spellings of the tokens that begin and end a text."""
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


@router.post("/tokenize", openapi_extra=takes(TokensRequest))
async def tokenize_for_clients(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The token ids of a `prompt` (lm-evaluation-harness, vLLM) or `content` (llama.cpp).

    Names of special tokens are special tokens unless `parse_special` is false. `with_pieces` and `return_token_strs`
    add the spelling of each token.
    """
    body = TokensRequest.model_validate(await read_object(request, service.settings.body_seconds))
    engine = service.engine
    text, bos = body.text(), engine.card.special_tokens.get("bos")
    tokens = await engine.tokenize(text, special=body.parse_special, masks=body.parse_special)
    if body.adds_special and bos is not None:
        start = await engine.tokenize(bos, special=True)
        tokens = tokens if tokens[: len(start)] == start else [*start, *tokens]
    answer: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": engine.card.max_span}
    if body.with_pieces or body.return_token_strs:
        pieces = await engine.pieces(tokens)
        if body.with_pieces:
            answer["tokens"] = [{"id": piece.token_id, "piece": _piece(piece)} for piece in pieces]
        if body.return_token_strs:
            answer["token_strs"] = [piece.entry for piece in pieces]
    return Answer(answer)


def _piece(piece: Piece) -> str | list[int]:
    """A token's text; its bytes where they are none, as in llama.cpp."""
    try:
        return bytes(piece.data).decode()
    except UnicodeDecodeError:
        return piece.data


@router.post("/detokenize", openapi_extra=takes(TokensTextRequest))
async def detokenize_for_clients(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The text of token ids, with names of special tokens, as `prompt` and as `content`."""
    body = TokensTextRequest.model_validate(await read_object(request, service.settings.body_seconds))
    at_most("tokens", len(body.tokens), service.settings.limits.token_ids, "items")
    text = await service.engine.detokenize(body.tokens, special=True)
    return Answer({"prompt": text, "content": text})


PROTOCOL = Protocol(
    "lm_eval", router, bodies=(TokensRequest, TokensTextRequest), work=frozenset({"/tokenize", "/detokenize"})
)
