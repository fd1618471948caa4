"""Ollama's API for blanks: generation with a suffix, and the lists of models. An error is one text."""

from fastapi import APIRouter

from server.exchange.protocol import Protocol
from server.protocols.ollama import generate, models
from server.protocols.ollama.error_body import error_body
from server.protocols.ollama.schemas import GenerateRequest, ShowRequest

PARTS = (generate.router, models.router)

PROTOCOL = Protocol(
    "ollama",
    APIRouter(routes=[route for part in PARTS for route in part.routes]),
    bodies=(GenerateRequest, ShowRequest),
    work=frozenset({generate.PATH}),
    error_body=error_body,
    below="/api/",
    chats=frozenset({"/api/chat"}),
)
