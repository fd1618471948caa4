"""OpenAI's completions, for its clients and lm-evaluation-harness."""

from server.exchange.protocol import Protocol
from server.protocols.openai.completions import PATH, router
from server.protocols.openai.schemas import CompletionRequest

PROTOCOL = Protocol(
    "openai",
    router,
    bodies=(CompletionRequest,),
    work=frozenset({PATH}),
    batch={PATH: CompletionRequest},
    chats=frozenset({"/v1/chat/completions", "/chat/completions", "/v1/responses", "/responses"}),
)
