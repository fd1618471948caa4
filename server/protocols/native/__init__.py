"""The server's own routes, below `/v1/`."""

from fastapi import APIRouter

from server.exchange.protocol import Protocol
from server.protocols.native import adapters, infill, models, score, tokens
from server.protocols.native.schemas import (
    AdapterRequest,
    DetokenizeRequest,
    InfillRequest,
    ScoreRequest,
    TokenizeRequest,
)

PARTS = (infill.router, score.router, tokens.router, models.router, adapters.router)

PROTOCOL = Protocol(
    "native",
    APIRouter(routes=[route for part in PARTS for route in part.routes]),
    bodies=(InfillRequest, ScoreRequest, TokenizeRequest, DetokenizeRequest, AdapterRequest),
    work=frozenset({infill.PATH, score.PATH, tokens.TOKENIZE, tokens.DETOKENIZE, adapters.PATH}),
    batch={infill.PATH: InfillRequest, score.PATH: ScoreRequest},
)
