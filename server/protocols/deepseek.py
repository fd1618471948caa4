"""DeepSeek's fill-in-the-middle: OpenAI's completions, under the path of its beta."""

from fastapi import APIRouter

from server.exchange.protocol import Protocol
from server.exchange.takes import takes
from server.protocols.openai.completions import completions
from server.protocols.openai.schemas import CompletionRequest

PATH = "/beta/completions"

router = APIRouter()
router.post(PATH, openapi_extra=takes(CompletionRequest), tags=["clients"])(completions)

PROTOCOL = Protocol("deepseek", router, bodies=(), work=frozenset({PATH}), chats=frozenset({"/beta/chat/completions"}))
