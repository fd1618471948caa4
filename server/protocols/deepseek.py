"""DeepSeek's fill-in-the-middle: OpenAI's completions, under the path of its beta."""

from fastapi import APIRouter

from server.exchange.protocol import Protocol
from server.exchange.takes import takes
from server.protocols.native.models import models
from server.protocols.openai.completions import completions
from server.protocols.openai.schemas import CompletionRequest

PATH = "/beta/completions"
MODELS = "/beta/models"

router = APIRouter()
router.post(PATH, openapi_extra=takes(CompletionRequest), tags=["clients"])(completions)
router.get(MODELS, tags=["clients"])(models)

PROTOCOL = Protocol("deepseek", router, bodies=(), work=frozenset({PATH}), chats=frozenset({"/beta/chat/completions"}))
