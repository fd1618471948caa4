"""Mistral's fill-in-the-middle, for Codestral's clients."""

from server.exchange.protocol import Protocol
from server.protocols.mistral.fim import PATH, router
from server.protocols.mistral.schemas import FimRequest

PROTOCOL = Protocol(
    "mistral",
    router,
    bodies=(FimRequest,),
    work=frozenset({PATH}),
    chats=frozenset({"/v1/agents/completions", "/v1/conversations"}),
)
